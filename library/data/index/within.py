"""Which entries of a metadata file belong to one folder: by their keys alone, whether the pictures are there or not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import TypeVar

ValueT = TypeVar("ValueT")


def entries_within(entries: Mapping[str, ValueT], folder: Path) -> dict[str, ValueT]:
    """The entries whose pictures lie in a folder or below it.

    Args:
        entries: by keys of a metadata file: stems, paths from the folder, full paths.
        folder: the folder; links on the way to it do not matter.
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
        self._root = _real(folder)
        self._known: dict[str, bool] = {}  # by the folder part of keys

    def __call__(self, key: str) -> bool:
        # backslashes are part of a name on some systems, and what parts folders on others
        return any(self._holds(spelling) for spelling in dict.fromkeys((key, key.replace("\\", "/"))))

    def _holds(self, spelling: str) -> bool:
        if is_full_path(spelling) and not Path(spelling).is_absolute():
            return False  # of another system
        part = os.path.split(spelling)[0]
        if part not in self._known:
            place = _real(self._folder / part)
            self._known[part] = place == self._root or place.startswith(os.path.join(self._root, ""))  # noqa: PTH118
        return self._known[part]


def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))
