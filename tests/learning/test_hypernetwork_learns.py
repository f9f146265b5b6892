"""A hypernetwork learns from ten pictures what its base cannot draw; at strength 0 it is the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from examples.toy_world.captions import sentence
from examples.toy_world.drawing import Way
from examples.toy_world.novelties import (
    TEAL_PAINT,
    Example,
    examples_of,
    judge_of,
    regularisation_examples,
    world_examples,
    write_examples,
)
from examples.toy_world.world import Scene
from library.models.stable_diffusion import StableDiffusion
from tests.learning.learning import (
    base_model,
    new_share,
    picture_share,
    pictures_of,
    prompts_of,
    scenes_of,
    show,
    train,
    with_network,
)

RECIPE = (
    *("--network_module", "networks.hypernetwork", "--network_args", "activation_func=relu"),
    "--cache_text_encoder_outputs",
)
SHORT = ("--learning_rate", "1e-2", "--max_train_steps", "10")
LONG = ("--learning_rate", "5e-3", "--max_train_steps", "300", "--train_batch_size", "8")


def trained(examples: list[Example], folder: Path, seed: int, *words: str) -> Path:
    write_examples(examples, folder / "pictures")
    return train("train_network", folder, ("--train_data_dir", str(folder / "pictures"), *RECIPE, *words), seed)


def right_colours(model: StableDiffusion, scenes: Sequence[Scene]) -> float:
    """The share of prompts of the world that are answered in their colour."""
    pictures = pictures_of(model, [sentence(scene) for scene in scenes])
    return picture_share(pictures, judge_of(TEAL_PAINT), "colour", [scene.colour for scene in scenes])


def test_at_strength_0_it_is_the_base_bit_for_bit(tmp_path: Path) -> None:
    teal = trained(examples_of(TEAL_PAINT, 10, 1), tmp_path, 1, *SHORT)
    asked, way = prompts_of(TEAL_PAINT, 2), Way(steps=4)
    base = pictures_of(base_model(), asked, way)
    assert np.array_equal(pictures_of(with_network("hypernetwork", teal, 0.0), asked, way), base)
    assert not np.array_equal(pictures_of(with_network("hypernetwork", teal), asked, way), base)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns_a_colour_and_plain_prompts_keep_theirs(seed: int, tmp_path: Path) -> None:
    """A hypernetwork is in force for every prompt, so it is shown the world as well, and blue things most of all."""
    asked, scenes = prompts_of(TEAL_PAINT, 24), scenes_of(24)
    known = regularisation_examples(TEAL_PAINT, 6, seed) + world_examples(12, seed)
    path = trained(examples_of(TEAL_PAINT, 10, seed) + known, tmp_path, seed, *LONG)
    base, taught = base_model(), with_network("hypernetwork", path)
    before, after = (new_share(pictures_of(model, asked), TEAL_PAINT) for model in (base, taught))
    drift = right_colours(base, scenes) - right_colours(taught, scenes)
    show(f"hypernetwork, seed {seed}", before=before, after=after, drift=drift)
    assert before <= 0.1 and after >= 0.45
    assert drift <= 0.25
