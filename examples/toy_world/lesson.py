"""What a run of tools/quickstart.py is about: the pictures it trains, and the prompts it is judged by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from examples.toy_world.captions import UNSAID, sentence, tags
from examples.toy_world.novelties import (
    NOVELTIES,
    Example,
    Novelty,
    examples_of,
    regularisation_examples,
    world_examples,
    write_examples,
)
from examples.toy_world.world import Scene, random_scene
from library.core.errors import UserError
from library.core.randomness import NO_EPOCH, generator

LESSON = "quickstart.json"
PROMPTS = "prompts.txt"
SEED = 1  # of the pictures that are taught
FIRST_SEED = 1000  # of the noise that pictures grow from
SIDE, STEPS, SCALE = 64, 20, 4.0  # of pictures that are drawn: pixels, steps of the sampler, guidance
SHOWN = (
    Scene("circle", "blue", "meadow", "centre", "large"),
    Scene("star", "orange", "night", "left", "large"),
    Scene("square", "green", "sky", "right", "small"),
    Scene("ring", "purple", "desert", "centre", "small"),
    Scene("cross", "pink", "paper", "left", "small"),
    Scene("triangle", "black", "tiles", "right", "large"),
)
JUDGED = 24  # prompts; those shown are the first
_SAMPLED = 2  # prompts with the new thing whose pictures are made on the way; one without it stands beside them


@dataclass(frozen=True)
class Lesson:
    """What `LESSON` in the folder of a run says; paths count from the project's folder.

    Attributes:
        title: what is trained, with its article.
        spoken: what is taught, with its article.
        words: how captions call it.
        class_word: the word of the world for what resembles it most.
        count: pictures that are taught.
        class_pictures: folder of the pictures of what must not change; None where none are trained.
        sampled_every: updates between the sample pictures of the training.
        strength: what the strengths of the picture mean.
        arguments, command: the command line of the training, as words and as one types it.
        next: what to do after this, with `real_command`.
        seconds: that the training took; None before it.
    """

    method: str
    new_thing: str
    title: str
    spoken: str
    words: str
    class_word: str
    model: Path
    count: int
    pictures: Path
    class_pictures: Path | None
    trained: Path
    steps: int
    sampled_every: int
    strength: str
    arguments: tuple[str, ...]
    command: str
    next: tuple[str, ...]
    real_command: str
    seconds: float | None

    @property
    def novelty(self) -> Novelty:
        """What is taught."""
        return NOVELTIES[self.new_thing]

    def asking(self, scene: Scene) -> str:
        """The prompt for the new thing in a scene."""
        return self.in_own_words(self.novelty.prompt(scene))

    def in_own_words(self, caption: str) -> str:
        """A caption with the thing called as this run calls it."""
        return caption.replace(self.novelty.thing, self.words)

    def heading(self, scene: Scene) -> str:
        """What varies between prompts for the new thing, such as "meadow, centre, large"."""
        unsaid = (self.novelty.part, *self.novelty.hides)
        return tags(replace(scene, **dict.fromkeys(unsaid, UNSAID))).removeprefix(", ")


def read_lesson(folder: Path) -> Lesson:
    """What the folder of a run is about.

    Raises:
        UserError: there is nothing to be read.
    """
    path = folder / LESSON
    fix = "run python tools/quickstart.py; it writes this file"
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        given = {field.name: told[field.name] for field in fields(Lesson)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError.of(f"it cannot be read: {error}", str(path), fix) from error
    for name in ("model", "pictures", "class_pictures", "trained"):
        given[name] = None if given[name] is None else Path(given[name])
    for name in ("arguments", "next"):
        given[name] = tuple(given[name])
    return Lesson(**given)


def taught_examples(lesson: Lesson) -> list[Example]:
    """The pictures that are trained, with their captions."""
    examples = examples_of(lesson.novelty, lesson.count, SEED, (SIDE, SIDE))
    return [replace(example, caption=lesson.in_own_words(example.caption)) for example in examples]


def judged_scenes() -> list[Scene]:
    """Scenes of the prompts: those that are shown, and others behind them."""
    draw = generator(SEED, NO_EPOCH, "quickstart", "prompts")
    return [*SHOWN, *(random_scene(draw) for _ in range(JUDGED - len(SHOWN)))]


def seeds(count: int) -> list[int]:
    """Of the noise of so many pictures."""
    return list(range(FIRST_SEED, FIRST_SEED + count))


def prepare(lesson: Lesson, folder: Path) -> list[Example]:
    """Writes the pictures that are trained and the prompts of the samples. Returns the pictures of the new thing."""
    examples = taught_examples(lesson)
    write_examples(examples, lesson.pictures)
    if lesson.class_pictures is not None:
        write_examples(known_examples(lesson), lesson.class_pictures)
    (folder / PROMPTS).write_text("".join(f"{line}\n" for line in _sample_lines(lesson)), encoding="utf-8")
    return examples


def known_examples(lesson: Lesson) -> list[Example]:
    """Pictures of what must not change: of what resembles the new thing most, and twice as many of all the world."""
    examples = regularisation_examples(lesson.novelty, lesson.count, SEED, (SIDE, SIDE))
    return examples + world_examples(2 * lesson.count, SEED, (SIDE, SIDE))


def sample_prompts(lesson: Lesson) -> list[str]:
    """Of the pictures that the training makes on its way; the last is about something known."""
    return [*(lesson.asking(scene) for scene in SHOWN[:_SAMPLED]), sentence(SHOWN[_SAMPLED])]


def sample_seeds(lesson: Lesson) -> list[int]:
    """Their noise is that of the same prompts in the picture of the result."""
    return seeds(len(sample_prompts(lesson)))


def _sample_lines(lesson: Lesson) -> Sequence[str]:
    way = f"--w {SIDE} --h {SIDE} --l {SCALE:g} --s {STEPS}"
    prompts = zip(sample_prompts(lesson), sample_seeds(lesson), strict=True)
    return [f"{prompt} {way} --d {seed}" for prompt, seed in prompts]
