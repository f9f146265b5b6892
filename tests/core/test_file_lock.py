from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from library.core.file_lock import alone_with, remove_held, remove_unless_held, rename_held

# Is alone with the file, adds a letter, says so, and stays until it is told to go on or is killed.
HOLDER = """
import sys
from pathlib import Path
from library.core.file_lock import alone_with
with alone_with(Path(sys.argv[1]), lambda: None) as held:
    held.write(b"x")
    print("held", flush=True)
    sys.stdin.read()
"""
ROOT = Path(__file__).resolve().parents[2]


def never() -> None:
    raise AssertionError("nobody has it")


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_it_is_made_kept_renamed_and_removed(tmp_path: Path) -> None:
    path, target = tmp_path / "a", tmp_path / "b"
    target.write_bytes(b"before")
    with alone_with(path, never) as held:
        held.write(b"begun")
    with alone_with(path, never) as held:
        assert held.read() == b"begun"
        rename_held(held, path, target)
    assert target.read_bytes() == b"begun" and not path.exists()
    with alone_with(path, never) as held:
        remove_held(held, path)
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError), alone_with(tmp_path / "absent" / "a", never):
        pass


@pytest.mark.parametrize("is_killed", (True, False))
def test_who_comes_second_waits_until_the_first_has_ended(tmp_path: Path, is_killed: bool) -> None:
    path = tmp_path / "a"
    first = hold(path)
    remove_unless_held(path)
    assert path.exists()
    waits: list[int] = []

    def end_first() -> None:
        waits.append(first.poll() is None)
        if is_killed:
            os.kill(first.pid, signal.SIGKILL)
        else:
            assert first.stdin is not None
            first.stdin.close()

    with alone_with(path, end_first) as held:
        assert first.wait(30) is not None and held.read() == b"x"
    assert waits == [True]
    assert first.stdout is not None
    first.stdout.close()
    remove_unless_held(path)
    assert not path.exists()


def test_who_waited_for_a_file_that_got_its_final_name_leaves_that_alone(tmp_path: Path) -> None:
    path, target, waits = tmp_path / "a", tmp_path / "b", threading.Event()
    found: list[bytes] = []

    def second() -> None:
        with alone_with(path, waits.set) as held:
            found.append(held.read())
            held.write(b"another")

    with alone_with(path, never) as held:
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
        held.write(b"whole")
        rename_held(held, path, target)
    thread.join()
    assert found == [b""] and target.read_bytes() == b"whole" and path.read_bytes() == b"another"
