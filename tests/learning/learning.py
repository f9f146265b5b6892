"""What the tests of learning share: a run of a real script on the toy world's model, and pictures of what came out."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.toy_world.applied import apply
from examples.toy_world.drawing import MODEL, WAY, Way, draw, load_model
from examples.toy_world.judge import Judge
from examples.toy_world.novelties import Novelty, examples_of, judge_of, write_examples
from examples.toy_world.world import Scene, random_scene
from library.core.randomness import NO_EPOCH, generator
from library.models.stable_diffusion import StableDiffusion

Pictures = NDArray[np.uint8]  # (count, height, width, 3)

_USUAL_WORDS = (
    *("--resolution", "64,64", "--train_batch_size", "4", "--mixed_precision", "no", "--cache_latents"),
    *("--max_data_loader_n_workers", "0"),
)


def toy_model() -> Path:
    """The trained model that all start from; SD_ATELIER_TOY_MODEL names another."""
    path = Path(os.environ.get("SD_ATELIER_TOY_MODEL", MODEL))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the toy world's model is missing; examples/toy_world/build.py makes it")
    return path


def train(script: str, folder: Path, words: Sequence[str], seed: int) -> Path:
    """Trains in this process; what is said twice counts as it is said last.

    Args:
        script: such as "train_network".
        folder: where the trained file goes.
        words: beyond the usual ones: the pictures, how much and how fast to learn.

    Returns:
        The trained file.
    """
    usual = ("--pretrained_model_name_or_path", str(toy_model()), "--output_dir", str(folder), *_USUAL_WORDS)
    importlib.import_module(script).main([*usual, "--seed", str(seed), *words])
    (trained,) = (path for path in folder.glob("last.*") if path.suffix != ".yaml")
    return trained


@cache
def base_model() -> StableDiffusion:
    """The model before any training; nobody may change it."""
    return load_model(toy_model())


def trained_model(path: Path) -> StableDiffusion:
    """The whole model that fine_tune.py or train_db.py made."""
    return load_model(path)


def base_copy() -> StableDiffusion:
    """The base with a U-Net and a text encoder that may be changed."""
    base = base_model()
    return replace(base, unet=deepcopy(base.unet), text_encoder=deepcopy(base.text_encoder))


def with_network(method: str, path: Path, strength: float = 1.0) -> StableDiffusion:
    """The base with a trained network ("lora", "hypernetwork"), at a strength."""
    model = base_copy()
    apply(method, path, model, word="", first_word="").set_strength(strength)
    return model


def write_novelty(novelty: Novelty, folder: Path, seed: int, count: int = 10) -> Path:
    """Writes pictures of something new with their captions; a plain folder, as `--train_data_dir` takes it."""
    write_examples(examples_of(novelty, count, seed), folder)
    return folder


def scenes_of(count: int, seed: int = 1000) -> list[Scene]:
    """Scenes to ask for, the same for the same seed; no training picture has that seed."""
    draws = generator(seed, NO_EPOCH, "scenes", "prompts")
    return [random_scene(draws) for _ in range(count)]


def prompts_of(novelty: Novelty, count: int, seed: int = 1000) -> list[str]:
    """Prompts that ask for something new in scenes that vary."""
    return [novelty.prompt(scene) for scene in scenes_of(count, seed)]


def pictures_of(model: StableDiffusion, prompts: Sequence[str], way: Way = WAY) -> Pictures:
    """A picture for each prompt, from the seeds 0, 1, …; see `drawing.draw` for the rest."""
    return draw(model, prompts, range(len(prompts)), way)


def picture_share(pictures: Pictures, judge: Judge, part: str, words: str | Sequence[str]) -> float:
    """The share of the pictures in which a part of the verdict is the word asked for, 0 to 1.

    Args:
        part: "shape", "colour", "background" or "place".
        words: one for all pictures, or one for each.
    """
    asked = [words] * len(pictures) if isinstance(words, str) else words
    right = [getattr(judge(picture), part) == word for picture, word in zip(pictures, asked, strict=True)]
    return sum(right) / len(right)


def new_share(pictures: Pictures, novelty: Novelty) -> float:
    """The share of the pictures in which the judge finds something new, 0 to 1."""
    return picture_share(pictures, judge_of(novelty), novelty.part, novelty.name)


def novelty_share(model: StableDiffusion, novelty: Novelty, count: int = 24) -> float:
    """The share of prompts for something new that a model answers with it, 0 to 1."""
    return new_share(pictures_of(model, prompts_of(novelty, count)), novelty)


def show(what: str, **figures: float) -> None:
    """Prints what was measured; `pytest -s` shows it."""
    print(f"\n{what}: " + ", ".join(f"{name} {figure:.2f}" for name, figure in figures.items()))


@cache
def base_share(novelty: Novelty, count: int = 24) -> float:
    """`novelty_share` of the base: what every method starts from."""
    return novelty_share(base_model(), novelty, count)
