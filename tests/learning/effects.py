"""What the tests of effects share."""

from __future__ import annotations

from examples.toy_world.captions import sentence
from examples.toy_world.novelties import Example
from examples.toy_world.world import draw_scene, random_scene
from library.core.randomness import NO_EPOCH, generator
from library.options.text import TextOptions
from library.preview.generate import PromptReader


def reader(clip_skip: int | None = None) -> PromptReader:
    """What reads prompts as a run with these text options does."""
    return PromptReader.of("sd1", TextOptions(clip_skip=clip_skip))


def world_examples(seed: int, count: int) -> list[Example]:
    """Pictures of the world itself, 64x64; of ten captions one is empty."""
    draws = generator(seed, NO_EPOCH, "world", "effects")
    found = []
    for number in range(count):
        scene = random_scene(draws)
        caption = sentence(scene) if number % 10 else ""
        found.append(Example(draw_scene(scene, 64, 64, draws), caption))
    return found
