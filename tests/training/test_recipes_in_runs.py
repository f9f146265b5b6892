"""Whole runs as recipes have them: lengths, schedules, Adafactor, several subjects, accumulation of whole models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import train_db
import train_network
from tests.training.runs import Tensors, assert_same, largest_difference, run_script_in_processes
from tests.training.styles import CAPTION_FILES, style_words

STEADY = ["--optimizer_args", "eps=1e-3"]  # AdamW's own eps makes signs out of rounding noise


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    """Three pictures, each with a caption file."""
    return [*style_words(CAPTION_FILES, "mira", photos, tmp_path / "data"), "--max_data_loader_n_workers", "0"]


def words_of(model: Path, data: list[str], out: Path, *words: str) -> list[str]:
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out)]
    return [*base, "--learning_rate", "1e-3", *words]


def logged(out: Path) -> list[dict[str, Any]]:
    """The rows of the updates."""
    rows = [json.loads(line) for line in (out / "last-log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss/current" in row]


def metadata_of(out: Path) -> dict[str, str]:
    with safe_open(str(out / "last.safetensors"), "pt") as file:
        return dict(file.metadata())


LINEAR = ["--lr_scheduler", "linear", "--optimizer_type", "SGDNesterov"]
ONE_SHAPE = ["--enable_bucket=false"]  # three batches an epoch, whatever the shapes


def test_epochs_win_aloud_and_the_schedule_ends_with_the_last_update_however_batches_accumulate(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three batches are two updates of up to two batches, two epochs are four updates."""
    words = [*LINEAR, *ONE_SHAPE, "--gradient_accumulation_steps", "2"]
    words += ["--max_train_epochs", "2", "--max_train_steps", "50"]
    train_network.main(words_of(tiny_models["sd1"], data, tmp_path / "out", *words))
    rates = [row["lr/unet"] for row in logged(tmp_path / "out")]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    told = " ".join(capsys.readouterr().err.split())
    assert "--max_train_epochs wins over --max_train_steps, both are given" in told
    assert "4 updates in 2 epoch(s) of 2" in told
    assert "SGDNesterov filled in momentum=0.9, nesterov=True" in told


@pytest.mark.slow
def test_the_schedule_ends_with_the_last_update_whatever_the_number_of_processes(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    words = words_of(tiny_models["sd1"], data, tmp_path, *LINEAR, *ONE_SHAPE, "--max_train_epochs", "2")
    run_script_in_processes("train_network.py", words, 2)
    assert [row["lr/unet"] for row in logged(tmp_path)] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_adafactor_finds_its_rate_or_takes_the_one_of_the_recipe(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    out, more = tmp_path / "own", ["--max_train_steps", "3", "--optimizer_type", "adafactor"]
    words = [word for word in words_of(tiny_models["sd1"], data, out, *more) if word not in ("--learning_rate", "1e-3")]
    train_network.main([*words, "--optimizer_args", "scale_parameter=True", "warmup_init=True"])
    assert metadata_of(out)["ss_lr_scheduler"] == "adafactor"
    for number, row in enumerate(logged(out), start=1):  # a millionth an update, times the size of the weights
        assert "lr/unet" not in row and 0 < row["lr/d*lr/unet"] < number * 1e-6
    assert any(bool(value.any()) for key, value in load_file(str(out / "last.safetensors")).items() if "_up." in key)

    out = tmp_path / "recipe"
    words = words_of(tiny_models["sd1"], data, out, *more, "--max_grad_norm", "0.0", "--lr_warmup_steps", "1")
    words += ["--optimizer_args", "relative_step=False", "scale_parameter=False"]
    train_network.main([*words, "--lr_scheduler", "constant_with_warmup"])
    assert [row["lr/unet"] for row in logged(out)] == pytest.approx([0, 1e-3, 1e-3])


def test_several_subjects_and_classes_are_one_run_of_dreambooth(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    folders = {"train": ("2_shs cat", "1_mira cup"), "reg": ("1_cat", "1_cup")}
    names = iter(("cat.jpg", "coffee.jpg", "gravel.jpg", "grass.jpg"))
    for root, leaves in folders.items():
        for leaf in leaves:
            (tmp_path / root / leaf).mkdir(parents=True)
            shutil.copy(photos / next(names), tmp_path / root / leaf)
    data = ["--train_data_dir", str(tmp_path / "train"), "--reg_data_dir", str(tmp_path / "reg"), "--resolution", "64"]
    words = words_of(tiny_models["sd1"], data, tmp_path / "out", "--max_train_epochs", "1")
    train_db.main([*words, "--max_data_loader_n_workers", "0"])
    told = metadata_of(tmp_path / "out")
    assert json.loads(told["ss_dataset_dirs"]) == {
        "2_shs cat": {"n_repeats": 2, "img_count": 1},
        "1_mira cup": {"n_repeats": 1, "img_count": 1},
    }
    assert {name: set(tags) for name, tags in json.loads(told["ss_tag_frequency"]).items()} == {
        "2_shs cat": {"shs cat"},
        "1_mira cup": {"mira cup"},
        "1_cat": {"cat"},
        "1_cup": {"cup"},
    }
    assert len(logged(tmp_path / "out")) == 6 and told["ss_num_reg_images"] != "0"


def test_whole_models_learn_the_same_by_batches_accumulated_batches_and_caches(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    """U-Net and text encoder together, where other programs fail to accumulate."""

    def train(name: str, *words: str) -> Tensors:
        more = ["--max_train_steps", "2", *ONE_SHAPE, *STEADY, *words]
        train_db.main(words_of(tiny_models["sd1"], data, tmp_path / name, *more))
        return load_file(str(tmp_path / name / "last.safetensors"))

    batch = train("batch", "--train_batch_size", "2")
    accumulated = train("accumulated", "--train_batch_size", "1", "--gradient_accumulation_steps", "2")
    assert largest_difference(batch, accumulated) < 1e-5
    losses = [[row["loss/current"] for row in logged(tmp_path / name)] for name in ("batch", "accumulated")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    before = load_file(str(tiny_models["sd1"]))
    for prefix in ("model.diffusion_model.", "cond_stage_model."):
        moved = {name for name in before if name.startswith(prefix) and not before[name].equal(batch[name])}
        assert len(moved) > 0.9 * sum(name.startswith(prefix) for name in before)
    assert_same(train("cached", "--train_batch_size", "2", "--cache_latents"), batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "learns"),
    [
        ("fine_tune.py", (), ()),
        ("train_db.py", ("--stop_text_encoder_training", "1"), ("cond_stage_model.",)),
        ("train_db.py", ("--stop_text_encoder_training", "0"), ()),
    ],
)
def test_what_rests_keeps_its_bits_in_two_processes_too(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, script: str, words: tuple[str, ...],
    learns: tuple[str, ...],
) -> None:  # fmt: skip
    """A text encoder that never learns, or from some update on no more; the VAE always."""
    more = [*ONE_SHAPE, *STEADY, *words, "--max_train_steps"]
    run_script_in_processes(script, words_of(tiny_models["sd1"], data, tmp_path / "two", *more, "3"), 2)
    alone = words_of(tiny_models["sd1"], data, tmp_path / "one", *more, "3", "--gradient_accumulation_steps", "2")
    run_script_in_processes(script, alone, 1)
    two, one = (load_file(str(tmp_path / name / "last.safetensors")) for name in ("two", "one"))
    assert largest_difference(two, one) < 1e-5
    before = load_file(str(tiny_models["sd1"]))
    for prefix in ("model.diffusion_model.", "cond_stage_model.", "first_stage_model."):
        same = [name for name in before if name.startswith(prefix) and before[name].equal(two[name])]
        total = sum(name.startswith(prefix) for name in before)
        if prefix in ("model.diffusion_model.", *learns):
            assert len(same) < 0.1 * total, prefix
        else:
            assert len(same) == total, prefix
    if learns:  # it rests after its first update: that one alone made it what it is
        first = [*ONE_SHAPE, *STEADY, "--max_train_steps", "1"]
        run_script_in_processes(script, words_of(tiny_models["sd1"], data, tmp_path / "first", *first), 2)
        after = load_file(str(tmp_path / "first" / "last.safetensors"))
        assert all(after[name].equal(two[name]) for name in after if name.startswith(learns))
