"""Which entries of a metadata file belong to one folder: by their keys, whether the pictures are there or not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from library.data.index.finder import PictureFinder, from_root
from library.data.pictures.folders import real_place

ValueT = TypeVar("ValueT")


def entries_within(entries: Mapping[str, ValueT], folder: Path) -> dict[str, ValueT]:
    """The entries whose pictures lie in a folder or below it.

    Args:
        entries: by keys of a metadata file: stems, paths from the folder, full paths; a path that fits nothing in the
            folder counts from the working folder where it leads to a picture, or to a folder that only lies there.
        folder: the folder; links on the way to it do not matter, and links in it lead to what lies in it.
    """
    within = _Within(folder)
    return {key: value for key, value in entries.items() if within(key)}


def is_full_path(key: str) -> bool:
    """Whether a key is a full path, here or on another system."""
    return key.startswith("/") or PureWindowsPath(key).is_absolute()


class _Within:
    """Asks for each folder once where it really is: a million keys have few."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._roots = _written(folder), real_place(folder)
        self._is_working_folder = real_place(Path()) == self._roots[1]
        self._finder = PictureFinder([folder])
        self._known: dict[str, bool] = {}  # folders, by their path
        self._is_there: dict[str, tuple[bool, bool]] = {}  # see `_counts_from_here`

    def __call__(self, key: str) -> bool:
        # backslashes are part of a name on some systems, and what parts folders on others
        spellings = list(dict.fromkeys((key, key.replace("\\", "/"))))
        for part in (os.path.split(spelling)[0] for spelling in spellings):
            if part and self._counts_from_here(key, part):
                return self._is_within(from_root(Path(part)))
        return any(self._holds(spelling) for spelling in spellings)

    def _holds(self, spelling: str) -> bool:
        if is_full_path(spelling) and not Path(spelling).is_absolute():
            return False  # of another system
        return self._is_within(os.path.split(spelling)[0])

    def _counts_from_here(self, key: str, part: str) -> bool:
        """Whether a path counts from the working folder, as `PictureFinder.find` takes it. `part` is its folder."""
        if part not in self._is_there:
            here = not is_full_path(part) and not self._is_working_folder and _is_folder(Path(part))
            self._is_there[part] = _is_folder(self._folder / part), here
        below, here = self._is_there[part]
        return here and (self._finder.only_here(key) if below else not self._finder.find_below(key))

    def _is_within(self, part: str) -> bool:
        if part not in self._known:
            place = self._folder / part
            try:
                self._known[part] = any(
                    found == root or found.startswith(os.path.join(root, ""))  # noqa: PTH118
                    for found, root in zip((_written(place), real_place(place)), self._roots, strict=True)
                )
            except ValueError:  # a name that the file system cannot have
                self._known[part] = False
        return self._known[part]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _written(path: Path) -> str:
    """Where a path leads as it is written, links unresolved."""
    return os.path.normcase(from_root(path))
