"""Folders of pictures: what lies in them, and in those below."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.core.errors import Problems
from library.data.pictures.picture_kinds import IMAGE_EXTENSIONS, is_picture_name, system_path

_BELOW_TOLD = 3


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, found without a call of the system for each file.

    Attributes:
        folder: the folder.
        pictures: names of the pictures in it, sorted by code point.
        texts: names of the files with an ending that was asked for, as the system compares them (`os.path.normcase`).
        below: names of the folders in it, but for hidden ones, sorted by code point.
    """

    folder: Path
    pictures: Sequence[str]
    texts: Container[str]
    below: Sequence[str]


def list_folders(
    named: Sequence[str], endings: Sequence[str], recursive: bool, problems: Problems
) -> Iterator[Listing]:
    """The folders in the order in which they are named, each once however often it is named.

    Args:
        named: folders as they stand on the command line.
        endings: of the texts that are told of.
        recursive: take the folders below as well, parents first, sorted by code point. Links to folders are followed,
            but no folder is entered twice.
        problems: receives what is wrong: no such folder, one that cannot be read, no pictures.
    """
    seen: dict[str, int] = {}
    for number, name in enumerate(named):
        if name.strip():
            yield from _list_one(_Walk(number, Path(name), tuple(endings), recursive), seen, problems)
        else:
            problems.add("a folder without a name", "DIR", "name a folder; . is the one you are in")


@dataclass(frozen=True)
class _Walk:
    """One folder that was named, the how-manieth, and what is asked of it; see `list_folders`."""

    number: int
    top: Path
    endings: tuple[str, ...]
    recursive: bool


def _list_one(walk: _Walk, seen: dict[str, int], problems: Problems) -> Iterator[Listing]:
    """Goes through a named folder; `seen` has the real places of all folders, and which walk took them."""
    if _place(walk.top) in seen:
        return
    waiting, is_empty, top_below = [walk.top], True, list[str]()
    while waiting:  # no recursion: folders may lie deeper than Python's stack
        folder = waiting.pop()
        place = _place(folder)
        if place in seen:
            is_empty = is_empty and seen[place] == walk.number  # else its pictures were taken under another name
            continue
        seen[place] = walk.number
        listing = _read(folder, walk.endings, problems)
        if listing is None:
            if folder == walk.top:
                return
            continue
        if folder == walk.top:
            top_below += listing.below
        if walk.recursive:
            waiting += [folder / name for name in reversed(listing.below)]
        is_empty = is_empty and not listing.pictures
        yield listing
    if is_empty:
        problems.add(*_no_pictures(walk.top, top_below, walk.recursive))


def _place(folder: Path) -> str:
    return os.path.normcase(os.path.realpath(folder))


def _read(folder: Path, endings: tuple[str, ...], problems: Problems) -> Listing | None:
    """None and a complaint when the folder is missing or cannot be read."""
    pictures, texts, below = list[str](), set[str](), list[str]()
    endings = tuple(map(os.path.normcase, endings))
    try:
        with os.scandir(system_path(folder)) as entries:
            for entry in entries:
                is_text = os.path.normcase(entry.name).endswith(endings)
                if _is_folder(entry):
                    if not entry.name.startswith("."):
                        below.append(entry.name)
                elif is_picture_name(entry.name):
                    pictures.append(entry.name)
                elif is_text and not _leads_nowhere(entry):
                    texts.add(os.path.normcase(entry.name))
    except FileNotFoundError:
        problems.add(f"the folder does not exist (looked for {folder.absolute()})", str(folder), "check the path")
    except NotADirectoryError:
        problems.add("this is a file; a folder of pictures is expected", str(folder), "name the folder it lies in")
    except OSError as error:
        problems.add(f"cannot read the folder: {error.strerror}", str(folder), "name a folder that can be read")
    else:
        return Listing(folder, sorted(pictures), texts, sorted(below))
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to no file; a text that is written takes its place."""
    try:
        return entry.is_symlink() and not entry.is_file()
    except OSError:
        return True


def _no_pictures(top: Path, below: Sequence[str], recursive: bool) -> tuple[str, str, str]:
    if below and not recursive:
        names = ", ".join(below[:_BELOW_TOLD]) + (", …" if len(below) > _BELOW_TOLD else "")
        return f"no pictures directly in this folder; it holds the folders {names}", str(top), "give --recursive"
    where = "in this folder and those below" if recursive else "in this folder"
    return f"no pictures {where}", str(top), f"accepted are {' '.join(IMAGE_EXTENSIONS)}"
