"""Stopping a run that trains: real signals and files, what is saved, and how the script ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

import train_network
from library.checkpoint.state import check_state, states_of
from library.core.errors import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USER_ERROR, Stopped, run_script
from tests.training.runs import ROOT, assert_same, environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals as Linux and macOS have them")

PATIENCE = 120.0  # seconds; only a failure takes as long
LONG = 1_000_000
# What starts the tests may have told them to ignore Ctrl-C, and programs inherit that.
HEEDS_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1")


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """Three photographs."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("cat.jpg", "coins.png", "coffee.jpg"):
        shutil.copy(photos / name, folder)
    return folder


def words_of(model: Path, data: Path, out: Path, *words: str, updates: int = LONG, workers: int = 0) -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(model), "--train_data_dir", str(data), "--resolution", "64"),
        *("--output_dir", str(out), "--network_dim", "2", "--learning_rate", "1e-3", "--seed", "5"),
        *("--max_train_steps", str(updates), "--max_data_loader_n_workers", str(workers)),
        *("--allow_missing_captions", *words),
    ]


def updates_in(out: Path) -> int:
    """The last update that the log tells of."""
    file = out / "last-log.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_until(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def saved_at(out: Path) -> int:
    """The update of the one whole state in the folder, whose weights lie beside it."""
    (state,) = states_of(out, None)
    check_state(state)
    step = int(state.name.removeprefix("at-step").removesuffix("-state"))
    assert load_file(str(out / f"at-step{step:08d}.safetensors"))
    assert step == updates_in(out)
    assert not [path for path in out.iterdir() if path.name.startswith(".tmp")]
    return step


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def heeded_ctrl_c() -> Iterator[None]:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def train_until(words: Sequence[str], out: Path, act: Callable[[], object], updates: int) -> int:
    """Trains here; after so many updates something is done. Returns the exit code."""

    def wait_and_act() -> None:
        wait_until(lambda: updates_in(out) >= updates)
        act()

    threading.Thread(target=wait_and_act, daemon=True).start()
    return run_script(partial(train_network.main, words))


def test_a_run_that_was_stopped_and_resumed_is_the_one_that_was_not(
    tiny_models: dict[str, Path],
    data: Path,
    tmp_path: Path,
    heeded_ctrl_c: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, whole, logs = tmp_path / "out", tmp_path / "whole", tmp_path / "logs"
    words = partial(words_of, tiny_models["sd1"], data)
    interrupt = partial(os.kill, os.getpid(), signal.SIGINT)
    code = train_until(words(out, "--logging_dir", str(logs), updates=400), out, interrupt, 3)
    assert code == EXIT_STOPPED
    said = capfd.readouterr().err
    step = saved_at(out)
    assert 3 <= step < 400
    assert "finishing this update, then saving; again to end at once" in said
    assert f"stopped after update {step} of 400" in said
    assert f"{out / f'at-step{step:08d}-state'}" in said
    assert f"log: {out / 'last-log.jsonl'}" in said and f"curves: tensorboard --logdir={logs}, then http" in said
    assert "to go on: the same command with --resume latest" in said and "a second; " in said
    assert not (out / "last.safetensors").exists() and "copy it into models/Lora" not in said

    end = step + 3  # a constant rate does not know how long the run is
    train_network.main(words(out, "--resume", "latest", updates=end))
    said = capfd.readouterr().err
    assert "\n3 updates in " in said and "copy it into models/Lora" in said
    train_network.main(words(whole, updates=end))
    assert_same(load_file(str(out / "last.safetensors")), load_file(str(whole / "last.safetensors")))
    rows = [[json.loads(line) for line in (f / "last-log.jsonl").read_text().splitlines()] for f in (out, whole)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def test_in_a_thread_of_a_notebook_a_file_stops(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> None:
    out, ends = tmp_path / "out", list[BaseException]()

    def train() -> None:
        try:
            train_network.main(words_of(tiny_models["sd1"], data, out))
        except BaseException as end:
            ends.append(end)

    thread = threading.Thread(target=train)
    thread.start()
    wait_until(lambda: updates_in(out) >= 2 or not thread.is_alive())
    (out / "Stop.txt").touch()
    thread.join(PATIENCE)
    assert [type(end) for end in ends] == [Stopped]
    assert saved_at(out) >= 2
    assert not (out / "Stop.txt").exists()


@pytest.mark.slow  # tests/training/requests/test_watch.py and tests/core/test_errors.py have its two halves
def test_what_goes_wrong_on_the_way_is_not_called_a_mistake_to_mend_before(
    tiny_models: dict[str, Path], data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = train_until(words_of(tiny_models["sd1"], data, out), out, lambda: shutil.rmtree(data), 2)
    assert code == EXIT_USER_ERROR
    said = capfd.readouterr().err
    assert "1 problem ended the run:" in said and "before anything can run" not in said


# --- as people start it -----------------------------------------------------------------------------------------------


@dataclass
class Training:
    """A script in a process group of its own, as a terminal starts it."""

    process: subprocess.Popen[str]
    out: Path

    def wait_for(self, done: Callable[[], bool]) -> None:
        wait_until(lambda: done() or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()[1][-3000:]

    def signal_group(self, number: int) -> None:
        """What a terminal does at Ctrl-C, and many a service manager when it ends something."""
        os.killpg(self.process.pid, number)

    def finish(self) -> tuple[int, str]:
        """The exit code, and what was said."""
        said = self.process.communicate(timeout=PATIENCE)[1]
        return self.process.returncode, said


@pytest.fixture
def begin(tiny_models: dict[str, Path], data: Path, tmp_path: Path) -> Iterator[Callable[..., Training]]:
    begun: list[Training] = []

    def start(*words: str, launcher: Sequence[str] = (), workers: int = 0) -> Training:
        out = tmp_path / "out"
        script = [*launcher, "train_network.py", *words_of(tiny_models["sd1"], data, out, *words, workers=workers)]
        process = subprocess.Popen(
            [sys.executable, "-c", HEEDS_CTRL_C, sys.executable, *script],
            cwd=ROOT,
            env={**environment(), "CUDA_VISIBLE_DEVICES": "-1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        begun.append(Training(process, out))
        return begun[-1]

    yield start
    for training in begun:
        if training.process.poll() is None:
            training.process.kill()
            training.process.communicate()


def others_in_group(group: int) -> list[int]:
    """The processes that are left of a group."""
    return [pid for pid, _, its_group in _processes() if its_group == group]


def children_of(parent: int) -> list[int]:
    return [pid for pid, its_parent, _ in _processes() if its_parent == parent]


def _processes() -> list[tuple[int, int, int]]:
    """Number, parent and group of all that run."""
    columns = ["ps", "-e", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat="]
    told = subprocess.run(columns, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in told.splitlines()]
    return [(int(row[0]), int(row[1]), int(row[2])) for row in rows if not row[3].startswith("Z")]


def test_a_signal_to_all_processes_saves_and_stops_quietly(begin: Callable[..., Training]) -> None:
    training = begin("--save_on_signal", workers=2)
    out = training.out
    training.wait_for(lambda: updates_in(out) >= 2)
    os.kill(training.process.pid, signal.SIGUSR1)
    training.wait_for(lambda: len(states_of(out, None)) == 1)
    (out / "save now").touch()
    training.wait_for(lambda: len(states_of(out, None)) == 2)
    training.signal_group(signal.SIGTERM)
    code, said = training.finish()
    assert code == EXIT_STOPPED
    states = states_of(out, None)
    for state in states:
        check_state(state)
    assert len(states) == 3 and states[0].name == f"at-step{updates_in(out):08d}-state"
    assert "Traceback" not in said and said.count("finishing this update") == 1
    assert "a file in the output folder asks for a save" in said and "saving after this update" in said
    assert others_in_group(training.process.pid) == []


@pytest.mark.slow
def test_the_second_ctrl_c_ends_a_loop_that_hangs(begin: Callable[..., Training]) -> None:
    """The one loader process stands still, so there is no batch any more."""
    training = begin("--save_every_n_steps", "3", "--save_last_n_steps", "6", "--save_state", workers=1)
    training.wait_for(lambda: bool(states_of(training.out, None)))
    (worker,) = children_of(training.process.pid)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(1.0)
    training.signal_group(signal.SIGINT)
    time.sleep(1.5)
    assert training.process.poll() is None, training.finish()[1][-3000:]
    asked_at = time.monotonic()
    training.signal_group(signal.SIGINT)
    code, said = training.finish()
    assert code == EXIT_INTERRUPTED and time.monotonic() - asked_at < 5
    assert "ended at once; what was saved before is whole" in said and "Traceback" not in said
    for state in states_of(training.out, None):
        check_state(state)
    assert others_in_group(training.process.pid) == []


@pytest.mark.slow
def test_before_training_a_ctrl_c_ends_at_once(begin: Callable[..., Training]) -> None:
    training = begin()
    time.sleep(2.5)  # Python has begun, and libraries are being imported
    training.signal_group(signal.SIGINT)
    code, said = training.finish()
    assert code == EXIT_INTERRUPTED and said.strip().endswith("interrupted") and "Traceback" not in said
    assert states_of(training.out, None) == []


INTERRUPTED_IMPORT = """
import runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "library.options.scripts":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Finder())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["fine_tune.py", "train_db.py", "train_network.py", "train_textual_inversion.py"])
def test_a_ctrl_c_while_the_options_are_imported_ends_quietly(script: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr.strip()) == (EXIT_INTERRUPTED, "interrupted")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM to torchrun", "file"])
def test_of_two_processes_both_stop_and_one_state_is_saved(begin: Callable[..., Training], how: str) -> None:
    training = begin(launcher=TORCHRUN, workers=1)
    training.wait_for(lambda: updates_in(training.out) >= 2)
    if how == "file":
        (training.out / "stop").touch()
    elif how == "Ctrl-C":
        training.signal_group(signal.SIGINT)
    else:
        os.kill(training.process.pid, signal.SIGTERM)
    code, said = training.finish()
    assert code == 1  # torchrun's own, whatever its processes end with; docs/stopping.md says so
    assert said.count("stopped after update ") == 1 and f"stopped after update {saved_at(training.out)}" in said
    assert said.count("finishing this update") == (0 if how == "file" else 1)
    assert others_in_group(training.process.pid) == []


@pytest.mark.slow
def test_under_accelerate_launch_ctrl_c_saves_though_the_launcher_is_gone(begin: Callable[..., Training]) -> None:
    training = begin(launcher=ACCELERATE)
    training.wait_for(lambda: updates_in(training.out) >= 2)
    training.signal_group(signal.SIGINT)
    code, said = training.finish()  # the pipe stays open until the last process is gone
    assert code == -signal.SIGINT
    assert f"stopped after update {saved_at(training.out)}" in said
