"""From a folder of photographs to training, by the documented command lines, in one folder and in two."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import fine_tune
from tests.finetune.steps import Step, contents, copy_photos, make_models, one_folder, photo_names, two_folders
from tests.training.runs import Tensors, assert_same, largest_difference

TRAINING = ("--max_train_steps", "3", "--train_batch_size", "2", "--learning_rate", "1e-4")
WITHOUT_CACHE = (
    *("--resolution", "128,128", "--enable_bucket", "--min_bucket_reso", "64", "--max_bucket_reso", "256"),
    *("--bucket_reso_steps", "32"),
)


def read(path: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def run_all(steps: list[Step]) -> None:
    for step in steps:
        step.run_here()


def train(model: Path, out: Path, *words: str) -> Tensors:
    fine_tune.main(
        [
            *("--pretrained_model_name_or_path", str(model), "--output_dir", str(out), *words, *TRAINING),
            *("--max_data_loader_n_workers", "0"),
        ]
    )
    return load_file(str(out / "last.safetensors"))


def check_texts(entries: dict[str, dict[str, Any]], folder: Path, names: list[str], merged: Path) -> None:
    """Each picture's own caption and tags have come to its own entry; cleaning may have reworded them."""
    as_merged = read(merged)
    for name in names:
        picture = folder / name
        key = next(key for key in (picture.stem, str(picture)) if key in entries)
        assert as_merged[key]["caption"] == picture.with_suffix(".caption").read_text(encoding="utf-8").strip()
        assert as_merged[key]["tags"] == picture.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert entries[key]["caption"] and entries[key]["tags"]
        assert not re.search("[a-z]_[a-z]", entries[key]["tags"])  # faces such as >_< stay
        assert entries[key]["train_resolution"][0] % 32 == 0 and picture.with_suffix(".npz").is_file()


@pytest.mark.parametrize("full_path", [(), ("--full_path",)], ids=["relative", "full"])
def test_one_folder(
    photos: Path,
    tiny_models: dict[str, Path],
    tmp_path: Path,
    full_path: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = photo_names(photos)[:8]
    folder, work = copy_photos(photos, tmp_path / "学習 data", names), tmp_path / "work"
    work.mkdir()
    models = make_models(tmp_path / "models", tiny_models["sd1"], "v3" if full_path else "v1-4")
    run_all(one_folder(folder, work, models, *full_path))
    latents = work / "meta_lat.json"
    check_texts(read(latents), folder, names, work / "meta_cap_dd.json")
    capfd.readouterr()

    described = ["--in_json", str(latents), *([] if full_path else ["--train_data_dir", str(folder)])]
    trained = train(models.diffusion, tmp_path / "a", *described)
    assert f"{len(names)} reused, 0 encoded" in capfd.readouterr().err
    plain = train(models.diffusion, tmp_path / "b", *described, *WITHOUT_CACHE, "--flip_aug")
    assert "reused" not in capfd.readouterr().err
    assert_same(trained, plain)
    assert largest_difference(trained, load_file(str(models.diffusion))) > 0


def test_two_folders(
    photos: Path, tiny_models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same names stand in both, so that nothing but the path tells them apart."""
    names = photo_names(photos)
    first = copy_photos(photos, tmp_path / "train_data1", names[:4])
    second = copy_photos(photos, tmp_path / "train_data2", names[3:7])
    work = tmp_path / "work"
    work.mkdir()
    models = make_models(tmp_path / "models", tiny_models["sd1"])
    run_all(two_folders(first, second, work, models))
    entries = read(work / "meta_lat2.json")
    assert len(entries) == 8
    check_texts(entries, first, names[:4], work / "meta_cap_dd2.json")
    check_texts(entries, second, names[3:7], work / "meta_cap_dd2.json")
    capfd.readouterr()

    trained = train(models.diffusion, tmp_path / "a", "--in_json", str(work / "meta_lat2.json"))
    assert "8 reused, 0 encoded" in capfd.readouterr().err
    assert_same(
        trained, train(models.diffusion, tmp_path / "b", "--in_json", str(work / "meta_lat2.json"), *WITHOUT_CACHE)
    )


def test_a_second_walk_changes_nothing(photos: Path, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder, work = copy_photos(photos, tmp_path / "data", photo_names(photos)[:3]), tmp_path / "work"
    work.mkdir()
    steps = one_folder(folder, work, make_models(tmp_path / "models", tiny_models["sd1"]))
    run_all(steps)
    before = contents(folder, work)
    run_all(steps)
    assert contents(folder, work) == before
