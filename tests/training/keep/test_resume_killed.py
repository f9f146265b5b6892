"""Real processes that are killed at random moments and resumed: the end is that of a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from library.checkpoint.state import states_of
from tests.training.keep.resumed import SAVING, assert_resumes_exactly, assert_same_run
from tests.training.keep.test_resume import SCRIPTS, cuts_of, words_of
from tests.training.runs import ROOT, environment, run_script_in_processes

pytestmark = pytest.mark.slow  # processes take seconds to start

UPDATES = 12
NAMES = [name for name in SCRIPTS if name != "fine_tune_hypernetwork"]  # train_network.py shows the same
PATIENCE = 300.0  # seconds until a process must have come as far as it is wanted


def train_in(processes: int, script: str, words: Sequence[str]) -> None:
    run_script_in_processes(script, words, processes)


def kill_after(script: str, words: Sequence[str], out: Path, step: int, pause: float) -> None:
    """Starts a run, and kills it a moment after its state of an update is there."""
    log = (out.parent / "output.txt").open("ab")
    process = subprocess.Popen([sys.executable, script, *words], cwd=ROOT, env=environment(), stderr=log, stdout=log)
    last = time.monotonic() + PATIENCE
    while f"step{step:08d}" not in "".join(path.name for path in states_of(out, None)[:1]):
        assert process.poll() is None, (out.parent / "output.txt").read_text(encoding="utf-8")[-2000:]
        assert time.monotonic() < last
        time.sleep(0.01)
    time.sleep(pause)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
    while left := processes_of(out):  # loader processes, some of which wait to hand over a batch
        assert time.monotonic() < last, f"still there: {left}"
        time.sleep(0.1)


def processes_of(out: Path) -> list[str]:
    """The processes that still run and have this output folder on their command line; none where the system does not
    tell."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it may end at any moment
            if os.fsencode(out) in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_killed_twice_is_never_stopped(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    script, words = words_of(name, tiny_models["sd1"], photos, tmp_path)
    words += [*SAVING, "--max_train_steps", str(UPDATES), "--max_data_loader_n_workers", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_in(1, script, [*words, "--output_dir", str(whole)])
    draw, more = random.Random(name), list[str]()
    for step in sorted(draw.sample(range(1, UPDATES - 2), 2)):
        kill_after(script, [*words, "--output_dir", str(killed), *more], killed, step, draw.uniform(0, 0.3))
        more = ["--resume", "latest"]
    train_in(1, script, [*words, "--output_dir", str(killed), *more])
    assert_same_run(whole, killed)


@pytest.mark.skipif(os.name == "nt", reason="torchrun of one machine's CPUs is what is tested")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_resumed_twice_are_never_stopped(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, name: str
) -> None:
    script, words = words_of(name, tiny_models["sd1"], photos, tmp_path)

    def train(script: str, words: Sequence[str]) -> None:
        train_in(2, script, words)

    steady = ["--max_data_loader_n_workers", "0", "--ema"]
    assert_resumes_exactly(script, [*words, *steady], tmp_path, cuts_of(f"two {name}"), train)
