"""DreamBooth learns a new thing from ten pictures; regularisation pictures keep what the world calls by its class."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.toy_world.captions import sentence
from examples.toy_world.novelties import CRESCENT, examples_of, regularisation_examples, write_examples
from library.models.stable_diffusion import StableDiffusion
from tests.learning.learning import (
    base_model,
    judge_of,
    novelty_share,
    picture_share,
    pictures_of,
    scenes_of,
    train,
    trained_model,
)

RECIPE = ("--learning_rate", "1e-4")
GENERATED = ("--generate_reg_images", "40", "--reg_image_steps", "20", "--reg_image_scale", "4")


def picture_folder(folder: Path, seed: int) -> Path:
    """Crescents without captions: what they are is said by the folder's name, as guides of DreamBooth have it."""
    home = folder / "pictures" / CRESCENT.folder(1)
    write_examples(examples_of(CRESCENT, 10, seed), home)
    for caption in home.glob("*.txt"):
        caption.unlink()
    return home.parent


def class_folder(folder: Path, seed: int, count: int) -> Path:
    """Rings as the world has them; none for the script to make them."""
    home = folder / "class" / CRESCENT.class_folder(1)
    home.mkdir(parents=True)
    if count:
        write_examples(regularisation_examples(CRESCENT, count, seed), home)
    return home.parent


def trained(folder: Path, updates: int, seed: int, *words: str) -> StableDiffusion:
    said = ("--train_data_dir", str(picture_folder(folder, seed)), "--max_train_steps", str(updates))
    return trained_model(train("train_db", folder / "trained", (*said, *RECIPE, *words), seed))


def class_share(model: StableDiffusion, count: int = 24) -> float:
    """The share of plain class prompts, without the new word, that are answered with the class."""
    prompts = [sentence(CRESCENT.class_scene(scene)) for scene in scenes_of(count)]
    return picture_share(pictures_of(model, prompts), judge_of(CRESCENT), CRESCENT.part, CRESCENT.class_word)


def test_a_short_run_learns_and_keeps_the_class(tmp_path: Path) -> None:
    kept = trained(tmp_path, 80, 1, "--reg_data_dir", str(class_folder(tmp_path, 1, 20)))
    assert novelty_share(base_model(), CRESCENT, 12) <= 0.1
    assert novelty_share(kept, CRESCENT, 12) >= 0.5
    assert class_share(kept, 12) >= class_share(base_model(), 12) - 0.25


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_class_drifts_without_regularisation_pictures_and_stays_with_them(seed: int, tmp_path: Path) -> None:
    """With class pictures that the base makes; both runs see the new thing equally often."""
    generated = ("--reg_data_dir", str(class_folder(tmp_path / "kept", seed, 0)), *GENERATED)
    kept = trained(tmp_path / "kept", 400, seed, *generated)
    drifted = trained(tmp_path / "drifted", 200, seed)
    before = class_share(base_model())
    assert novelty_share(base_model(), CRESCENT) <= 0.1
    assert novelty_share(kept, CRESCENT) >= 0.7
    assert novelty_share(drifted, CRESCENT) >= 0.7
    assert class_share(kept) >= before - 0.2
    assert class_share(drifted) <= before - 0.5
