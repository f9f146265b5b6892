"""DreamBooth learns a new thing from ten pictures; regularisation pictures keep what the world calls by its class."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.toy_world.captions import sentence
from examples.toy_world.novelties import CRESCENT, examples_of, judge_of, regularisation_examples, write_examples
from library.models.stable_diffusion import StableDiffusion
from tests.learning.learning import (
    base_model,
    base_share,
    novelty_share,
    picture_share,
    pictures_of,
    scenes_of,
    show,
    train,
    trained_model,
)

FEW_UPDATES, MANY_UPDATES = 30, 200


def picture_folder(folder: Path, seed: int, with_captions: bool) -> Path:
    """Crescents; without captions the folder's name says what they are, as guides of DreamBooth have it."""
    home = folder / "pictures" / CRESCENT.folder(1)
    write_examples(examples_of(CRESCENT, 10, seed), home)
    if not with_captions:
        for caption in home.glob("*.txt"):
            caption.unlink()
    return home.parent


def class_folder(folder: Path, seed: int) -> Path:
    """Rings as the world has them. Twenty are too few: they are learned by heart, and other rings become crescents."""
    home = folder / "class" / CRESCENT.class_folder(1)
    write_examples(regularisation_examples(CRESCENT, 200, seed), home)
    return home.parent


def trained(pictures: Path, folder: Path, updates: int, seed: int, *words: str) -> StableDiffusion:
    said = ("--train_data_dir", str(pictures), "--max_train_steps", str(updates))
    return trained_model(train("train_db", folder, (*said, *words), seed))


def class_share(model: StableDiffusion, count: int = 24) -> float:
    """The share of plain class prompts, without the new word, that are answered with the class."""
    prompts = [sentence(CRESCENT.class_scene(scene)) for scene in scenes_of(count)]
    return picture_share(pictures_of(model, prompts), judge_of(CRESCENT), CRESCENT.part, CRESCENT.class_word)


def test_a_short_run_without_regularisation_learns_and_loses_the_class(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path, 1, with_captions=False)
    model = trained(pictures, tmp_path / "trained", FEW_UPDATES, 1, "--learning_rate", "3e-4")
    assert base_share(CRESCENT, 8) <= 0.1 and novelty_share(model, CRESCENT, 8) >= 0.6
    assert class_share(base_model(), 8) - class_share(model, 8) >= 0.6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_class_drifts_without_regularisation_pictures_and_stays_with_them(seed: int, tmp_path: Path) -> None:
    """Both runs see each crescent equally often; half of what the one with class pictures sees are those."""
    pictures, rate = picture_folder(tmp_path, seed, with_captions=True), ("--learning_rate", "2e-4")
    drifted = trained(pictures, tmp_path / "drifted", MANY_UPDATES, seed, *rate)
    classes = ("--reg_data_dir", str(class_folder(tmp_path, seed)))
    kept = trained(pictures, tmp_path / "kept", 2 * MANY_UPDATES, seed, *rate, *classes)
    before = class_share(base_model())
    shares = {
        "new": (base_share(CRESCENT), novelty_share(drifted, CRESCENT), novelty_share(kept, CRESCENT)),
        "class": (before, class_share(drifted), class_share(kept)),
    }
    show(
        f"DreamBooth, seed {seed}: without, with class pictures",
        **{
            f"{name} {when}": share
            for name, all_of in shares.items()
            for when, share in zip(("before", "without", "with"), all_of, strict=True)
        },
    )
    assert shares["new"][0] <= 0.1 and min(shares["new"][1:]) >= 0.8
    assert before - shares["class"][1] >= 0.75, "without class pictures the class must drift"
    assert before - shares["class"][2] <= 0.45, "with class pictures it must stay"
