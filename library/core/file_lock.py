"""A file that one process at a time works on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_POLL_SECONDS = 0.2
_LOCKED_BYTE = 1 << 40  # far behind any content: on Windows nobody else may read what is locked


@contextmanager
def alone_with(path: Path, on_wait: Callable[[], None]) -> Iterator[FileIO]:
    """Opens a file for reading and writing as soon as no other process has it so; makes it where it is missing.

    A process that ends, however it does, lets go of the file. Where a file system knows no locks, nobody is waited for.

    Args:
        on_wait: is called once when there is somebody to wait for.

    Raises:
        OSError: it cannot be opened.
    """
    is_told = False
    while True:
        file = _open(path)
        with suppress(OSError):  # it was removed or renamed by the one who had it
            if _take(file) and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
        if not is_told:
            is_told = True
            on_wait()
        time.sleep(_POLL_SECONDS)
    with file:
        yield file


def rename_held(file: FileIO, path: Path, target: Path) -> None:
    """Gives the file of `alone_with` its final name, in the place of what has it."""
    if sys.platform == "win32":
        file.close()  # no open file can be renamed there
    os.replace(path, target)


def remove_held(file: FileIO, path: Path) -> None:
    """Removes the file of `alone_with`; it stays where another process waits for it on Windows."""
    if sys.platform == "win32":
        file.close()
    with suppress(OSError):
        path.unlink()


def remove_unless_held(path: Path) -> None:
    """Removes the file if no process is alone with it."""
    with suppress(OSError), path.open("r+b", buffering=0) as file:
        if _take(file):
            remove_held(file, path)


def _open(path: Path) -> FileIO:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    return FileIO(os.open(path, flags, 0o666), "r+")


def _take(file: FileIO) -> bool:
    """Locks the file; whether that went well, or nothing can be locked there."""
    try:
        if sys.platform == "win32":
            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second is what Windows says
        return False
    except OSError:
        return True
    return True
