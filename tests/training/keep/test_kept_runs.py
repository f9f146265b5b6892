"""Whole runs that are resumed, asked and told: what stays untouched, what is saved unasked, what people are told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_network
from library.checkpoint.state import check_state
from library.core.errors import Stopped, UserError
from tests.training.keep.resumed import SAVING, cut_off_after
from tests.training.logs.log_readers import read_rows
from tests.training.styles import CAPTION_FILES, style_words

PATIENCE = 120.0  # seconds; only a failure takes as long
pytestmark = pytest.mark.usefixtures("fresh_accelerate")
on_linux_as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root of Linux can make a folder read-only for itself"
)


@pytest.fixture
def words(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> list[str]:
    """A good command line, three updates an epoch, but for length and output."""
    data = style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")
    common = ["--max_data_loader_n_workers", "0", "--learning_rate", "1e-3", "--network_train_unet_only"]
    return ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data, *common]


def written_at(out: Path) -> dict[str, tuple[int, int]]:
    """Every saved file: which one it is on the disk, and when it was written. The log and the list grow."""
    files = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith((".jsonl", "-saves.json"))]
    return {path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_a_resumed_run_touches_nothing_that_was_saved_before_its_state(words: list[str], tmp_path: Path) -> None:
    """Equal bytes would not show it: what is written again is the same."""
    out = tmp_path / "out"
    command = [*words, *SAVING, "--save_every_n_epochs", "1", "--output_dir", str(out)]
    train_network.main([*command, "--max_train_steps", "4"])
    cut_off_after(out, 3)
    log = (out / "last-log.jsonl").read_bytes().splitlines()
    before = written_at(out)
    assert "epoch-000001.safetensors" in before and not any("00000004" in name for name in before)
    train_network.main([*command, "--max_train_steps", "8", "--resume", "latest"])
    after = written_at(out)
    assert {name: after.get(name) for name in before} == before
    new = {name.split("/")[0] for name in set(after) - set(before)}
    stems = {*(f"at-step{step:08d}" for step in range(4, 9)), "epoch-000002", "last"}
    assert new == {f"{stem}{ending}" for stem in stems for ending in (".safetensors", "-state")}
    rows = read_rows(out / "last-log.jsonl")
    assert [(row["step"], row["epoch"]) for row in rows if "speed" in row] == [(n, (n + 2) // 3) for n in range(1, 9)]
    assert (out / "last-log.jsonl").read_bytes().splitlines()[:4] == log[:4]  # three updates and an epoch


def test_a_state_alone_is_saved_at_the_end_and_files_on_the_way_have_the_precision_asked_for(
    words: list[str], tmp_path: Path
) -> None:
    """Other tools save none where no save point is given."""
    for option in ("--save_state", "--save_state_on_train_end"):
        out = tmp_path / option
        more = ["--save_every_n_steps", "1", "--save_precision", "fp16"] if option != "--save_state" else []
        train_network.main([*words, "--output_dir", str(out), "--max_train_steps", "2", option, *more])
        check_state(out / "last-state")
        assert [path.name for path in out.glob("*-state")] == ["last-state"]
    on_way = load_file(str(out / "at-step00000001.safetensors"))
    assert {tensor.dtype for tensor in on_way.values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_file(str(tmp_path / "--save_state" / "last.safetensors")).values()} == {
        torch.float32
    }


def test_the_summary_says_what_is_where_and_what_it_took(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    train_network.main([*words, *SAVING, "--output_dir", str(out), "--max_train_steps", "2", "--ema"])
    lines = capsys.readouterr().err.splitlines()
    told = "\n".join(lines[-8:])
    assert f"on the way: 2 saves and 2 states; {out / 'last-saves.json'} lists those that are kept" in told
    for name in ("last.safetensors", "last-ema.safetensors", "last-state", "last-log.jsonl"):
        assert str(out / name) in told
    found = re.search(r"2 updates in \d+ s with loading, [\d.]+ a second; .*main memory: at most (\d+) MiB", told)
    assert found and int(found.group(1)) > 100
    assert lines[-1].startswith("next: copy it into models/Lora")


def when(done: Callable[[], bool], act: Callable[[], object]) -> None:
    """Does something, in a thread, as soon as something is so."""

    def watch() -> None:
        last = time.monotonic() + PATIENCE
        while not done() and time.monotonic() < last:
            time.sleep(0.01)
        act()

    threading.Thread(target=watch, daemon=True).start()


def test_samples_are_made_when_a_file_asks_and_stand_in_tensorboard(words: list[str], tmp_path: Path) -> None:
    out, logs, prompts = tmp_path / "out", tmp_path / "logs", tmp_path / "prompts.txt"
    prompts.write_text("a cat --s 1 --d 3\na dog --s 1 --d 4", encoding="utf-8")
    log = out / "last-log.jsonl"
    pictures = lambda: {path.name for path in (out / "sample").glob("last_0*.png")}  # noqa: E731
    when(lambda: log.exists() and len(log.read_bytes().splitlines()) > 3, (out / "sample now").touch)
    when(lambda: len(pictures()) == 4, (out / "stop").touch)
    with pytest.raises(Stopped):
        train_network.main(
            [
                *(*words, "--output_dir", str(out), "--max_train_steps", "100000", "--logging_dir", str(logs)),
                *("--sample_prompts", str(prompts), "--sample_at_first"),
            ]
        )
    steps = sorted({int(name.split("_")[1]) for name in pictures()})
    assert steps[0] == 0 and len(steps) == 2 and steps[1] >= 3
    assert not (out / "sample now").exists()
    (events,) = logs.glob("*/network_train")
    found = EventAccumulator(str(events), size_guidance={"images": 0})
    found.Reload()
    for tag in ("sample/01", "sample/02"):
        assert [(image.step, image.width, image.height) for image in found.Images(tag)] == [
            (step, 64, 64) for step in steps
        ]


@pytest.mark.slow
@on_linux_as_root
def test_a_run_whose_folder_turns_read_only_goes_on_later(words: list[str], tmp_path: Path) -> None:
    """Whatever stands under a final name then is whole, and the run resumes when the folder can be written again."""
    out = tmp_path / "out"
    out.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(out)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.decode()}")
    view = tmp_path / "view"
    view.mkdir()
    command = [*words, *SAVING, "--output_dir", str(out), "--max_train_steps", "6"]

    def mount(*mounted: object) -> None:
        subprocess.run(["mount", *map(str, mounted)], check=True)

    try:
        mount("--bind", out, view)
        mount("-o", "remount,bind,ro", view)
        when((out / "at-step00000002-state").exists, lambda: mount("--bind", view, out))
        with pytest.raises(UserError, match="Read-only file system"):
            train_network.main(command)
        states = sorted(path.name for path in out.glob("at-step*-state"))
        assert "at-step00000002-state" in states and "at-step00000006-state" not in states
        for state in states:
            check_state(out / state)
        for file in out.glob("*.safetensors"):
            assert load_file(str(file))
        subprocess.run(["umount", str(out)], check=True)
        train_network.main([*command, "--resume", "latest"])
        assert load_file(str(out / "last.safetensors"))
        check_state(out / "at-step00000006-state")
    finally:
        for folder in (out, view, out):
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)
