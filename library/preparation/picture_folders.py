"""The pictures of folders for tools that look at whole sets, and work on many of them at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from library.core.errors import Problems
from library.core.log import get_logger
from library.core.wording import some_of
from library.data.pictures.picture_kinds import (
    IMAGE_EXTENSIONS,
    list_images,
    other_pictures,
    system_path,
    why_not_read,
)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_log = get_logger(__name__)
_NAMES_TOLD = 3


@dataclass(frozen=True)
class PictureFolder:
    """A folder, and the names of the pictures directly in it, sorted by code point."""

    folder: Path
    names: Sequence[str]


def list_folders(named: Sequence[str], recursive: bool, problems: Problems) -> list[PictureFolder]:
    """The folders with pictures, in the order in which they are named, each once whatever leads to it.

    Args:
        named: folders as they stand on the command line.
        recursive: take the folders below as well, parents first, sorted by code point; hidden ones are left out.
        problems: receives what is wrong: no such folder, one that cannot be read, no pictures.
    """
    found: list[PictureFolder] = []
    seen: set[str] = set()
    for name in named:
        top = Path(name)
        if _place(top) in seen:
            continue
        before, complaints = len(found), len(problems)
        for folder in _walk(top, recursive, seen, problems):
            names = _pictures_in(folder, problems)
            if names:
                found.append(PictureFolder(folder, names))
        if len(found) == before and len(problems) == complaints:
            problems.add(*_no_pictures(top, [] if recursive else _folders_in(top), recursive))
    return found


def _walk(top: Path, recursive: bool, seen: set[str], problems: Problems) -> Iterator[Path]:
    """The folder and those below, each real place once; links in a circle end there."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        place = _place(folder)
        if place in seen:
            continue
        seen.add(place)
        yield folder
        if recursive:
            try:
                waiting += [folder / name for name in reversed(_folders_in(folder))]
            except OSError:  # told where its pictures are listed
                continue


def _pictures_in(folder: Path, problems: Problems) -> list[str]:
    try:
        names = list_images(folder)
        others = other_pictures(folder)
    except FileNotFoundError:
        problems.add(f"the folder does not exist (looked for {folder.absolute()})", str(folder), "check the path")
    except NotADirectoryError:
        problems.add("this is a file; a folder of pictures is expected", str(folder), "name the folder it lies in")
    except OSError as error:
        problems.add(f"cannot read the folder: {error.strerror}", str(folder), "name a folder that can be read")
    else:
        for reason in dict.fromkeys(map(why_not_read, others)):
            same = [name for name in others if why_not_read(name) == reason]
            told = some_of(same[:_NAMES_TOLD], len(same))
            _log.warning("%s: %d pictures are left out (%s): %s", folder, len(same), reason, told)
        return names
    return []


def _folders_in(folder: Path) -> list[str]:
    with os.scandir(system_path(folder)) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _place(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _no_pictures(top: Path, below: Sequence[str], recursive: bool) -> tuple[str, str, str]:
    if below:
        told = some_of(below[:_NAMES_TOLD], len(below))
        return f"no pictures directly in this folder; it holds the folders {told}", str(top), "give --recursive"
    where = "in this folder and those below" if recursive else "in this folder"
    return f"no pictures {where}", str(top), f"accepted are {' '.join(IMAGE_EXTENSIONS)}"


def in_order(work: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int) -> Iterator[ResultT]:
    """Results of work done by several threads, in the order of the items; few items are under way at a time.

    An exception in `work` comes out here; what has begun is ended, and nothing else begins.
    """
    waiting: deque[Future[ResultT]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
