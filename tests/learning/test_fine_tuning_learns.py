"""Fine-tuning learns from ten pictures with captions what the base cannot draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.toy_world.novelties import BRICKS, CRESCENT, TEAL_PAINT, Novelty
from tests.learning.learning import base_share, novelty_share, show, train, trained_model, write_novelty

NOVELTIES = (CRESCENT, BRICKS, TEAL_PAINT)


def trained(novelty: Novelty, folder: Path, updates: int, seed: int, *words: str) -> Path:
    pictures = write_novelty(novelty, folder / "pictures", seed)
    said = ("--train_data_dir", str(pictures), "--max_train_steps", str(updates), "--learning_rate", "3e-4", *words)
    return train("fine_tune", folder / "trained", said, seed)


def test_a_short_run_learns_a_texture(tmp_path: Path) -> None:
    path = trained(BRICKS, tmp_path, 30, 1, "--cache_text_encoder_outputs")
    assert base_share(BRICKS, 8) <= 0.1
    assert novelty_share(trained_model(path), BRICKS, 8) >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("novelty", NOVELTIES, ids=lambda novelty: novelty.name)
def test_it_learns_a_shape_a_texture_and_a_colour(novelty: Novelty, seed: int, tmp_path: Path) -> None:
    path = trained(novelty, tmp_path, 200, seed, "--cache_text_encoder_outputs")
    before, after = base_share(novelty), novelty_share(trained_model(path), novelty)
    show(f"fine-tuning, {novelty.name}, seed {seed}", before=before, after=after)
    assert before <= 0.1 and after >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns_with_the_text_encoder(seed: int, tmp_path: Path) -> None:
    path = trained(CRESCENT, tmp_path, 200, seed, "--train_text_encoder")
    after = novelty_share(trained_model(path), CRESCENT)
    show(f"fine-tuning with the text encoder, seed {seed}", after=after)
    assert after >= 0.8
