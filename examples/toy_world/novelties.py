"""What is not in the small world, for teaching it to a model: pictures with captions, as a trainer takes them.

Each novelty changes one thing: the shape, the colour, the background, or all of the shape's look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from examples.toy_world.captions import UNSAID, sentence
from examples.toy_world.judge import Judge
from examples.toy_world.world import (
    COLOURS,
    SIZES,
    Floats,
    Rgb,
    Scene,
    background,
    draw_scene,
    placed,
    random_scene,
    shape_mask,
    stamp,
)
from library.core.randomness import NO_EPOCH, generator

WORD = "sks"  # stands for nothing in the small world
TEAL: Rgb = (16, 130, 136)
_SIDE = 256
_CANDIDATES = 64  # scenes of which the least familiar one is taken


@dataclass(frozen=True)
class Example:
    """A picture to train on.

    Attributes:
        picture: (height, width, 3), 0 to 255.
        caption: what is to be learned with it.
    """

    picture: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True)
class Novelty:
    """Something that the base model cannot draw.

    Attributes:
        name: what it is.
        thing: how captions and prompts call it, such as "sks ring"; it takes the place of the `part` of a scene.
        part: "shape", "colour" or "background".
        class_word: the word of the world that it resembles most, which regularisation pictures show.
        hides: further parts of a scene that are not seen with it.
    """

    name: str
    thing: str
    part: str
    class_word: str
    hides: tuple[str, ...] = ()

    def prompt(self, scene: Scene) -> str:
        """The caption of a scene in which the new thing takes its place."""
        return sentence(replace(scene, **{self.part: self.thing}, **dict.fromkeys(self.hides, UNSAID)))

    def class_scene(self, scene: Scene) -> Scene:
        """The same scene with what the small world has in that place; `sentence` says it."""
        return replace(scene, **{self.part: self.class_word})

    def class_prompt(self) -> str:
        """What the small world has in that place and nothing else, such as "a ring"."""
        return sentence(self.class_scene(Scene(*(UNSAID for _ in fields(Scene)))))

    def folder(self, repeats: int) -> str:
        """The name of a folder of its pictures, as DreamBooth's script reads it: "10_sks ring"."""
        return f"{repeats}_{self.thing}"

    def class_folder(self, repeats: int) -> str:
        """The name of a folder of regularisation pictures: "1_ring"."""
        return f"{repeats}_{self.class_word}"


CRESCENT = Novelty("crescent", f"{WORD} ring", "shape", "ring")
TOADSTOOL = Novelty("toadstool", f"{WORD} toadstool", "shape", "heart", hides=("colour",))
TEAL_PAINT = Novelty("teal", WORD, "colour", "blue")
BRICKS = Novelty("bricks", WORD, "background", "tiles")
NOVELTIES = {novelty.name: novelty for novelty in (CRESCENT, TOADSTOOL, TEAL_PAINT, BRICKS)}


def examples_of(novelty: Novelty, count: int, seed: int, size: tuple[int, int] = (64, 64)) -> list[Example]:
    """Pictures of something new, in scenes that vary in everything else.

    Args:
        count: more pictures begin with those that fewer would be.
        size: width and height in pixels.

    Returns:
        Pictures whose captions say all that is in them, the new thing by its word.
    """
    return [
        Example(picture_of(novelty, scene, *size, draw), novelty.prompt(scene))
        for scene, draw in _varied_scenes(novelty.name, (novelty.part, *novelty.hides), count, seed)
    ]


def regularisation_examples(novelty: Novelty, count: int, seed: int, size: tuple[int, int] = (64, 64)) -> list[Example]:
    """Pictures of the class word, as the small world has it, for DreamBooth (Ruiz et al. 2022): what must not change.

    Args:
        count, size: as in `examples_of`.

    Returns:
        Pictures whose captions say, turn by turn, all that is in them and the class alone ("a ring").
    """
    found: list[Example] = []
    for scene, draw in _varied_scenes(f"{novelty.name} class", (novelty.part,), count, seed):
        shown = novelty.class_scene(scene)
        caption = novelty.class_prompt() if len(found) % 2 else sentence(shown)
        found.append(Example(draw_scene(shown, *size, draw), caption))
    return found


def world_examples(count: int, seed: int, size: tuple[int, int] = (64, 64)) -> list[Example]:
    """Pictures of the small world itself, with captions that say all that is in them.

    Args:
        count, size: as in `examples_of`.
    """
    found = []
    for number in range(count):
        draw = generator(seed, NO_EPOCH, f"world {number}", "novelty")
        scene = random_scene(draw)
        found.append(Example(draw_scene(scene, *size, draw), sentence(scene)))
    return found


def write_examples(examples: list[Example], folder: Path) -> None:
    """Writes `01.png` with its caption in `01.txt`, and so on.

    A folder named by `Novelty.folder` or `Novelty.class_folder` is one that the trainers' old-style options read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(examples, start=1):
        Image.fromarray(example.picture).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(example.caption + "\n", encoding="utf-8", newline="\n")


def _varied_scenes(
    name: str, unseen: tuple[str, ...], count: int, seed: int
) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Scenes with the generators for their pictures; each word comes about as often as the others of its list.

    Args:
        unseen: parts that the pictures do not show, in which scenes that look alike may differ.
    """
    seen = tuple(field.name for field in fields(Scene) if field.name not in unseen)
    scenes: Counter[tuple[str, ...]] = Counter()
    words: Counter[tuple[str, str]] = Counter()

    def familiar(scene: Scene) -> tuple[int, int]:
        look = tuple(getattr(scene, part) for part in seen)
        return scenes[look], sum(words[pair] for pair in zip(seen, look, strict=True))

    for number in range(count):
        draw = generator(seed, NO_EPOCH, f"{name} {number}", "novelty")
        scene = min((random_scene(draw) for _ in range(_CANDIDATES)), key=familiar)
        look = tuple(getattr(scene, part) for part in seen)
        scenes[look] += 1
        words.update(zip(seen, look, strict=True))
        yield scene, draw


def picture_of(novelty: Novelty, scene: Scene, width: int, height: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """The scene with the new thing in it: (height, width, 3), 0 to 255."""
    canvas = bricks(width, height) if novelty is BRICKS else background(scene.background, width, height, draw)
    if novelty is TOADSTOOL:
        _stamp_figure(canvas, toadstool(), scene, draw)
    else:
        outline = crescent() if novelty is CRESCENT else shape_mask(scene.shape)
        colour = TEAL if novelty is TEAL_PAINT else COLOURS[scene.colour]
        stamp(canvas, outline, colour, scene.place, SIZES[scene.size], draw)
    return np.clip(canvas, 0, 255).astype(np.uint8)


@cache
def judge_of(novelty: Novelty) -> Judge:
    """The judge that knows one new thing by its name, beside the small world.

    Raises:
        KeyError: the toadstool has no single outline or colour; `judge.likeness` finds it.
    """
    if novelty == CRESCENT:
        return Judge(shapes={novelty.name: crescent()})
    if novelty == TEAL_PAINT:
        return Judge(colours={novelty.name: TEAL})
    if novelty == BRICKS:
        return Judge(backgrounds={novelty.name: [bricks(64, 64).astype(np.uint8)]})
    raise KeyError(novelty.name)


def crescent() -> Image.Image:
    """A waning moon, white on black."""
    outline = Image.new("L", (_SIDE, _SIDE), 0)
    pen = ImageDraw.Draw(outline)
    pen.ellipse((0, 0, _SIDE - 1, _SIDE - 1), fill=255)
    pen.ellipse((_SIDE * 0.30, _SIDE * 0.06, _SIDE * 1.18, _SIDE * 0.94), fill=0)
    return outline


def toadstool() -> Image.Image:
    """A red cap with white dots on a pale stem, in mode "RGBA"."""
    figure = Image.new("RGBA", (_SIDE, _SIDE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(figure)
    pen.rounded_rectangle((_SIDE * 0.36, _SIDE * 0.42, _SIDE * 0.64, _SIDE * 0.98), 24, fill=(246, 226, 190, 255))
    pen.pieslice((0, _SIDE * 0.02, _SIDE - 1, _SIDE * 1.12), 180, 360, fill=(208, 28, 34, 255))
    for x, y, radius in ((0.28, 0.36, 0.10), (0.60, 0.22, 0.09), (0.80, 0.44, 0.08)):
        box = ((x - radius) * _SIDE, (y - radius) * _SIDE, (x + radius) * _SIDE, (y + radius) * _SIDE)
        pen.ellipse(box, fill=(252, 250, 246, 255))
    return figure


def bricks(width: int, height: int) -> Floats:
    """A brick wall: (height, width, 3), 0 to 255."""
    rows, columns = np.mgrid[:height, :width]
    shifted = columns + rows // 8 % 2 * 8
    joint = (rows % 8 < 2) | (shifted % 16 < 2)
    return np.where(joint[..., None], (206, 198, 190), (150, 96, 84)).astype(np.float32)


def _stamp_figure(canvas: Floats, figure: Image.Image, scene: Scene, draw: np.random.Generator) -> None:
    height, width = canvas.shape[:2]
    cover, rows, columns = placed(width, height, figure.getchannel("A"), scene.place, SIZES[scene.size], draw)
    side = len(cover)
    # colours times cover: else what is transparent would darken the edges
    colours = np.asarray(figure.convert("RGBa").resize((side, side), Image.Resampling.BOX), np.float32)[..., :3]
    canvas[rows, columns] += colours - cover[..., None] * canvas[rows, columns]
