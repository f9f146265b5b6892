"""Folders of pictures as people name them: what lies in each and in those below, and what is wrong with them."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from library.core.errors import Problems, printable
from library.core.log import get_logger
from library.core.wording import some_of
from library.data.pictures.picture_kinds import (
    IMAGE_EXTENSIONS,
    is_other_picture_name,
    is_picture_name,
    system_path,
    why_not_read,
)

_log = get_logger(__name__)
_NAMES_TOLD = 3


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, but for hidden files and folders; found without a call of the system for each file.

    Attributes:
        top: the folder that was named, of which this is one, or lies in it.
        folder: the folder itself.
        pictures: names of the pictures in it, sorted by code point.
        unread: names of pictures of kinds that are not read, sorted by code point.
        files: names of the other files with an ending that was asked for; links to nothing are among them.
        broken: which of `files` are links to nothing.
        endings: of the files that are left, and how many have each.
        below: names of the folders in it, sorted by code point.
        links: the same of links to folders.
    """

    top: str
    folder: Path
    pictures: Sequence[str]
    unread: Sequence[str]
    files: Collection[str]
    broken: Collection[str]
    endings: Mapping[str, int]
    below: Sequence[str]
    links: Sequence[str]


def list_folders(
    named: Iterable[str], recursive: bool, problems: Problems, endings: Sequence[str] = ()
) -> Iterator[Listing]:
    """The folders in the order in which they are named, each real place once, whatever leads there.

    Links to folders are followed after all real folders below the same named one, so that pictures have the path of
    their own folder where both lead to them. Pictures that are not read are told of, in a line for each folder.

    Args:
        named: folders as they stand on the command line.
        recursive: take the folders below as well, parents first, sorted by code point; hidden ones are left out.
        problems: receives what is wrong: no such folder, one that cannot be read, no pictures.
        endings: of other files that are listed, with the dot; "" for all.
    """
    taken: dict[str, str] = {}
    for name in named:
        if not name.strip():
            problems.add("a folder without a name", "DIR", "name a folder; . is the one you are in")
        elif real_place(Path(name)) not in taken:
            yield from _walk(name, recursive, problems, tuple(endings), taken)


def real_place(path: Path) -> str:
    """Where a path really leads; two that lead to one place have the same."""
    return os.path.normcase(os.path.realpath(path))


def why_not_listed(folder: Path, error: OSError) -> tuple[str, str, str]:
    """What is wrong with a folder that could not be read, where, and what to do."""
    if isinstance(error, FileNotFoundError):
        return f"the folder does not exist (looked for {folder.absolute()})", str(folder), "check the path"
    if isinstance(error, NotADirectoryError):
        return "this is a file; a folder of pictures is expected", str(folder), "name the folder it lies in"
    return f"cannot read the folder: {error.strerror}", str(folder), "name a folder that can be read"


def by_reason(names: Iterable[str]) -> dict[str, list[str]]:
    """Pictures that are not read, by the reason and what to do."""
    sorted_out: dict[str, list[str]] = {}
    for name in names:
        sorted_out.setdefault(why_not_read(name), []).append(name)
    return sorted_out


def _walk(
    top: str, recursive: bool, problems: Problems, endings: tuple[str, ...], taken: dict[str, str]
) -> Iterator[Listing]:
    """Goes through a folder that was named; `taken` has the real places of all folders, and which top they came by."""
    waiting, links = [Path(top)], deque[Path]()
    first: Sequence[str] | None = None  # the folders directly in it
    unread: list[str] = []  # as long as there are no pictures
    is_empty = True
    while waiting or links:  # no recursion: folders may lie deeper than Python's stack
        folder = waiting.pop() if waiting else links.popleft()
        place = real_place(folder)
        if place in taken:
            is_empty = is_empty and taken[place] == top  # else its pictures were taken under another name
            continue
        taken[place] = top
        listing = _read(top, folder, endings, problems)
        if listing is None:
            is_empty = False  # what is wrong is told
            continue
        if first is None:
            first = sorted([*listing.below, *listing.links])
        if recursive:
            waiting += [folder / name for name in reversed(listing.below)]
            links += [folder / name for name in listing.links]
        is_empty = is_empty and not listing.pictures
        unread += listing.unread if is_empty else ()
        _tell_unread(listing)
        yield listing
    if is_empty:
        what, fix = _no_pictures(first or (), recursive)
        problems.add("; ".join([what, *_left_out(unread)]), top, fix)


@dataclass
class _Found:
    """Names of a folder as they come; see `Listing`."""

    pictures: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    endings: Counter[str] = field(default_factory=Counter)
    below: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def add(self, entry: os.DirEntry[str], endings: tuple[str, ...]) -> None:
        name = entry.name
        if name.startswith("."):
            return
        if _is_folder(entry):
            (self.links if entry.is_symlink() else self.below).append(name)
        elif is_picture_name(name):
            self.pictures.append(name)
        elif is_other_picture_name(name):
            self.unread.append(name)
        elif os.path.normcase(name).endswith(endings):
            self.files.add(name)
            if _leads_nowhere(entry):
                self.broken.add(name)
        else:
            self.endings[os.path.splitext(name)[1]] += 1  # noqa: PTH122  a path for each name takes much longer


def _read(top: str, folder: Path, endings: tuple[str, ...], problems: Problems) -> Listing | None:
    """None and a complaint when the folder is missing or cannot be read."""
    found, endings = _Found(), tuple(map(os.path.normcase, endings))
    try:
        with os.scandir(system_path(folder)) as entries:
            for entry in entries:
                found.add(entry, endings)
    except OSError as error:
        problems.add(*why_not_listed(folder, error))
        return None
    for names in (found.pictures, found.unread, found.below, found.links):
        names.sort()
    return Listing(top, folder, **vars(found))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and not entry.is_file()
    except OSError:
        return True


def _tell_unread(listing: Listing) -> None:
    if parts := _left_out(listing.unread):
        _log.warning("%s", printable(f"{listing.folder}: {'; '.join(parts)}"))


def _left_out(unread: Iterable[str]) -> list[str]:
    """What is told of pictures that are not read, for each reason."""
    return [
        f"{len(names)} pictures are left out ({reason}): {some_of(names[:_NAMES_TOLD], len(names))}"
        for reason, names in by_reason(unread).items()
    ]


def _no_pictures(below: Sequence[str], recursive: bool) -> tuple[str, str]:
    if below and not recursive:
        told = some_of(below[:_NAMES_TOLD], len(below))
        return f"no pictures directly in this folder; it holds the folders {told}", "give --recursive"
    where = "in this folder and those below" if recursive else "in this folder"
    return f"no pictures {where}", f"accepted are {' '.join(IMAGE_EXTENSIONS)}"
