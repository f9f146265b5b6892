"""Folders that are whole or absent, like the files of `library/core/atomic_io.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from library.core.atomic_io import TEMPORARY_MARK


def write_whole_folder(folder: Path, write: Callable[[Path], None], own: Collection[str]) -> None:
    """Writes beside the final place, then swaps; a killed run leaves the old folder or the new one.

    Args:
        folder: final name.
        write: fills the new, empty folder it is given.
        own: names in the folder that belong to what is replaced. Anything else that stands in an old folder is somebody
            else's and moves to the new one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{TEMPORARY_MARK}{os.getpid()}"
    temporary, old = folder.with_name(folder.name + mark), folder.with_name(f"{folder.name}.old{mark}")
    try:
        temporary.mkdir()
        write(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        swap_folder(temporary, folder, old, own)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def swap_folder(new: Path, folder: Path, old: Path, own: Collection[str] = ()) -> None:
    """Puts `new` in the place of `folder`; when that fails, `folder` is as it was. `own`: see `write_whole_folder`."""
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    if old.exists():
        for path in old.iterdir():
            if path.name not in own and not (folder / path.name).exists():
                os.replace(path, folder / path.name)
        shutil.rmtree(old, ignore_errors=True)
