"""Files that are whole or absent: temporary name, flush, check, rename."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

TEMPORARY_MARK = ".tmp-"


def write_whole(path: Path, write: Callable[[Path], None], check: Callable[[Path], None] | None = None) -> None:
    """Writes a file so that its final name never shows a half-written one.

    Args:
        path: final name; its folder is created.
        write: writes the content to the temporary path it is given.
        check: re-opens the temporary file and raises if it is not what it should be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}{TEMPORARY_MARK}{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        _flush(temporary)
        if check is not None:
            check(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text with LF line ends, whole or not at all."""
    write_whole(path, lambda temporary: _write_text(temporary, text))


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders; its rename is durable by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
