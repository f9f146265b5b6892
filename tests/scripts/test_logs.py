"""Logs of whole runs: the same numbers in every script, no secrets, and no effect on what is learned."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

import fine_tune
import train_db
import train_network
import train_textual_inversion
from library.training.keep.keeper import Keeper
from library.training.logs import scalars
from library.training.previews import Previews
from library.training.validation import Validation
from tests.training.logs.log_readers import (
    assert_not_told,
    read_events,
    read_rows,
    wandb_files,
    wandb_history,
    wandb_offline,
    wandb_records,
)
from tests.training.runs import ROOT, environment

KEY = "0123456789abcdef" * 3
EVERYWHERE = {"loss/current", "loss/average", "grad_norm", "speed", "memory/peak_mib"}
WORD = ("--token_string", "shs-x", "--init_word", "cat")
MAINS: Mapping[str, tuple[Callable[[Sequence[str]], None], tuple[str, ...], str, tuple[str, ...]]] = MappingProxyType(
    {
        "fine_tune": (fine_tune.main, (), "finetuning", ("lr/unet",)),
        "train_db": (train_db.main, (), "dreambooth", ("lr/unet", "lr/textencoder")),
        "train_network": (train_network.main, (), "network_train", ("lr/unet", "lr/textencoder")),
        "train_textual_inversion": (train_textual_inversion.main, WORD, "textual_inversion", ("lr/embedding",)),
    }
)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with wandb_offline(tmp_path / "wandb_own", monkeypatch):
        yield


def words_of(model: Path, photos: Path, root: Path, *words: str) -> list[str]:
    """Two pictures, two epochs, four updates; output and logs below root."""
    pictures = root / "pictures"
    if not pictures.exists():
        pictures.mkdir(parents=True)
        for name in ("cat.jpg", "coffee.jpg"):
            shutil.copy(photos / name, pictures)
            (pictures / name).with_suffix(".txt").write_text("shs-x thing", encoding="utf-8")
    return [
        *("--pretrained_model_name_or_path", str(model), "--train_data_dir", str(pictures), "--resolution", "64"),
        *("--output_dir", str(root / "out"), "--max_train_epochs", "2", "--max_data_loader_n_workers", "0", *words),
    ]


def tracked(words: Sequence[str], root: Path) -> list[str]:
    return [*words, "--logging_dir", str(root / "logs"), "--log_with", "all"]


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=[pytest.mark.slow] if name == "train_db" else []) for name in MAINS]
)
def test_every_script_logs_the_same_everywhere(
    script: str, tiny_models: dict[str, Path], photos: Path, tmp_path: Path, offline: None
) -> None:
    main, further, project, rates = MAINS[script]
    words = words_of(tiny_models["sd1"], photos, tmp_path, *further)
    main(tracked([*words, "--log_prefix", "cats-"], tmp_path))
    rows = read_rows(tmp_path / "out" / "last-log.jsonl")
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (2, 1), (3, 2), (4, 2), (4, 2)]
    updates = [row for row in rows if "loss/current" in row]
    for row in updates:
        assert set(row) == EVERYWHERE | set(rates) | {"step", "epoch"}
        assert row["speed"] > 0 and row["memory/peak_mib"] > 100
        assert row["grad_norm"] > 0
    assert [row["step"] for row in rows if "loss/epoch_average" in row] == [2, 4]

    (stamped,) = (path for path in (tmp_path / "logs").iterdir() if path.name != "wandb")
    assert re.fullmatch(r"cats-20\d{12}", stamped.name)
    assert [entry.name for entry in stamped.iterdir()] == [project]
    events = read_events(stamped / project)
    assert set(events) == EVERYWHERE | set(rates) | {"epoch", "loss/epoch_average"}
    for tag, found in events.items():
        expected = [(row["step"], row[tag]) for row in (updates if tag == "epoch" else rows) if tag in row]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)

    (file,) = wandb_files(tmp_path / "logs")
    history = wandb_history(file)
    assert [row["_step"] for row in history] == [1, 2, 3, 4]
    for row, shown in zip(updates, history, strict=True):
        assert {tag: shown[tag] for tag in row if tag != "step"} == {tag: row[tag] for tag in row if tag != "step"}
    averages = [row["loss/epoch_average"] for row in rows if "loss/epoch_average" in row]
    assert [row.get("loss/epoch_average") for row in history] == [None, averages[0], None, averages[1]]
    assert run_in_wandb(file).project == project


def run_in_wandb(file: Path) -> Any:
    (run,) = [record.run for record in wandb_records(file) if record.HasField("run")]
    return run


def test_wandb_alone_needs_no_other_option(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, offline: None
) -> None:
    """Other tools log no loss to wandb unless a folder for TensorBoard is given, too. Names and settings are taken."""
    config = tmp_path / "trackers.toml"
    config.write_text("[wandb]\nnotes = 'for tuesday'\n", encoding="utf-8")
    names = ["--log_tracker_name", "cats", "--wandb_run_name", "first", "--log_tracker_config", str(config)]
    train_network.main([*words_of(tiny_models["sd1"], photos, tmp_path), "--log_with", "wandb", *names])
    (file,) = wandb_files(tmp_path / "out" / "wandb")
    assert len([row for row in wandb_history(file) if "loss/current" in row]) == 4
    run = run_in_wandb(file)
    assert (run.project, run.display_name, run.notes) == ("cats", "first", "for tuesday")
    assert not list(tmp_path.rglob("events.out*"))


def test_logs_change_no_byte_of_what_is_learned(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    words = words_of(tiny_models["sd1"], photos, tmp_path)
    config = tmp_path / "trackers.toml"
    config.write_text("[tensorboard]\nfilename_suffix = '.mine'\n", encoding="utf-8")
    train_network.main(tracked([*words, "--log_tracker_config", str(config)], tmp_path))
    assert [path.suffix for path in tmp_path.rglob("events.out*")] == [".mine"]
    result = tmp_path / "out" / "last.safetensors"
    logged = result.read_bytes()
    train_network.main([*words, "--overwrite"])
    assert result.read_bytes() == logged


def test_validation_pictures_and_saves_do_not_count_as_time_of_updates_and_the_summary_is_true(
    tiny_models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each of them takes a thousand seconds on the log's clock."""
    late = [0.0]
    monkeypatch.setattr(scalars, "time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + late[0]))
    slowed: list[str] = []

    def slow_down(owner: type, name: str) -> None:
        own = getattr(owner, name)

        def slow(*given: Any, **named: Any) -> Any:
            late[0] += 1000
            slowed.append(name)
            return own(*given, **named)

        monkeypatch.setattr(owner, name, slow)

    for owner, name in ((Validation, "measure"), (Previews, "make"), (Keeper, "_keep_weights")):
        slow_down(owner, name)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1\n", encoding="utf-8")
    words = words_of(tiny_models["sd1"], photos, tmp_path, "--validation_split", "0.5", "--sample_at_first")
    every = [word for name in ("validate", "sample", "save") for word in (f"--{name}_every_n_steps", "1")]
    logs = tmp_path / "logs"
    train_network.main([*words, *every, "--sample_prompts", str(prompts), "--logging_dir", str(logs)])
    assert sorted(slowed) == ["_keep_weights"] * 3 + ["make"] * 3 + ["measure"] * 2
    log = tmp_path / "out" / "last-log.jsonl"
    speeds = [row["speed"] for row in read_rows(log) if "speed" in row]
    assert len(speeds) == 2 and min(speeds) > 0.01
    told = capfd.readouterr().err.splitlines()
    assert f"log: {log}" in told and f"samples: 3 pictures in {tmp_path / 'out' / 'sample'}" in told
    assert f"curves: tensorboard --logdir={logs}, then http://localhost:6006/" in told


def test_a_resumed_run_goes_on_in_its_logs(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, offline: None
) -> None:
    names = ["--log_tracker_name", "cats", "--overwrite"]
    words = tracked(words_of(tiny_models["sd1"], photos, tmp_path, *names), tmp_path)
    out, saving = tmp_path / "out", ["--save_every_n_steps", "3", "--save_state"]
    train_network.main([*words, *saving])
    log = out / "last-log.jsonl"
    expected, whole = read_rows(log), log.read_bytes()
    log.write_bytes(whole + b'{"step": 5, "epo')  # as if it had gone on and been killed
    train_network.main([*words, "--resume", str(out / "at-step00000003-state")])
    rows = read_rows(log)
    assert steady(rows) == steady(expected)
    lines, before = log.read_bytes().splitlines(), whole.splitlines()
    assert lines[:4] == before[:4] and lines[4:] != before[4:], "rows up to the state stay, later ones are new"
    assert not list(out.glob("last-log.*.jsonl"))
    (events,) = (tmp_path / "logs").glob("*/cats")
    assert len(list(events.iterdir())) == 2
    found = read_events(events)
    assert [step for step, _ in found["loss/current"]] == [1, 2, 3, 4]
    assert [value for _, value in found["speed"]] == pytest.approx([row["speed"] for row in rows if "speed" in row])
    first, second = wandb_files(tmp_path / "logs")
    assert run_in_wandb(first).run_id == run_in_wandb(second).run_id
    assert [row["_step"] for row in wandb_history(second)] == [4]


def steady(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What equal runs have in common."""
    return [{tag: value for tag, value in row.items() if tag not in ("speed", "memory/peak_mib")} for row in rows]


def test_a_key_and_the_folders_of_its_owner_are_told_to_nobody(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """As a real process, with the key on its command line and everything below the home of somebody."""
    home = tmp_path / "home-of-hilde"
    home.mkdir()
    model = shutil.copy(tiny_models["sd1"], home / "model.safetensors")
    words = tracked(words_of(Path(model), photos, home, "--wandb_api_key", KEY, "--save_state"), home)
    own = {f"WANDB_{place}_DIR": str(tmp_path / "own") for place in ("CACHE", "CONFIG", "DATA")}
    settings = {**environment(), **own, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, str(ROOT / "train_network.py"), *words]
    with subprocess.Popen(command, cwd=home, env=settings, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        told = [process.stderr.readline()]
        while b"length:" not in told[-1] and told[-1]:
            told.append(process.stderr.readline())
        place = Path(f"/proc/{process.pid}/cmdline")
        title = place.read_bytes() if place.exists() else None
        errors = b"".join([*told, process.stderr.read()]).decode("utf-8")
    assert process.returncode == 0, errors[-4000:]
    if title is not None:
        assert KEY.encode() not in title
        assert b"--wandb_api_key" in title and os.fsencode(home / "out") in title, "the rest can be read"
    assert KEY not in errors
    assert errors.count("--wandb_api_key on the command line can be read") == 1
    for folder in (home / "out", home / "logs"):
        for word in (KEY, home.name, str(ROOT)):
            assert_not_told(folder, word)
    assert_not_told(tmp_path / "own", KEY)
    (file,) = wandb_files(home / "logs")
    config = {item.key: item.value_json for item in run_in_wandb(file).config.update}
    assert config["train_data_dir"] == '"pictures"' and config["resolution"] == '"64, 64"'
    assert "wandb_api_key" not in config and "huggingface_token" not in config
