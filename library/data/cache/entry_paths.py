"""Where the cache files of pictures lie: beside them, one name for each, whatever the pictures are called."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from library.core.atomic_io import remove_left_overs
from library.data.index.index import ImageIndex
from library.data.index.index_cache import FILE_STEM

_ENDING = ".npz"
_TEXTS = ".te"
_DERIVED = re.compile(r"\.(v\d+|te)$", re.IGNORECASE)  # what names of a picture's further files end in


class EntryPaths:
    """Where each picture's latents and text states lie: beside it as STEM.npz, STEM.v1.npz, … and STEM.te.npz.

    Pictures of one folder that share a stem (a.png, a.jpg) have the whole name in front of the ending, and so do those
    whose stem looks like that of a further file (a.v1.png) or of the file of `--cache_info`. A picture that is used
    more than once, for example at two resolutions, has STEM.npz, STEM.2.npz, …, in the order of the datasets. Only
    names that are not simply STEM.npz are kept, so that a million pictures need no object each.
    """

    def __init__(self, index: ImageIndex) -> None:
        self._index = index
        self._unusual = _unusual_stems(index)

    def __getitem__(self, record: int) -> Path:
        return self.latents(record)

    def latents(self, record: int, variant: int = 0) -> Path:
        """The file with the latents of one variant of a picture."""
        return self._path(record, f".v{variant}" if variant else "")

    def texts(self, record: int) -> Path:
        """The file with the text states of a picture's caption."""
        return self._path(record, _TEXTS)

    def folders(self) -> list[Path]:
        """Every folder with files of these, once for each way to reach it."""
        index = self._index
        found = {
            (subset, _split(name)[0]): None
            for name, subset in zip(index.names, np.asarray(index.subset).tolist(), strict=True)
        }
        return [index.roots[subset] / below for subset, below in found]

    def _path(self, record: int, addition: str) -> Path:
        index = self._index
        below, own = _split(index.names[record])
        stem = self._unusual.get(record) or _stem(own)
        return index.roots[int(index.subset[record])] / f"{below}{stem}{addition}{_ENDING}"


def remove_temporaries(paths: EntryPaths) -> int:
    """Removes cache files that killed processes have left unfinished; returns how many there were."""
    return sum(remove_left_overs(folder, _ENDING) for folder in paths.folders())


class _Stems(NamedTuple):
    """A number for each picture's folder and stem: equal stems have equal numbers, without regard to capitals."""

    folder: NDArray[np.int64]
    stem: NDArray[np.int64]
    looks_derived: NDArray[np.bool_]


def _unusual_stems(index: ImageIndex) -> dict[int, str]:
    """The beginnings of the file names of pictures where that is not simply the picture's stem."""
    stems = _number_stems(index)
    order = np.argsort(stems.stem, kind="stable")
    ordered = stems.stem[order]
    equals_next = np.append(ordered[1:] == ordered[:-1], False) if len(ordered) else np.zeros(0, dtype=np.bool_)
    in_company = np.zeros(len(index), dtype=np.bool_)
    in_company[order] = equals_next | np.append(False, equals_next[:-1])[: len(ordered)]
    special = np.flatnonzero(in_company | stems.looks_derived)
    taken = set(stems.stem[~(in_company | stems.looks_derived)].tolist()) if len(special) else set()
    by_folder: dict[int, list[int]] = defaultdict(list)
    for record in special.tolist():
        by_folder[int(stems.folder[record])].append(record)
    unusual: dict[int, str] = {}
    for folder, records in by_folder.items():
        unusual.update(_name_in_folder(index, folder, records, taken))
    return unusual


def _number_stems(index: ImageIndex) -> _Stems:
    folder_of, stem_of = np.zeros(len(index), dtype=np.int64), np.zeros(len(index), dtype=np.int64)
    looks_derived = np.zeros(len(index), dtype=np.bool_)
    folders: dict[tuple[int, str], int] = {}
    real: dict[str, int] = {}  # two subsets may reach one folder by different paths
    subsets = np.asarray(index.subset)
    for record, (name, subset) in enumerate(zip(index.names, subsets.tolist(), strict=True)):
        below, own = _split(name)
        reached = subset, below
        if reached not in folders:
            path = os.path.realpath(index.roots[subset] / below)
            folders[reached] = real.setdefault(path, len(real))
        stem = _stem(own)
        folder_of[record] = folders[reached]
        stem_of[record] = _number(folders[reached], stem)
        looks_derived[record] = _looks_derived(stem)
    return _Stems(folder_of, stem_of, looks_derived)


def _split(name: str) -> tuple[str, str]:
    """The folders in a picture's name, with the separator behind them, and the file's own name."""
    own = os.path.basename(name)  # noqa: PTH119  # a million times: objects of pathlib would take seconds
    return name[: len(name) - len(own)], own


def _stem(own: str) -> str:
    """A file's name without its last ending, as pathlib has it."""
    return own.rpartition(".")[0] or own


def _looks_derived(stem: str) -> bool:
    if "." in stem and _DERIVED.search(stem) is not None:
        return True
    return stem[: len(FILE_STEM)].casefold() == FILE_STEM  # --cache_info has its file there


def _number(folder: int, stem: str) -> int:
    """Stands for a stem in a folder while this object is made; some disks see A.npz and a.npz as one file."""
    return hash((folder, stem.casefold()))


def _name_in_folder(index: ImageIndex, folder: int, records: Sequence[int], taken: set[int]) -> dict[int, str]:
    """Distinct beginnings for pictures that share stems; `taken` are the numbers of those that others have."""
    names = {record: _split(index.names[record])[1] for record in records}
    sharing = Counter(_stem(name).casefold() for name in set(names.values()))
    unusual, left = {}, []
    for record, name in names.items():
        stem = _stem(name)
        takes_whole_name = sharing[stem.casefold()] > 1 or _looks_derived(stem)
        if takes_whole_name or _number(folder, stem) in taken:
            left.append((record, name if takes_whole_name else stem))
        else:
            taken.add(_number(folder, stem))
    for record, base in left:
        unusual[record] = next(free for free in _candidates(base) if _number(folder, free) not in taken)
        taken.add(_number(folder, unusual[record]))
    return unusual


def _candidates(base: str) -> Iterable[str]:
    yield base
    yield from (f"{base}.{number}" for number in count(2))
