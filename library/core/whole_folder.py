"""Folders that are whole or absent, like the files of `library/core/atomic_io.py`.

A folder cannot be exchanged in one step: the old one is moved aside, the new one gets the name, the old one is deleted.
What is aside lies as `.tmp-….old/NAME`, so that a process that is killed in between loses nothing: until the new folder
has its name the old one is found there (`folders_aside`), and it is put back when somebody tidies up.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from library.core.atomic_io import TEMPORARY_MARK, flush, flush_folder, is_left_over, temporary_name

_NEW, _OLD = ".new", ".old"
_OWN_NAMES = ".own"  # beside what is aside: names in it that belong to what is replaced


def write_whole_folder(folder: Path, write: Callable[[Path], None], own: Collection[str]) -> None:
    """Writes beside the final place, then swaps; a killed run leaves the old folder or the new one.

    Args:
        folder: final name, however long; the folder it stands in is created.
        write: fills the new, empty folder it is given.
        own: names in the folder that belong to what is replaced. Anything else that stands in an old folder is somebody
            else's and moves to the new one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over_folders(folder.parent)
    new = folder.with_name(temporary_name(_NEW))
    try:
        new.mkdir()
        write(new)
        _flush_all(new)
        swap_folder(new, folder, own)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def swap_folder(new: Path, folder: Path, own: Collection[str] = ()) -> None:
    """Puts `new` in the place of `folder`; when that fails, `folder` is as it was. `own`: see `write_whole_folder`.

    Raises:
        OSError: something cannot be renamed, or `folder` is a file, which is left alone.
    """
    wrapper = folder.with_name(temporary_name(_OLD))
    try:
        if folder.is_file():
            raise FileExistsError(errno.EEXIST, "a file is where a folder is to be", str(folder))
        if folder.exists():
            wrapper.mkdir()
            (wrapper / _OWN_NAMES).write_text(json.dumps(sorted(own)), encoding="utf-8")
            flush(wrapper / _OWN_NAMES)
            os.replace(folder, wrapper / folder.name)
        os.replace(new, folder)
        flush_folder(folder.parent)
    finally:
        _settle(wrapper)


def folders_aside(parent: Path) -> list[Path]:
    """Folders whose replacement was cut off: whole, but moved aside, and nothing has their name in `parent`."""
    wrappers = [path for path in _entries(parent) if path.name.startswith(TEMPORARY_MARK) and path.suffix == _OLD]
    return [aside for wrapper in wrappers for aside in _aside(wrapper) if not (parent / aside.name).exists()]


def remove_left_over_folders(parent: Path) -> int:
    """Tidies up after processes that were killed while they wrote a folder: they are dead, or that was over a day ago.

    What was never finished is removed, what was moved aside and not replaced gets its name back.

    Args:
        parent: where the folders lie; it alone, not what is below.

    Returns:
        How many were removed or put back. What cannot be looked at or removed stays.
    """
    done = 0
    with suppress(OSError), os.scandir(parent) as found:
        for entry in list(found):
            with suppress(OSError):
                if is_left_over(entry, _NEW) and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                    done += 1
                elif is_left_over(entry, _OLD) and entry.is_dir(follow_symlinks=False):
                    _settle(Path(entry.path))
                    done += 1
    return done


def _settle(wrapper: Path) -> None:
    """Puts what is aside back where its name is free, else deletes it, and the wrapper with it."""
    for aside in _aside(wrapper):
        folder = wrapper.with_name(aside.name)
        if folder.exists():
            _move_others(aside, folder, wrapper / _OWN_NAMES)
        else:
            os.replace(aside, folder)
            flush_folder(folder.parent)
    shutil.rmtree(wrapper, ignore_errors=True)


def _move_others(aside: Path, folder: Path, own_names: Path) -> None:
    """Moves what is somebody else's to the new folder. Without the list that was done, and deleting has begun."""
    if not own_names.exists():
        return
    own = json.loads(own_names.read_text(encoding="utf-8"))
    for path in _entries(aside):
        if path.name not in own and not (folder / path.name).exists():
            os.replace(path, folder / path.name)


def _aside(wrapper: Path) -> Iterator[Path]:
    return (path for path in _entries(wrapper) if path.name != _OWN_NAMES)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not there, or not a folder
        return []


def _flush_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            flush(path)
    flush_folder(folder)
