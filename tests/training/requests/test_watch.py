"""Requests while a run trains: signals, files, and several processes that must agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate import Accelerator

from library.core.errors import EXIT_INTERRUPTED
from library.core.log import start_logging
from library.training.requests.files import LOOK_EVERY, RequestFiles
from library.training.requests.signals import STOP_SIGNALS, interruptible
from library.training.requests.watch import FILES, Requests, RequestWatch
from tests.training.runs import ROOT, environment

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself these signals there")


@pytest.fixture(autouse=True)
def heeded_signals() -> Iterator[None]:
    """As in a terminal: what starts the tests may have told them to ignore Ctrl-C."""
    former = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def watch_of(folder: Path, save_on_signal: bool = False, name: str | None = None) -> RequestWatch:
    start_logging()
    return RequestWatch(folder, name, Accelerator(cpu=True), save_on_signal)


def wait_for(text: str, capfd: pytest.CaptureFixture[str]) -> str:
    """All that was said, once it holds the text; another thread says it."""
    said, give_up = "", time.monotonic() + 5
    while text not in said and time.monotonic() < give_up:
        said += capfd.readouterr().err
        time.sleep(0.01)
    assert text in said
    return said


# --- signals ----------------------------------------------------------------------------------------------------------


@needs_posix
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_asks_once_to_stop_and_is_answered(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    watch = watch_of(tmp_path)
    with watch.watched():
        assert watch.look() == Requests()
        os.kill(os.getpid(), number)
        wait_for("finishing this update, then saving; again to end at once", capfd)
        assert watch.look() == Requests(stop=True)
        assert watch.look() == Requests()


@needs_posix
def test_afterwards_signals_do_what_they_did_before(tmp_path: Path) -> None:
    def everything() -> list[object]:
        mouth = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(mouth)
        numbers = (*STOP_SIGNALS, signal.SIGUSR1)
        return [mouth, threading.active_count(), *(signal.getsignal(number) for number in numbers)]

    before = everything()
    with pytest.raises(ZeroDivisionError), watch_of(tmp_path, save_on_signal=True).watched():
        assert all(now != then for now, then in zip(everything(), before, strict=True))
        raise ZeroDivisionError
    assert everything() == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@needs_posix
def test_the_signal_that_saves_is_heard_only_when_it_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with watch_of(tmp_path).watched():
        assert signal.getsignal(signal.SIGUSR1) == before
    watch = watch_of(tmp_path, save_on_signal=True)
    with watch.watched():
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for("saving after this update", capfd)
        assert watch.look() == Requests(save=True)
        assert watch.look() == Requests()


@needs_posix
def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    """A shell that starts something behind a script makes it ignore Ctrl-C, which is meant for the script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = watch_of(tmp_path)
    with watch.watched():
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.look() == Requests()
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.look() == Requests(stop=True)


@needs_posix
def test_a_signal_that_was_to_save_and_is_ignored_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    former = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with watch_of(tmp_path).watched():
            assert "SIGUSR1" not in capfd.readouterr().err
        with watch_of(tmp_path, save_on_signal=True).watched():
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
            assert capfd.readouterr().err.count("warning: SIGUSR1 saves nothing: ") == 1
    finally:
        signal.signal(signal.SIGUSR1, former)


@needs_posix
def test_what_is_long_learns_of_a_stop_before_the_next_look(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)
    with watch.watched():
        assert watch.look() == Requests() and not watch.is_stopping()
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.is_stopping() and watch.is_stopping()
        assert watch.look() == Requests(stop=True) and watch.is_stopping()
    watch = watch_of(tmp_path)
    with watch.watched():
        for name in ("stop", "save now"):
            (tmp_path / name).touch()
        assert watch.is_stopping()
        assert watch.look() == Requests(stop=True, save=True)
        assert watch.look() == Requests() and watch.is_stopping()


def test_who_asks_for_samples_and_a_stop_gets_both(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)
    with watch.watched():
        for name in ("stop", "sample now"):
            (tmp_path / name).touch()
        assert watch.look() == Requests(stop=True, sample=True) and not watch.is_stopping()


@needs_posix
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_wait_is_interrupted_once(number: signal.Signals) -> None:
    """What a launcher passes on a moment later must not disturb what follows the wait."""
    former = signal.getsignal(number)
    with interruptible():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        for other in STOP_SIGNALS:
            os.kill(os.getpid(), other)
    assert signal.getsignal(number) == former


@needs_posix
def test_a_second_signal_within_a_second_is_the_first_one_passed_on(tmp_path: Path) -> None:
    """Launchers pass on what the terminal has sent already; this process would not live on if it counted."""
    watch = watch_of(tmp_path)
    with watch.watched():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        assert watch.look() == Requests(stop=True)


@needs_posix
def test_while_a_library_computes_the_first_is_answered_and_the_second_ends(tmp_path: Path) -> None:
    """The main thread is inside a computation that does not look at signals; handlers of Python's would wait for it."""
    code = (
        "import hashlib, signal\n"
        "from library.training.requests.signals import SignalRequests\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with SignalRequests(save_on_signal=False, speaks=True).heard():\n"
        "    print('begun', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.stderr.readline() == "\n" and "finishing this update" in process.stderr.readline()
    time.sleep(1.1)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == EXIT_INTERRUPTED and "ended at once; what was saved before is whole" in said


def test_outside_the_main_thread_files_alone_are_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found: list[Requests] = []

    def train() -> None:
        watch = watch_of(tmp_path)
        with watch.watched():
            (tmp_path / "stop").touch()
            found.append(watch.look())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [Requests(stop=True)]
    assert capfd.readouterr().err.count("put a file named stop into") == 1


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("stop", Requests(stop=True)),
        ("Stop.TXT", Requests(stop=True)),
        ("save now", Requests(save=True)),
        ("SAVE_NOW", Requests(save=True)),
        ("save-now.txt", Requests(save=True)),
        ("sample now", Requests(sample=True)),
        ("Sample_Now.txt", Requests(sample=True)),
    ],
)
def test_a_file_asks_once_and_is_removed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, asked: Requests
) -> None:
    watch = watch_of(tmp_path)
    with watch.watched():
        (tmp_path / name).touch()
        assert watch.look() == asked
        assert list(tmp_path.iterdir()) == []
        assert "a file in the output folder asks" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("run", "name", "asked"),
    [
        ("Mira cat", "Mira cat.stop", Requests(stop=True)),
        ("mira-2.1", "mira-2.1.Save_Now.txt", Requests(save=True)),
        ("mira", "mira.sample now", Requests(sample=True)),
        (None, "last.stop", Requests(stop=True)),
        ("stop", "stop.txt", Requests(stop=True)),
        ("stop", "stop.stop", Requests(stop=True)),
    ],
)
def test_a_file_may_name_its_run(tmp_path: Path, run: str | None, name: str, asked: Requests) -> None:
    watch = watch_of(tmp_path, name=run)
    with watch.watched():
        (tmp_path / name).touch()
        assert watch.look() == asked
        assert list(tmp_path.iterdir()) == []


def test_files_of_other_runs_are_left_to_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ("rex.stop", "mira2.save now", "mira.cat.stop", "MIRA.stop", "last.sample now")
    for name in names:
        (tmp_path / name).touch()
    watch = watch_of(tmp_path, name="mira")
    with watch.watched():
        assert watch.look() == Requests()
    assert {path.name for path in tmp_path.iterdir()} == set(names) and capfd.readouterr().err == ""


def test_a_file_for_all_is_taken_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs find it at the same time; the one that can remove it obeys."""
    (tmp_path / "stop").touch()
    unlink = Path.unlink

    def by_another_run_first(path: Path, missing_ok: bool = False) -> None:
        unlink(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", by_another_run_first)
    assert RequestFiles(tmp_path, "last", FILES).look() == set()


def test_other_names_and_folders_ask_for_nothing(tmp_path: Path) -> None:
    names = ("stop.safetensors", "stopped", "last-stop.txt", "savenow", "sample.txt", "stop.txt.png")
    (tmp_path / "stop").mkdir()
    watch = watch_of(tmp_path)
    with watch.watched():
        for name in names:
            (tmp_path / name).touch()
        assert watch.look() == Requests()
    assert {path.name for path in tmp_path.iterdir()} == {"stop", *names}


def test_several_files_and_a_signal_are_heard_together(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)
    with watch.watched():
        for name in FILES:
            (tmp_path / name).touch()
        assert watch.look() == Requests(stop=True, save=True, sample=True)


def test_a_folder_that_is_not_there_asks_for_nothing(tmp_path: Path) -> None:
    watch = watch_of(tmp_path / "later")
    with watch.watched():
        assert watch.look() == Requests()


def test_left_overs_are_removed_and_not_obeyed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stop").touch()
    watch = watch_of(tmp_path)
    with watch.watched():
        assert "was there before training began, so it is not obeyed" in capfd.readouterr().err
        assert list(tmp_path.iterdir()) == []
        assert watch.look() == Requests()


def test_the_folder_is_looked_at_once_a_second(tmp_path: Path) -> None:
    files = RequestFiles(tmp_path, "last", FILES)
    assert files.look() == set()
    (tmp_path / "stop").touch()
    assert files.look() == set()
    time.sleep(LOOK_EVERY + 0.05)
    assert files.look() == {"stop"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes a file that nobody can remove, from /proc")
def test_a_file_that_cannot_be_removed_is_obeyed_once(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    files = RequestFiles(Path("/proc"), "last", {"version": "stop"})
    assert files.look() == {"stop"}
    assert "/proc/version cannot be removed" in capfd.readouterr().err
    time.sleep(LOOK_EVERY + 0.05)
    assert files.look() == set()
    assert capfd.readouterr().err == ""


def test_a_look_costs_microseconds(tmp_path: Path) -> None:
    watch = watch_of(tmp_path)
    with watch.watched():
        watch.look()
        each = min(timeit.repeat(watch.look, number=1000, repeat=5)) / 1000
    assert each < 50e-6


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow  # two processes that import torch
@needs_posix
def test_all_processes_learn_of_a_request_at_once(tmp_path: Path) -> None:
    """The second process gets a signal, the first one finds a file; both hear both, after the same update."""
    script = tmp_path / "watch.py"
    script.write_text(
        "import os, pathlib, signal\n"
        "from library.training.requests.watch import RequestWatch\n"
        "from library.training.runtime import end_runtime, start_runtime\n"
        "accelerator = start_runtime('no')\n"
        "folder = pathlib.Path(__file__).parent / 'out'\n"
        "watch = RequestWatch(folder, None, accelerator, True)\n"
        "with watch.watched():\n"
        "    told = [watch.look()]\n"
        "    if accelerator.process_index == 1: os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    told.append(watch.look())\n"
        "    if accelerator.is_main_process: folder.mkdir(); (folder / 'stop').touch()\n"
        "    import time; time.sleep(1.1)\n"
        "    told += [watch.look(), watch.look()]\n"
        "pathlib.Path(__file__).with_name(f'told{accelerator.process_index}').write_text(repr(told))\n"
        "end_runtime(accelerator)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    settings = {**environment(), "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    expected = repr([Requests(), Requests(save=True), Requests(stop=True), Requests()])
    assert [(tmp_path / f"told{process}").read_text(encoding="utf-8") for process in range(2)] == [expected] * 2
