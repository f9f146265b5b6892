"""Which pictures an epoch uses, and how often: repeats, fractions, regularisation in balance. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from library.core.errors import Problems
from library.core.randomness import NO_EPOCH, generator
from library.data.index.index import ImageIndex

IntColumn = NDArray[np.int64]

_FINEST = 10_000  # denominators of repeats up to this one are meant exactly
_MOST_USES = 1 << 28  # of an epoch; plans take some 32 bytes a use


@dataclass(frozen=True)
class Samples:
    """Uses of pictures: record numbers, and which use within the epoch each one is."""

    records: IntColumn
    repeats: IntColumn


@dataclass(frozen=True)
class _Rotation:
    """Pictures of a folder of which each epoch uses a share, in turn: after 1 / share epochs all have been used."""

    records: IntColumn  # in a fixed random order
    share: Fraction
    repeat: int  # the uses that each of them has in every epoch besides

    def first(self, epoch: int) -> int:
        """Uses before `epoch`."""
        return int(epoch * len(self.records) * self.share)

    def samples(self, epoch: int) -> Samples:
        turns = np.arange(self.first(epoch), self.first(epoch + 1)) % len(self.records)
        return Samples(self.records[turns], np.full(len(turns), self.repeat, dtype=np.int64))


class DatasetUses:
    """The uses of one dataset's pictures, epoch by epoch.

    Every training picture is used `num_repeats` times; of a fraction, all pictures have their turn over the epochs
    (0.25 is a quarter of them in each epoch). Beside them come as many regularisation uses, from a fixed list that goes
    on where the epoch before stopped.
    """

    def __init__(self, index: ImageIndex, dataset: int, seed: int) -> None:
        own = index.dataset == dataset
        self._whole = _uses(index, own & ~index.is_reg)
        self._rotations = _rotations(index, own & ~index.is_reg, seed)
        self._reg = _shuffled_reg_uses(index, own & index.is_reg, f"{dataset}", seed)

    @property
    def is_same_every_epoch(self) -> bool:
        return not len(self._reg.records) and not self._rotations

    @property
    def reg_uses(self) -> int:
        """Regularisation pictures times their repeats."""
        return len(self._reg.records)

    def training_uses_before(self, epoch: int) -> int:
        """Uses of training pictures in the epochs before `epoch`."""
        return epoch * len(self._whole.records) + sum(rotation.first(epoch) for rotation in self._rotations)

    def in_epoch(self, epoch: int) -> Samples:
        """Every use of an epoch."""
        parts = [self._whole, *(rotation.samples(epoch) for rotation in self._rotations)]
        if self.reg_uses:
            turns = np.arange(self.training_uses_before(epoch), self.training_uses_before(epoch + 1)) % self.reg_uses
            records = self._reg.records[turns]
            parts.append(Samples(records, _occurrences(records)))
        return join(parts)


def exact_repeats(num_repeats: float) -> Fraction:
    """The repeats that are meant: 1/3 where 0.3333333333333333 is written."""
    return Fraction(num_repeats).limit_denominator(_FINEST)


def check_uses(index: ImageIndex, problems: Problems) -> None:
    """Complains about folders of which an epoch would use less than one picture, and about epochs without end."""
    counts = np.bincount(np.asarray(index.subset), minlength=len(index.folders))
    uses = [int(count) * exact_repeats(subset.num_repeats) for count, subset in zip(counts, index.folders, strict=True)]
    for subset, count, used in zip(index.folders, counts, uses, strict=True):
        if count and used < 1 and not subset.is_validation:
            what = f"{subset.num_repeats:g} repeats of {count} pictures are less than one picture an epoch"
            problems.add(what, str(subset.home), f"give num_repeats of at least {1 / int(count):.4g}")
    if sum(uses) > _MOST_USES:
        what = f"an epoch would have {int(sum(uses))} uses, more than {_MOST_USES}"
        problems.add(what, "num_repeats", "give fewer repeats; a run may have as many epochs as it likes")


def join(parts: list[Samples]) -> Samples:
    """The uses of several lists behind one another."""
    return Samples(np.concatenate([p.records for p in parts]), np.concatenate([p.repeats for p in parts]))


def _uses(index: ImageIndex, chosen: NDArray[np.bool_]) -> Samples:
    """Each chosen picture as often as its whole repeats say, first uses first."""
    rows = np.flatnonzero(chosen)
    given, which = np.unique(np.asarray(index.repeats)[rows], return_inverse=True)
    whole = np.array([int(exact_repeats(repeats)) for repeats in given], dtype=np.int64)
    records = np.repeat(rows, whole[which])
    repeats = _occurrences(records)
    order = np.argsort(repeats, kind="stable")
    return Samples(records[order].astype(np.int64), repeats[order])


def _rotations(index: ImageIndex, chosen: NDArray[np.bool_], seed: int) -> list[_Rotation]:
    """One for each folder whose repeats have a fraction."""
    found = []
    for number, subset in enumerate(index.folders):
        repeats = exact_repeats(subset.num_repeats)
        rows = np.flatnonzero(chosen & (np.asarray(index.subset) == number))
        if repeats.denominator > 1 and len(rows):
            order = generator(seed, NO_EPOCH, f"{number}", "rotation").permutation(len(rows))
            found.append(_Rotation(rows[order].astype(np.int64), repeats % 1, int(repeats)))
    return found


def _shuffled_reg_uses(index: ImageIndex, chosen: NDArray[np.bool_], key: str, seed: int) -> Samples:
    """The fixed list of regularisation uses: every picture once, then the second uses, and so on; folders mixed."""
    uses = _uses(index, chosen)
    shuffle = generator(seed, NO_EPOCH, key, "order").permutation(len(uses.records))
    shuffle = shuffle[np.argsort(uses.repeats[shuffle], kind="stable")]
    return Samples(uses.records[shuffle], uses.repeats[shuffle])


def _occurrences(records: IntColumn) -> IntColumn:
    """For each entry how many equal ones stand before it."""
    order = np.argsort(records, kind="stable")
    in_order = records[order]
    is_first = np.concatenate([[True], in_order[1:] != in_order[:-1]])[: len(records)]
    first_of_run = np.maximum.accumulate(np.where(is_first, np.arange(len(records)), 0))
    occurrences = np.empty(len(records), dtype=np.int64)
    occurrences[order] = np.arange(len(records)) - first_of_run
    return occurrences
