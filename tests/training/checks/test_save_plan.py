"""When files are saved, which options would do nothing, and what they need on the disk."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train_db
import train_network
import train_textual_inversion
from library.core.atomic_io import size_on_disk
from library.core.errors import Problems, UserError
from library.models.files.weights import open_weights
from library.options.keeping import KeepingOptions
from library.training.checks import output, preflight
from library.training.checks.keeping import check_keeping, save_moments
from library.training.checks.output import saves_at_once
from library.training.keep.save_failures import mebibytes
from library.training.progress import Moment, Moments, RunPlan
from tests.training.styles import CAPTION_FILES, style_words


def plan_of(updates: int, epochs: int) -> RunPlan:
    return RunPlan(updates, updates // epochs, updates // epochs, epochs, epochs, 1, 1)


def complaints(plan: RunPlan | None, **options: Any) -> list[str]:
    problems = Problems()
    check_keeping(KeepingOptions(**options), plan, problems)
    return [problem.where for problem in problems]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"save_last_n_epochs": 2}, ["--save_last_n_epochs"]),
        ({"save_last_n_epochs": 2, "save_every_n_steps": 2}, ["--save_last_n_epochs"]),
        ({"save_last_n_steps": 2, "save_every_n_epochs": 2}, ["--save_last_n_steps"]),
        ({"save_last_n_epochs_state": 1, "save_every_n_epochs": 1}, ["--save_last_n_epochs_state"]),
        ({"save_last_n_steps_state": 1, "save_every_n_steps": 1}, ["--save_last_n_steps_state"]),
        ({"save_last_n_steps_state": 1, "save_every_n_epochs": 1, "save_state": True}, ["--save_last_n_steps_state"]),
        ({"save_every_n_epochs": 5}, ["--save_every_n_epochs 5"]),
        ({"save_every_n_steps": 13}, ["--save_every_n_steps 13"]),
        ({"save_n_epoch_ratio": 2, "save_every_n_epochs": 2}, ["--save_n_epoch_ratio, --save_every_n_epochs"]),
    ],
)
def test_options_that_would_do_nothing_are_told(options: dict[str, Any], where: list[str]) -> None:
    assert complaints(plan_of(12, 4), **options) == where


def test_an_epoch_that_is_cut_short_saves_nothing() -> None:
    cut = replace(plan_of(12, 4), total_updates=11, whole_epochs=3)
    assert complaints(cut, save_every_n_epochs=4) == ["--save_every_n_epochs 4"]
    assert complaints(cut, save_every_n_epochs=3) == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"save_state": True},
        {"save_state_on_train_end": True},
        {"save_every_n_epochs": 4, "save_every_n_steps": 12},
        {"save_n_epoch_ratio": 9, "save_last_n_epochs": 2},
        {"save_every_n_epochs": 1, "save_last_n_epochs_state": 1, "save_state": True},
        {"save_every_n_steps": 1, "save_last_n_steps": 1, "save_last_n_steps_state": 1, "save_state": True},
    ],
)
def test_options_that_do_something_are_taken(options: dict[str, Any]) -> None:
    assert complaints(plan_of(12, 4), **options) == []
    assert complaints(None, **options) == []


@pytest.mark.parametrize(("epochs", "ratio", "every"), [(10, 4, 2), (10, 3, 3), (10, 1, 10), (3, 5, 1), (7, 7, 1)])
def test_a_ratio_divides_the_epochs(epochs: int, ratio: int, every: int) -> None:
    assert save_moments(KeepingOptions(save_n_epoch_ratio=ratio), epochs) == Moments(None, every)


@pytest.mark.parametrize("last", [None, 1, 2, 5])
@pytest.mark.parametrize(("updates", "epochs", "every"), [(24, 6, 1), (24, 6, 2), (24, 6, 5)])
def test_the_plan_of_the_disk_is_what_a_run_leaves_at_its_fullest(
    updates: int, epochs: int, every: int, last: int | None
) -> None:
    """Played through: a new save comes before an old one goes."""
    keeping = KeepingOptions(
        save_every_n_epochs=every, save_every_n_steps=every, save_last_n_epochs=last, save_last_n_steps=last
    )
    plan, by_epoch, by_step, most = plan_of(updates, epochs), list[int](), list[int](), 0
    for step in range(1, updates + 1):
        moment = Moment(step, math.ceil(step / 4), step % 4 == 0, step == updates)
        if save_moments(keeping, epochs).due_by_epoch(moment) and not moment.is_last:
            by_epoch.append(step)
        if save_moments(keeping, epochs).due_by_step(moment):
            by_step.append(step)
        most = max(most, len(by_epoch) + len(by_step))
        if last is not None:
            by_epoch, by_step = by_epoch[-last:], [s for s in by_step if s >= step - last]
    saves, states = saves_at_once(keeping, plan)
    assert most + 1 <= saves <= most + 3 and states == 0  # the end comes to it
    assert saves_at_once(KeepingOptions(save_state=True), plan) == (1, 1)


# --- through the scripts ----------------------------------------------------------------------------------------------


@pytest.fixture
def base(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> list[str]:
    """A good command line of six epochs of three updates."""
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--output_dir", str(tmp_path / "out")]
    words += style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")
    return [*words, "--max_data_loader_n_workers", "0", "--max_train_epochs", "6"]


def told(main: Any, words: list[str]) -> dict[str, str]:
    with pytest.raises(UserError) as caught:
        main(words)
    return {problem.where: f"{problem.what} -> {problem.fix}" for problem in caught.value.problems}


def test_what_would_do_nothing_is_told_before_the_model_loads(base: list[str]) -> None:
    found = told(train_network.main, [*base, "--save_last_n_steps", "2", "--save_every_n_epochs", "7"])
    assert set(found) == {"--save_last_n_steps", "--save_every_n_epochs 7"}
    assert "has 6 whole epochs" in found["--save_every_n_epochs 7"]


def test_all_files_of_an_earlier_run_are_told_at_once(base: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    planned = ["cat-000002.safetensors", "cat-000004.safetensors", "cat-step00000005.safetensors", "cat.safetensors"]
    others = ["cat-000001.safetensors", "cat-000006.safetensors", "cat-step00000006.safetensors", "dog.safetensors"]
    for name in (*planned, *others, "cat-step00000005.pt", "cat-000002-ema.safetensors"):
        (out / name).touch()
    (out / "cat-000002-state").mkdir()
    words = [*base, "--output_name", "cat", "--save_every_n_epochs", "2", "--save_every_n_steps", "5"]
    found = told(train_network.main, words)["--output_dir, --output_name"]
    assert "cat.safetensors" in found.split(",")[0] and "and 1 more of an earlier run would be lost" in found
    found = told(train_network.main, [*words, "--save_state", "--ema"])["--output_dir, --output_name"]
    assert "and 3 more of an earlier run would be lost" in found
    (out / "cat-000004.safetensors").unlink()
    (out / "cat-000004.safetensors").mkdir()
    problems = told(train_network.main, [*words, "--overwrite"])
    assert list(problems) == ["--output_name"] and "is a folder, and a file" in problems["--output_name"]


def test_a_disk_that_is_too_small_is_told_with_what_would_help(
    base: list[str], tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """18 updates: nine saves by updates, two by epochs, and the end; each with a state."""
    words = [*base, "--save_every_n_steps", "2", "--save_every_n_epochs", "2", "--save_state"]
    monkeypatch.setattr(output, "free_space", lambda _: 800 << 20)
    problem = told(train_db.main, words)["--output_dir"]
    size = mebibytes(tiny_models["sd1"].stat().st_size + (1 << 18))
    assert "only 800 MiB are free on its disk, and about" in problem
    assert f"12 x {size} for what is learned, 12 x " in problem and "MiB for states" in problem
    assert "--save_last_n_epochs and --save_last_n_steps" in problem
    monkeypatch.setattr(output, "free_space", lambda _: 1 << 20)
    problem = told(train_db.main, base)["--output_dir"]
    assert "--save_last" not in problem and "upload" not in problem
    waiting = Path(base[base.index("--output_dir") + 1]) / ".style-uploads" / "00000001" / "0"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(bytes(1 << 20))
    assert f"1.0 MiB wait for their upload in {waiting.parents[1]}" in told(train_db.main, base)["--output_dir"]
    assert "--output_dir" in told(train_network.main, base)


SIZED = [
    ("lora", "sd1"),
    ("embedding", "sd1"),
    ("lora", "sd2"),
    ("wide lora", "sd1"),
    ("model", "sd1"),
    ("model", "sd2"),
]


@pytest.mark.parametrize(
    ("which", "kind"), [pytest.param(*case, marks=[pytest.mark.slow] if n else []) for n, case in enumerate(SIZED)]
)
def test_sizes_are_near_those_of_the_files(
    base: list[str],
    tiny_models: dict[str, Path],
    tmp_path: Path,
    kind: str,
    which: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(preflight, "check_space", lambda *words: seen.append(words[3]))
    words = [*base, "--max_train_epochs", "1", "--save_state", "--ema"]
    words[1] = str(tiny_models[kind])
    words += ["--v2"] if kind == "sd2" else []
    main, more = {
        "lora": (train_network.main, ["--network_dim", "16"]),
        "wide lora": (train_network.main, ["--network_dim", "16", "--network_args", "conv_dim=8"]),
        "embedding": (train_textual_inversion.main, ["--token_string", "zumira", "--init_word", "dog"]),
        "model": (train_db.main, ["--learning_rate", "1e-4"]),
    }[which]
    main([*words, *more])
    (sizes,) = seen
    out = tmp_path / "out"
    weights = sum(size_on_disk(out / f"last{ending}.safetensors") for ending in ("", "-ema"))
    assert weights <= sizes.weights <= 1.5 * weights + (1 << 20)
    state = size_on_disk(out / "last-state")
    assert state <= sizes.state * 1.2 + (1 << 21) <= 2 * state + (1 << 22)
    assert torch.float32 in set(open_weights(out / "last.safetensors").dtypes.values())
