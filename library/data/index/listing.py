"""Which pictures a subset names, before any of them is opened. Each folder is walked once."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from library.core.errors import Problems
from library.core.wording import some_of
from library.data.description.config import SubsetConfig
from library.data.index.metadata import find_pictures, read_metadata, told_from_here
from library.data.index.within import entries_within
from library.data.pictures.folders import by_reason, why_not_listed
from library.data.pictures.images import IMAGE_EXTENSIONS, list_images, other_pictures
from library.data.pictures.picture_kinds import is_picture_name, system_path

_NAMES_TOLD = 5


class Stamp(NamedTuple):
    """What tells without opening a file whether it changed: bytes, and nanoseconds of its last change."""

    size: int
    mtime_ns: int


NO_STAMP = Stamp(-1, -1)  # of no file


class FolderFiles:
    """The pictures directly in a folder and the files that may be their captions.

    Args:
        path: the folder.
        endings: of caption files, with the dot.
        with_stamps: ask for size and time of each file as well, which takes a call of the system for each.

    Raises:
        OSError: when the folder cannot be read.
    """

    def __init__(self, path: Path, endings: Sequence[str], with_stamps: bool) -> None:
        pictures, stamps = list[str](), _Stamps()
        self._captions: dict[str, int] = {}  # names, and numbers of their stamps
        self._caption_stamps = _Stamps()
        caption_endings = tuple(endings)
        with os.scandir(system_path(path)) as entries:
            for entry in entries:
                is_picture = is_picture_name(entry.name)
                if not (is_picture or entry.name.endswith(caption_endings)) or not _is_file(entry):
                    continue
                if is_picture:
                    pictures.append(entry.name)
                else:
                    self._captions[entry.name] = len(self._caption_stamps.sizes)
                if with_stamps:
                    (stamps if is_picture else self._caption_stamps).add(entry)
        order = sorted(range(len(pictures)), key=pictures.__getitem__)  # by code point: every platform agrees
        self.pictures = [pictures[number] for number in order]
        self._picture_stamps = stamps.rearranged(order) if with_stamps else stamps

    def __contains__(self, name: object) -> bool:
        """Whether a caption file of that name is there."""
        return name in self._captions

    def picture_stamp(self, name: str) -> Stamp:
        """Of a picture; `NO_STAMP` where it is not there, and where stamps were not asked for."""
        number = bisect_left(self.pictures, name)
        is_there = number < len(self.pictures) and self.pictures[number] == name
        return self._picture_stamps.get(number) if is_there else NO_STAMP

    def caption_stamp(self, name: str) -> Stamp:
        """The same of a caption file."""
        number = self._captions.get(name)
        return NO_STAMP if number is None else self._caption_stamps.get(number)


class _Stamps:
    """Many stamps in two arrays."""

    def __init__(self) -> None:
        self.sizes, self.times = array("q"), array("q")

    def add(self, entry: os.DirEntry[str]) -> None:
        try:
            found = entry.stat()
            stamp = Stamp(found.st_size, found.st_mtime_ns)
        except OSError:  # a link to nothing
            stamp = NO_STAMP
        self.sizes.append(stamp.size)
        self.times.append(stamp.mtime_ns)

    def get(self, number: int) -> Stamp:
        return Stamp(self.sizes[number], self.times[number]) if number < len(self.sizes) else NO_STAMP

    def rearranged(self, order: Sequence[int]) -> _Stamps:
        arranged = _Stamps()
        arranged.sizes.extend(self.sizes[number] for number in order)
        arranged.times.extend(self.times[number] for number in order)
        return arranged


@dataclass(frozen=True)
class Listing:
    """The pictures of a subset.

    Attributes:
        root: the folder from which names count.
        names: paths of the pictures from there, with forward slashes, sorted.
        captions: of each picture, where a metadata file holds them.
        folders: what lies in each folder of the pictures, by its path from the root, "" for the root.
    """

    root: Path
    names: Sequence[str]
    captions: Sequence[str | None] | None
    folders: Mapping[str, FolderFiles]


def list_pictures(subset: SubsetConfig, problems: Problems, notes: list[str]) -> Listing:
    """Finds the pictures of a subset.

    Args:
        subset: the folder, or metadata file.
        problems: receives what is wrong: no such folder, no pictures, mistakes in the metadata file.
        notes: receives what is no mistake: pictures that are not trained.
    """
    if subset.metadata_file is not None:
        return _list_metadata(subset, subset.metadata_file, problems, notes)
    files = _read_folder(subset.home, subset, problems)
    if files is None:
        return Listing(subset.home, (), None, {})
    if not files.pictures:
        problems.add(_describe_empty(subset.home), str(subset.home), f"accepted are {' '.join(IMAGE_EXTENSIONS)}")
    notes += _describe_others(subset.home)
    return Listing(subset.home, files.pictures, None, {"": files})


def _list_metadata(subset: SubsetConfig, metadata_file: Path, problems: Problems, notes: list[str]) -> Listing:
    nothing = Listing(subset.home, (), (), {})
    if subset.image_dir is not None and not subset.image_dir.is_dir():
        _read_folder(subset.image_dir, subset, problems)  # which tells why
        return nothing
    texts = read_metadata(metadata_file, problems)
    if subset.only_within and subset.image_dir is not None:
        texts = entries_within(texts, subset.image_dir)
    found = find_pictures(texts, metadata_file, subset.image_dir, problems)
    if not found.pictures:
        return nothing
    if found.without_entry:
        what = f"{len(found.without_entry)} pictures in its folders have no entry and are not trained"
        notes.append(f"{metadata_file}: {what}: {_some(found.without_entry)}")
    if found.from_here:
        notes.append(f"{metadata_file}: {told_from_here(found.from_here)}")
    names, captions = zip(*found.pictures, strict=True)
    folders: dict[str, FolderFiles] = {}
    for part in {name.rpartition("/")[0] for name in names}:
        files = _read_folder(found.root / part, subset, problems)
        if files is not None:
            folders[part] = files
    return Listing(found.root, names, captions, folders)


def _read_folder(folder: Path, subset: SubsetConfig, problems: Problems) -> FolderFiles | None:
    """What lies in a folder; None and a complaint when it is missing or cannot be read."""
    try:
        return FolderFiles(folder, subset.caption_extensions, subset.cache_info)
    except OSError as error:
        problems.add(*why_not_listed(folder, error))
        return None


def _describe_others(folder: Path) -> list[str]:
    """What is told of pictures of kinds that are not read."""
    return [
        f"{folder}: {len(names)} pictures are not trained ({reason}): {_some(names)}"
        for reason, names in by_reason(other_pictures(folder)).items()
    ]


def _describe_empty(folder: Path) -> str:
    entries = sorted(folder.iterdir())
    files = [entry.name for entry in entries if not entry.is_dir()]
    below = [entry.name for entry in entries if entry.is_dir() and list_images(entry)]
    if below:
        return f"no pictures directly in this folder; they lie in its folders {_some(below)}, each needs its own subset"
    return f"no pictures in this folder; it holds {_some(files)}" if files else "the folder is empty"


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Files and links to them; also links to nothing, so that they are told when they are opened."""
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:  # a link in a circle
        return True


def _some(names: Sequence[str]) -> str:
    return some_of(list(names[:_NAMES_TOLD]), len(names))
