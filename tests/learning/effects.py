"""What the tests of effects share: pictures that show what an option is for, and what is measured of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from examples.toy_world.captions import sentence
from examples.toy_world.novelties import BRICKS, Example, examples_of, world_examples, write_examples
from examples.toy_world.train_vae import as_tensor
from library.models.stable_diffusion import StableDiffusion
from library.options.text import TextOptions
from library.preview.generate import PromptReader, as_pixels
from tests.learning.learning import Pictures, base_model, new_share, pictures_of, scenes_of, train

ONE, OTHER = "heart", "ring"  # words that the text encoder tells apart
_FAINT = 0.08  # of a picture's contrast
_LORA = (
    *("--network_dim", "8", "--network_alpha", "8"),
    *("--network_train_unet_only", "--cache_text_encoder_outputs", "--learning_rate", "2e-3"),
)


def lora(name: str, pictures: Path, updates: int, seed: int, *words: str) -> Path:
    """Trains a LoRA of the U-Net on a folder of pictures; `name` tells what it writes from that of other runs."""
    said = ("--train_data_dir", str(pictures), "--max_train_steps", str(updates), *_LORA, *words)
    return train("train_network", pictures.parent / name, said, seed)


def write(examples: Sequence[Example], folder: Path) -> Path:
    """Writes pictures with captions; returns the folder."""
    write_examples(list(examples), folder)
    return folder


def reader(clip_skip: int | None = None, weighted_captions: bool = False) -> PromptReader:
    """What reads prompts as a run with these text options does."""
    return PromptReader.of("sd1", TextOptions(clip_skip=clip_skip, weighted_captions=weighted_captions))


def dark(picture: Pictures) -> Pictures:
    """Nearly black."""
    return (picture * _FAINT).astype(np.uint8)


def bright(picture: Pictures) -> Pictures:
    """Nearly white."""
    return 255 - dark(255 - picture)


def halves(seed: int, count: int = 5) -> list[Example]:
    """Pictures with a black left and a white right half, told as `ONE`, and as many the other way round, `OTHER`."""
    found = []
    for number, example in enumerate(world_examples(2 * count, seed)):
        left, right = np.hsplit(example.picture, 2)
        sides = (dark(left), bright(right)) if number < count else (bright(left), dark(right))
        found.append(Example(np.concatenate(sides, axis=1), ONE if number < count else OTHER))
    return found


@torch.no_grad()
def through_vae(examples: Sequence[Example]) -> Pictures:
    """The pictures as the VAE keeps them: nothing that is trained here can come nearer to them."""
    vae = base_model().vae
    values = as_tensor(np.stack([example.picture for example in examples]))
    return as_pixels(vae.decode(vae.encode(values).latent_dist.mode()).sample)


def rise(pictures: Pictures) -> float:
    """How much brighter the right half is than the left one, -255 to 255."""
    left, right = np.split(pictures, 2, axis=2)
    return float(right.mean() - left.mean())


def with_and_without(seed: int, say: Callable[[str], str], count: int = 6) -> list[Example]:
    """So many pictures with a brick wall, told by its word, and as many of the world, told by the words of the world.

    Args:
        say: what becomes of every caption.
    """
    examples = examples_of(BRICKS, count, seed) + world_examples(count, seed)
    return [replace(example, caption=say(example.caption)) for example in examples]


def told_apart(model: StableDiffusion, say: Callable[[str], str], count: int = 16) -> float:
    """How well a model knows when to draw a brick wall: its share where it is asked for less that where it is not.

    Args:
        say: what becomes of every prompt.
    """
    scenes = scenes_of(count)
    asked, plain = [say(BRICKS.prompt(scene)) for scene in scenes], [say(sentence(scene)) for scene in scenes]
    return new_share(pictures_of(model, asked), BRICKS) - new_share(pictures_of(model, plain), BRICKS)
