"""Pictures that no epoch uses, so that a loss on them tells how the model does on what it was never shown.

They move into datasets of their own behind those of the training, and their subsets lose everything that changes from
use to use. So the training is the one that it would be without these pictures, to the last bit, and caches, buckets and
reports treat them as what they are: pictures with one look and one caption.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from library.core.errors import Problems
from library.core.randomness import NO_EPOCH, generator
from library.core.wording import some_of
from library.data.description.config import DatasetConfig, SubsetConfig
from library.data.index.index import ImageIndex

WHOLE = 1.0  # the `validation_split` of a subset that is there for validation alone

_KEY = "validation_split"
_NAMES_TOLD = 3

Rows = NDArray[np.bool_]


def hold_out(index: ImageIndex, seed: int, problems: Problems) -> ImageIndex:
    """The index with the pictures that `validation_split` asks for held out, see `ImageIndex.is_validation`.

    Of a share the rounded number is held out. Which ones depends on the seed and their names alone: pictures that are
    added move few others to the other side, and a picture at two resolutions is held out at both.

    Args:
        index: as it was built; row numbers stay.
        seed: of the choice.
        problems: takes shares that leave nothing on one of the sides.
    """
    if not any(subset.validation_split for subset in index.folders):
        return index
    chosen, notes = np.zeros(len(index), dtype=np.bool_), list[str]()
    for number, subset in enumerate(index.folders):
        rows = np.flatnonzero(np.asarray(index.subset) == number)
        count = int(subset.validation_split * len(rows) + 0.5)
        if subset.validation_split < WHOLE:
            _judge_share(subset, count, len(rows), problems, notes)
            rows = _drawn(index, rows, count, seed)
        chosen[rows] = True
    _judge_sides(index, chosen, problems)
    notes += _trained_as_well(index, chosen)
    return _regroup(replace(index, notes=(*index.notes, *notes)), chosen)


def _judge_share(subset: SubsetConfig, count: int, total: int, problems: Problems, notes: list[str]) -> None:
    asked = f"{_KEY} {subset.validation_split:g} of {total} pictures"
    if subset.validation_split and not count:
        notes.append(f"{subset.home}: {asked} is less than one, so none is held out there")
    elif count and count == total:
        fix = "lower it, or give 1.0 to a subset whose pictures are all for validation"
        problems.add(f"{asked} holds all of them out", str(subset.home), fix)


def _judge_sides(index: ImageIndex, chosen: Rows, problems: Problems) -> None:
    """Neither side may be empty, and regularisation needs pictures to be in balance with."""
    if not chosen.any():
        problems.add(f"{_KEY} is so small that no picture is held out", _KEY, "raise it, or remove it")
    trained, is_reg = ~chosen & ~np.asarray(index.is_reg), np.asarray(index.is_reg)
    if not trained.any():
        what = "every picture is held out for validation, so nothing would be learned"
        problems.add(what, _KEY, "lower it, or give 1.0 only to the subsets that are for validation")
        return
    for number in range(len(index.datasets)):
        own = np.asarray(index.dataset) == number
        if (own & is_reg).any() and not (own & trained).any():
            what = f"all pictures of dataset {number + 1} but its regularisation pictures are held out for validation"
            problems.add(what, _KEY, "lower it, or remove the regularisation pictures there")


def _drawn(index: ImageIndex, rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """The `count` rows with the lowest draws."""
    if not count:
        return rows[:0]
    draws = [generator(seed, NO_EPOCH, index.names[int(row)], "validation").random() for row in rows]
    return rows[np.argsort(np.array(draws), kind="stable")[:count]]


def _trained_as_well(index: ImageIndex, chosen: Rows) -> list[str]:
    """Pictures that another subset trains tell nothing about what the model was never shown."""
    if len(index.folders) < 2:
        return []
    roots = [os.path.realpath(root) for root in index.roots]
    subsets, twins = np.asarray(index.subset).tolist(), list[str]()
    paths = [os.path.join(roots[subset], name) for subset, name in zip(subsets, index.names, strict=True)]  # noqa: PTH118
    trained = {path for path, is_held_out in zip(paths, chosen.tolist(), strict=True) if not is_held_out}
    twins = [index.names[row] for row in np.flatnonzero(chosen).tolist() if paths[row] in trained]
    if not twins:
        return []
    names = some_of(twins[:_NAMES_TOLD], len(twins))
    what = f"{len(twins)} validation pictures are trained in another subset"
    return [f"warning: {what}, so their loss tells nothing about pictures that the model never saw: {names}"]


@dataclass
class _Numbering:
    """The new datasets in their order, and the new numbers by the old ones."""

    datasets: list[DatasetConfig]
    dataset: NDArray[np.int32]
    subset: NDArray[np.int32]
    sources: list[int]  # of the new subsets: their old numbers

    def add(self, old: int, dataset: DatasetConfig, numbers: Sequence[int], subsets: Sequence[SubsetConfig]) -> None:
        """Appends a dataset with those of its subsets; without any there is none."""
        if not subsets:
            return
        self.dataset[old] = len(self.datasets)
        self.datasets.append(replace(dataset, subsets=tuple(subsets)))
        for number in numbers:
            self.subset[number] = len(self.sources)
            self.sources.append(number)


def _regroup(index: ImageIndex, chosen: Rows) -> ImageIndex:
    """The index with the chosen pictures in datasets of their own, behind the others and of the same shapes."""
    folders, old_subset, old_dataset = index.folders, np.asarray(index.subset), np.asarray(index.dataset)
    held_out = np.bincount(old_subset, weights=chosen, minlength=len(folders)) > 0
    is_whole = [subset.validation_split >= WHOLE for subset in folders]
    datasets, sources = list[DatasetConfig](), list[int]()
    tables = []
    for of_validation in (False, True):
        blank = [np.zeros(count, dtype=np.int32) for count in (len(index.datasets), len(folders))]
        table = _Numbering(datasets, blank[0], blank[1], sources)
        first = 0
        for number, dataset in enumerate(index.datasets):
            own = range(first, first + len(dataset.subsets))
            first = own.stop
            wanted = [old for old in own if (held_out[old] if of_validation else not is_whole[old])]
            subsets = [folders[old].for_validation() if of_validation else folders[old] for old in wanted]
            table.add(number, dataset, wanted, subsets)
        tables.append(table)
    training, validation = tables
    return replace(
        index,
        datasets=tuple(datasets),
        subset=np.where(chosen, validation.subset[old_subset], training.subset[old_subset]),
        dataset=np.where(chosen, validation.dataset[old_dataset], training.dataset[old_dataset]),
        repeats=np.where(chosen, 0.0, index.repeats),
        loss_weight=np.where(chosen, np.float32(0), index.loss_weight),
        roots=tuple(index.roots[old] for old in sources),
    )
