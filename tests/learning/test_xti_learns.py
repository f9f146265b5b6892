"""XTI: with vectors for each layer a new word learns about what one for all layers learns, or more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.toy_world.drawing import Way
from examples.toy_world.novelties import TEAL_PAINT
from tests.learning.learning import base_model, new_share, pictures_of, show, train
from tests.learning.words import WORD, asking, not_asking, with_word, write_word

RECIPE = ("--token_string", WORD, "--init_word", "blue", "--num_vectors_per_token", "2", "--learning_rate", "2e-2")


def trained(folder: Path, updates: int, seed: int, *words: str) -> Path:
    pictures = write_word(TEAL_PAINT, folder / "pictures", seed)
    said = ("--train_data_dir", str(pictures), "--max_train_steps", str(updates), *RECIPE, *words)
    return train("train_textual_inversion", folder / "trained", said, seed)


def test_prompts_without_the_word_are_drawn_as_by_the_base_bit_for_bit(tmp_path: Path) -> None:
    taught, prompts, way = with_word(trained(tmp_path, 3, 1, "--xti")), not_asking(TEAL_PAINT, 2), Way(steps=4)
    assert np.array_equal(taught.pictures_of(prompts, way), pictures_of(base_model(), prompts, way))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns_what_one_vector_for_all_layers_learns(seed: int, tmp_path: Path) -> None:
    asked = asking(TEAL_PAINT, 24)
    before = new_share(pictures_of(base_model(), asked), TEAL_PAINT)
    shares = [
        new_share(with_word(trained(tmp_path / name, 240, seed, *words)).pictures_of(asked), TEAL_PAINT)
        for name, words in (("all", ()), ("each", ("--xti",)))
    ]
    show(f"XTI, seed {seed}", before=before, one_vector_for_all=shares[0], each_layer_its_own=shares[1])
    assert before <= 0.1
    assert shares[1] >= max(0.5, shares[0] - 0.2)
