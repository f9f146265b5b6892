"""Finds the pictures that keys of metadata files name. One folder is one place, by whichever path it is reached."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from library.data.pictures.folders import real_place
from library.data.pictures.picture_kinds import list_images


class Place(NamedTuple):
    """Where a picture lies: the absolute path of its folder, and its file name."""

    folder: str
    name: str


class _Folder:
    """The pictures directly in one folder, by name and by stem."""

    def __init__(self, path: str) -> None:
        self._path = path

    @cached_property
    def names(self) -> frozenset[str]:
        try:
            return frozenset(list_images(Path(self._path)))
        except (OSError, ValueError):  # not there, or a name that the file system cannot have
            return frozenset()

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            found[name.rpartition(".")[0]].append(name)
        return dict(found)

    def matching(self, name: str) -> Sequence[str]:
        """A whole file name fits that file alone, also where it is another's stem."""
        return [name] if name in self.names else self._by_stem.get(name, ())


class PictureFinder:
    """Looks keys up; every folder is listed once.

    A folder that is reached by several paths (links, capitals where they do not matter) has one place all the same, and
    goes by the path by which it came first. A picture that is a link to another picture is a picture of its own.

    Args:
        bases: the folders from which keys count that are no full paths.
    """

    def __init__(self, bases: Sequence[Path]) -> None:
        self._spellings: dict[str, str] = {}  # of folders, by where they really are
        self._folders: dict[str, _Folder] = {}  # by spelling
        self._below: dict[str, tuple[str, ...]] = {}  # spellings by the folder part of keys
        self._here: dict[str, tuple[str, ...]] = {}  # the same, counted from the working folder
        self.bases = tuple(dict.fromkeys(self._spelling(from_root(base)) for base in bases))

    def know(self, folder: str, names: Iterable[str]) -> None:
        """Takes the pictures directly in a folder, given by its absolute path, from one who has listed it.

        From then on the folder goes by this path.
        """
        self._spellings[_place_of(folder)] = folder
        self._folders[folder] = known = _Folder(folder)
        known.names = frozenset(names)

    def find(self, key: str) -> list[Place]:
        """Every picture that the key fits: below the bases, or else from the working folder."""
        return self.find_below(key) or self.find_here(key)

    def find_below(self, key: str) -> list[Place]:
        """Every picture that the key fits as a path from the bases, or as a full path."""
        return self._find(key, self._folders_below)

    def find_here(self, key: str) -> list[Place]:
        """Every picture that the key fits as a path from the working folder, as the public tools write keys.

        A bare name is no such path: it would fit any picture that happens to lie there.
        """
        return self._find(key, self._folders_here)

    def only_here(self, key: str) -> bool:
        """Whether the key fits nothing below the bases, but from the working folder."""
        return bool(self.find_here(key)) and not self.find_below(key)

    def shortest_name(self, place: Place) -> str:
        """The name without its ending, where that leads to this picture and no other, or else the whole name."""
        stem = place.name.rpartition(".")[0]
        return stem if list(self._folder(place.folder).matching(stem)) == [place.name] else place.name

    def others_than(self, known: Mapping[Place, object]) -> tuple[str, ...]:
        """Pictures in the bases and in the folders of the known ones that are none of these; sorted by folder."""
        folders = {*self.bases, *(folder for folder, _ in known)}
        return tuple(
            name
            for folder in sorted(folders)
            for name in sorted(self._folder(folder).names)
            if Place(folder, name) not in known
        )

    def _find(self, key: str, folders_of: Callable[[str], tuple[str, ...]]) -> list[Place]:
        """With the slashes as they are, then all forward."""
        for spelling in dict.fromkeys((key, key.replace("\\", "/"))):
            part, name = os.path.split(spelling)
            found = [
                Place(folder, match) for folder in folders_of(part) for match in self._folder(folder).matching(name)
            ]
            if found:
                return found
        return []

    def _folders_below(self, part: str) -> tuple[str, ...]:
        """The folders that the folder part of a key may mean, from the bases or in full."""
        if part not in self._below:
            homes = ("",) if Path(part).is_absolute() else self.bases
            self._below[part] = self._joined(homes, part)
        return self._below[part]

    def _folders_here(self, part: str) -> tuple[str, ...]:
        if part not in self._here:
            is_relative = part != "" and not Path(part).is_absolute()
            self._here[part] = self._joined(("",), part) if is_relative else ()
        return self._here[part]

    def _joined(self, homes: Iterable[str], part: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._spelling(from_root(Path(home, part))) for home in homes))

    def _spelling(self, folder: str) -> str:
        return self._spellings.setdefault(_place_of(folder), folder)

    def _folder(self, path: str) -> _Folder:
        if path not in self._folders:
            self._folders[path] = _Folder(path)
        return self._folders[path]


def from_root(path: Path) -> str:
    """The path from the root of the disk, without `..`; links stay as they are, since names are told by them."""
    return os.path.normpath(path.absolute())


def _place_of(folder: str) -> str:
    try:
        return real_place(Path(folder))
    except ValueError:  # a name that the file system cannot have
        return folder
