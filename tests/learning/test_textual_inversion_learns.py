"""Textual Inversion: vectors of a new word make the frozen model draw what its own words cannot ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.toy_world.drawing import Way
from examples.toy_world.novelties import TEAL_PAINT
from tests.learning.learning import base_model, new_share, pictures_of, show, train
from tests.learning.words import WORD, asking, not_asking, with_word, write_word

RECIPE = ("--token_string", WORD, "--init_word", "blue", "--num_vectors_per_token", "2", "--learning_rate", "2e-2")


def trained(folder: Path, updates: int, seed: int) -> Path:
    pictures = write_word(TEAL_PAINT, folder / "pictures", seed)
    said = ("--train_data_dir", str(pictures), "--max_train_steps", str(updates), *RECIPE)
    return train("train_textual_inversion", folder / "trained", said, seed)


@pytest.fixture(scope="module")
def word(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the shortest run that shows it."""
    return trained(tmp_path_factory.mktemp("word"), 80, 1)


def test_a_short_run_learns_a_colour(word: Path) -> None:
    asked = asking(TEAL_PAINT, 8)
    assert new_share(pictures_of(base_model(), asked), TEAL_PAINT) <= 0.13
    assert new_share(with_word(word).pictures_of(asked), TEAL_PAINT) >= 0.5


def test_prompts_without_the_word_are_drawn_as_by_the_base_bit_for_bit(word: Path) -> None:
    taught, base = with_word(word), base_model()
    prompts, way = not_asking(TEAL_PAINT, 2), Way(steps=4)
    assert np.array_equal(taught.pictures_of(prompts, way), pictures_of(base, prompts, way))
    for part in ("unet", "text_encoder"):
        weights = getattr(taught.model, part).state_dict()
        for name, weight in getattr(base, part).state_dict().items():
            place = name.replace("token_embedding.", "token_embedding.table.")
            assert torch.equal(weights[place], weight), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns_a_colour(seed: int, tmp_path: Path) -> None:
    asked = asking(TEAL_PAINT, 24)
    before = new_share(pictures_of(base_model(), asked), TEAL_PAINT)
    after = new_share(with_word(trained(tmp_path, 240, seed)).pictures_of(asked), TEAL_PAINT)
    show(f"Textual Inversion, seed {seed}", before=before, after=after)
    assert before <= 0.1 and after >= 0.4
