"""Files that are whole or absent: temporary name, flush, check, rename."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TEMPORARY_MARK = ".tmp-"
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_MARK)}[0-9a-f]{{8}}-(?P<host>[0-9a-f]{{8}})-(?P<process>\d+)")
_DAY = 24 * 60 * 60  # seconds


def write_whole(path: Path, write: Callable[[Path], None], check: Callable[[Path], None] | None = None) -> None:
    """Writes a file so that its final name never shows a half-written one.

    Args:
        path: final name; its folder is created.
        write: writes the content to the temporary path it is given.
        check: re-opens the temporary file and raises if it is not what it should be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.suffix))
    try:
        write(temporary)
        flush(temporary)
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text with LF line ends, whole or not at all."""
    write_whole(path, lambda temporary: _write_text(temporary, text))


def remove_left_overs(folder: Path, ending: str) -> int:
    """Removes temporary files of `write_whole` whose process was killed: it is dead, or they are older than a day.

    Args:
        folder: where they lie; it alone, not what is below.
        ending: of the files, such as ".npz".

    Returns:
        How many were removed. What cannot be looked at or removed stays.
    """
    removed = 0
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            with suppress(OSError):
                if is_left_over(entry, ending) and entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink()
                    removed += 1
    return removed


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def temporary_name(ending: str) -> str:
    """A name for what is not finished; no other process takes it, here or elsewhere, however long the final one is."""
    process = os.getpid()
    return f"{TEMPORARY_MARK}{secrets.token_hex(4)}-{_host(process)}-{process}{ending}"


@functools.lru_cache(maxsize=1)
def _host(process: int) -> str:
    """Stands for the place where the number of this process means something: the machine, and the container on it."""
    place = socket.gethostname()
    with suppress(OSError):  # Linux alone has it
        place += str(Path("/proc/self/ns/pid").readlink())
    return hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def is_left_over(entry: os.DirEntry[str], ending: str) -> bool:
    """Whether it has a temporary name with this ending whose process is dead, or is older than a day.

    Raises:
        OSError: it cannot be looked at, or is gone.
    """
    name = _TEMPORARY.fullmatch(entry.name.removesuffix(ending)) if entry.name.endswith(ending) else None
    if name is None:
        return False
    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY:
        return True
    return name["host"] == _host(os.getpid()) and not _is_alive(int(name["process"]))


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # asking would end it there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else, or is no number of a process
        return True
    return True


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def flush(path: Path) -> None:
    """Brings a file's content to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    if os.name == "nt":  # Windows cannot open folders; its rename is durable by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def why_not_writable(folder: Path) -> OSError | None:
    """What happens when a file is made in `folder`; None where one can be.

    It is tried: rights alone do not tell of disks that are mounted for reading.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error
