"""A hypernetwork learns from ten pictures what its base cannot draw; at strength 0 it is the base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.toy_world.drawing import Way
from examples.toy_world.novelties import TEAL_PAINT, judge_of
from library.models.stable_diffusion import StableDiffusion
from networks.hypernetwork import create_network_from_weights
from tests.learning.learning import (
    Pictures,
    base_copy,
    base_model,
    new_share,
    picture_share,
    pictures_of,
    prompts_of,
    train,
    write_novelty,
)
from tests.learning.words import not_asking

RECIPE = (
    *("--network_module", "networks.hypernetwork", "--network_args", "activation_func=relu"),
    *("--learning_rate", "1e-2", "--cache_text_encoder_outputs"),
)


def trained(folder: Path, updates: int, seed: int) -> Path:
    pictures = write_novelty(TEAL_PAINT, folder / "pictures", seed)
    said = ("--train_data_dir", str(pictures), "--max_train_steps", str(updates), *RECIPE)
    return train("train_network", folder / "trained", said, seed)


def with_hypernetwork(path: Path, strength: float = 1.0) -> StableDiffusion:
    model = base_copy()
    network, _ = create_network_from_weights(strength, path, None, None, model.unet, for_inference=True)
    network.apply_to(None, model.unet)
    return model


def right_colours(pictures: Pictures, asked: str) -> float:
    return picture_share(pictures, judge_of(TEAL_PAINT), "colour", asked)


@pytest.fixture(scope="module")
def teal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a short run."""
    return trained(tmp_path_factory.mktemp("hypernetwork"), 150, 1)


def test_a_short_run_learns_a_colour(teal: Path) -> None:
    asked = prompts_of(TEAL_PAINT, 8)
    assert new_share(pictures_of(base_model(), asked), TEAL_PAINT) <= 0.13
    assert new_share(pictures_of(with_hypernetwork(teal), asked), TEAL_PAINT) >= 0.5


def test_at_strength_0_it_is_the_base_bit_for_bit(teal: Path) -> None:
    asked, way = prompts_of(TEAL_PAINT, 2), Way(steps=4)
    base = pictures_of(base_model(), asked, way)
    assert np.array_equal(pictures_of(with_hypernetwork(teal, 0.0), asked, way), base)
    assert not np.array_equal(pictures_of(with_hypernetwork(teal), asked, way), base)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns_a_colour_and_plain_prompts_keep_theirs(seed: int, tmp_path: Path) -> None:
    """A hypernetwork is in force for every prompt: blue things may turn teal in a third of the pictures at most."""
    asked, plain = prompts_of(TEAL_PAINT, 24), not_asking(TEAL_PAINT, 24)
    base, taught = base_model(), with_hypernetwork(trained(tmp_path, 150, seed))
    assert new_share(pictures_of(base, asked), TEAL_PAINT) <= 0.1
    assert new_share(pictures_of(taught, asked), TEAL_PAINT) >= 0.5
    drift = right_colours(pictures_of(base, plain), "blue") - right_colours(pictures_of(taught, plain), "blue")
    assert drift <= 0.34
