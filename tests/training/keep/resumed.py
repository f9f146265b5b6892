"""Runs that are cut off and resumed, compared with one that never stopped; for tests."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

SAVING = ("--save_every_n_steps", "1", "--save_state")
NOT_REPEATED = ("speed", "memory/peak_mib")  # of a row of the log
_STEP = re.compile(r"step(\d{8})")
Train = Callable[[str, Sequence[str]], None]


def train_here(script: str, words: Sequence[str]) -> None:
    """Runs a script in this process, as if it were a new one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    importlib.import_module(script.removesuffix(".py")).main(list(words))


def cut_off_after(out: Path, step: int) -> None:
    """Leaves what a run that was killed after this update could have left: log and list are of later, files are not."""
    for path in list(out.iterdir()):
        found = _STEP.search(path.name)
        is_late = int(found.group(1)) > step if found else path.name.startswith("last") and path.suffix != ".jsonl"
        if is_late and not path.name.endswith("-saves.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def state_at(out: Path, step: int) -> Path:
    """The state that a run with `SAVING` has written after this update."""
    return out / f"at-step{step:08d}-state"


def contents(out: Path) -> dict[str, bytes]:
    """Every file of an output folder but the log."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.suffix != ".jsonl")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of the log, without what differs between two runs that are the same."""
    (log,) = out.glob("*-log.jsonl")
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if name not in NOT_REPEATED} for row in found]


def assert_same_run(whole: Path, resumed: Path) -> None:
    """Both folders hold the same files, bit by bit, and the same log."""
    expected, found = contents(whole), contents(resumed)
    assert set(found) == set(expected)
    assert [name for name in expected if expected[name] != found[name]] == []
    assert rows(resumed) == rows(whole)


def assert_resumes_exactly(
    script: str, words: Sequence[str], root: Path, cuts: Sequence[int], train: Train = train_here
) -> Path:
    """A run that is cut off after each of `cuts` and resumed is the run that never stopped; returns the folder of that.

    Args:
        words: the command line without output and saving.
        cuts: updates, rising.
    """
    whole, resumed = root / "whole", root / "resumed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        train(script, [*words, *SAVING, "--output_dir", str(whole)])
        shutil.copytree(whole, resumed)
        for step in cuts:
            cut_off_after(resumed, step)
            train(script, [*words, *SAVING, "--output_dir", str(resumed), "--resume", "latest"])
            assert_same_run(whole, resumed)
    return whole
