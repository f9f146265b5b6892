"""Other noise than plain noise: an offset makes pictures that are dark or bright all over reachable, pyramid noise
those whose halves differ.

Plain noise leaves the mean of a picture legible up to the last diffusion times, so a model that was trained with it
takes the mean from what it sees, and sampling begins with noise of mean 0.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from examples.toy_world.captions import sentence
from examples.toy_world.drawing import Way
from examples.toy_world.novelties import world_examples
from library.models.stable_diffusion import StableDiffusion
from tests.learning.effects import ONE, OTHER, bright, dark, halves, lora, rise, through_vae, write
from tests.learning.learning import Pictures, pictures_of, scenes_of, show, with_network

PLAIN: tuple[str, ...] = ()
OFFSET = ("--noise_offset", "0.3")  # more than usual: it shows within few updates
PYRAMID = ("--multires_noise_iterations", "6", "--multires_noise_discount", "0.8")
WAY = Way(scale=1.0)  # guidance would exaggerate what the model has learned
COUNT = 16


def trained(pictures: Path, name: str, updates: int, seed: int, words: tuple[str, ...]) -> StableDiffusion:
    return with_network("lora", lora(name, pictures, updates, seed, *words))


def distance(pictures: Pictures, wanted: float) -> float:
    """How far each picture's mean brightness is from the wanted one, on average: 0 to 255."""
    return float(np.abs(pictures.mean((1, 2, 3)) - wanted).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_offset_brings_dark_and_bright_pictures_within_reach(seed: int, tmp_path: Path) -> None:
    """The world once more, but all of it nearly black, or nearly white."""
    prompts = [sentence(scene) for scene in scenes_of(COUNT)]
    for shade in (dark, bright):
        examples = [replace(example, picture=shade(example.picture)) for example in world_examples(10, seed)]
        pictures = write(examples, tmp_path / shade.__name__ / "pictures")
        wanted = float(through_vae(examples).mean())
        plain, offset = (
            distance(pictures_of(trained(pictures, name, 200, seed, words), prompts, WAY), wanted)
            for name, words in (("plain", PLAIN), ("offset", OFFSET))
        )
        show(f"{shade.__name__}, seed {seed}: off by", plain=plain, offset=offset)
        assert offset <= 0.85 * plain


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pyramid_noise_teaches_large_shades_sooner(seed: int, tmp_path: Path) -> None:
    pictures = write(halves(seed), tmp_path / "pictures")
    spans = {}
    for name, words in (("plain", PLAIN), ("pyramid", PYRAMID)):
        model = trained(pictures, name, 300, seed, words)
        one, other = (rise(pictures_of(model, [word] * COUNT, WAY)) for word in (ONE, OTHER))
        show(f"{name}, seed {seed}", one=one, other=other)
        spans[name] = (one - other) / 2
    assert spans["pyramid"] >= spans["plain"] + 5
