"""Whole runs that validate and average: the training does not notice, and how numbers are got does not change them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import fine_tune
import train_db
import train_textual_inversion
from library.core.errors import UserError
from tests.training.runs import assert_same, largest_difference, run_here, run_process

NO_CHANGE = ["--learning_rate", "1e-30"]  # far below the last digit of every weight


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to train and two to validate with."""
    root = tmp_path_factory.mktemp("validated")
    pictures = sorted(path for path in photos.iterdir() if path.suffix in (".jpg", ".png", ".webp"))
    for number, picture in enumerate(pictures[:6]):
        target = root / ("train" if number < 4 else "kept")
        target.mkdir(exist_ok=True)
        shutil.copy(picture, target)
        (target / f"{picture.stem}.txt").write_text(f"zumira dog, photo {number}", encoding="utf-8")
    return root


def dataset_words(folder: Path, out: Path, **splits: float) -> list[str]:
    """A dataset file with the folders that are named, and the share of each that is held out."""
    out.mkdir(parents=True, exist_ok=True)
    subsets = "".join(
        f"[[datasets.subsets]]\nimage_dir = {str(folder / name)!r}\nvalidation_split = {split}\n"
        for name, split in splits.items()
    )
    file = out / "dataset.toml"
    file.write_text(f"[[datasets]]\n{subsets}", encoding="utf-8")
    return ["--dataset_config", str(file), "--resolution", "64"]


def validation_losses(out: Path, tag: str = "loss/validation") -> dict[int, float]:
    """What was measured, by update."""
    rows = [json.loads(line) for line in (out / "last-log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row[tag] for row in rows if tag in row}


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(str(file), "pt") as opened:
        return dict(opened.metadata())


def test_a_run_with_validation_and_average_trains_the_same_bits(
    tiny_models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    model = tiny_models["sd1"]
    asked = ["--network_dropout", "0.3", "--gradient_checkpointing", "--max_train_steps", "3"]
    plain = run_here(model, dataset_words(folder, tmp_path / "a", train=0), tmp_path / "a", *asked)
    words = [*asked, "--validate_every_n_steps", "2", "--ema", "--ema_decay", "0.5"]
    validated = run_here(model, dataset_words(folder, tmp_path / "b", kept=1, train=0), tmp_path / "b", *words)
    assert_same(plain, validated)
    losses = [validation_losses(tmp_path / "b", f"loss/validation{tag}") for tag in ("", "_ema")]
    for found in losses:
        assert list(found) == [2, 3] and len(set(found.values())) == 2
        assert all(math.isfinite(loss) for loss in found.values())
    assert losses[0] != losses[1]
    average = load_file(str(tmp_path / "b" / "last-ema.safetensors"))
    assert (
        0
        < largest_difference(average, validated)
        < largest_difference(validated, {name: tensor * 0 for name, tensor in validated.items()})
    )
    told = [metadata_of(tmp_path / name / "last.safetensors") for name in "ab"]
    for key in ("num_train_images", "num_batches_per_epoch", "tag_frequency", "bucket_info", "dataset_dirs"):
        assert told[0][f"ss_{key}"] == told[1][f"ss_{key}"], key
    assert told[0]["ss_num_train_images"] == "4"


def test_unchanged_weights_give_the_same_number_with_and_without_caches_and_workers(
    tiny_models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    def measured(name: str, *words: str, steps: int = 1) -> set[float]:
        out = tmp_path / name
        data = dataset_words(folder, out, train=0, kept=1)
        length = ["--network_train_unet_only", "--max_train_steps", str(steps)]
        run_here(tiny_models["sd1"], data, out, *length, *NO_CHANGE, *words)
        losses = validation_losses(out)
        assert len(losses) == steps
        return set(losses.values())

    first = measured("plain", "--validate_every_n_steps", "1", steps=2)
    assert len(first) == 1
    assert measured("cached", "--cache_latents", "--cache_text_encoder_outputs", "--flip_aug") == first
    # another seed and other weights of the loss; 42 is what --seed, and so --validation_seed, was before
    words = ["--seed", "1", "--validation_seed", "42", "--min_snr_gamma", "5", "--max_data_loader_n_workers", "1"]
    assert measured("seed", *words) == first
    other, fewer = measured("other noise", "--seed", "1"), measured("fewer", "--max_validation_steps", "1")
    assert first != other != fewer != first


@pytest.mark.slow
def test_the_number_of_processes_does_not_change_it(tiny_models: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        data = dataset_words(folder, out, train=0, kept=1)
        run_process(tiny_models["sd1"], data, out, "--max_train_steps", "2", *NO_CHANGE, processes=processes)
        found.append(set(validation_losses(out).values()))
    assert found[0] == found[1] and len(found[0]) == 1


OTHERS = [
    pytest.param(train_textual_inversion.main, ["--token_string", "zumira", "--init_word", "dog"], id="inversion"),
    pytest.param(fine_tune.main, [], id="fine_tune", marks=pytest.mark.slow),
    pytest.param(train_db.main, ["--stop_text_encoder_training", "1"], id="train_db", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("main", "words"), OTHERS)
def test_every_script_validates_and_averages(
    tiny_models: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    main: Callable[[Sequence[str]], None],
    words: list[str],
) -> None:
    base = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--output_dir", str(tmp_path)]
    base += ["--train_data_dir", str(folder / "train"), "--resolution", "64", "--max_train_steps", "2"]
    base += ["--max_data_loader_n_workers", "0", "--learning_rate", "1e-2", "--validation_split", "0.5", "--ema"]
    main([*base, "--validate_every_n_steps", "1", *words])
    for tag in ("loss/validation", "loss/validation_ema"):
        losses = validation_losses(tmp_path, tag)
        assert list(losses) == [1, 2] and losses[1] != losses[2]
    assert (tmp_path / "last-ema.safetensors").is_file()


def test_validation_without_pictures_stops_the_run(tiny_models: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures to measure a validation loss on"):
        run_here(
            tiny_models["sd1"],
            dataset_words(folder, tmp_path, train=0),
            tmp_path,
            *("--validate_every_n_steps", "1", "--max_train_steps", "1"),
        )
