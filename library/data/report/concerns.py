"""What of a run's pictures deserves a second look although it is no mistake."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from library.core.wording import some_of
from library.data.facts import folder_name
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.data.planner import Planner
from library.data.uses import Samples

HEAVY_CROP = 0.15  # share of a scaled picture's area

_NAMES_TOLD = 3


def uses_by_bucket(placements: Placements, uses: Samples) -> NDArray[np.int64]:
    """How many of the uses each bucket has."""
    return np.bincount(np.asarray(placements.bucket)[uses.records], minlength=len(placements.buckets))


def cropped_share(placements: Placements) -> NDArray[np.float64]:
    """For each picture the share of its scaled area, 0 to 1, that lies outside the even crop."""
    areas = np.array([size.area for size in placements.buckets], dtype=np.float64)[np.asarray(placements.bucket)]
    scaled = np.asarray(placements.resized_width, np.float64) * np.asarray(placements.resized_height, np.float64)
    return np.asarray(1 - areas / scaled)


def dataset_warnings(index: ImageIndex, placements: Placements, planner: Planner, dataset: int) -> Iterator[str]:
    """Sentences about a dataset: under-filled buckets, heavy crops, enlarged pictures, crops that cannot move."""
    rows = np.asarray(index.dataset) == dataset
    yield from _underfilled(index, placements, planner, dataset)
    yield from _heavy_crops(index, placements, rows, index.datasets[dataset].bucketing is not None)
    yield from _enlarged(index, placements, rows)
    yield from _idle_random_crops(index, placements, dataset)


def _underfilled(index: ImageIndex, placements: Placements, planner: Planner, dataset: int) -> Iterator[str]:
    batch_size = index.datasets[dataset].batch_size
    uses = uses_by_bucket(placements, planner.epoch_samples(0))
    own = [number for number, owner in enumerate(placements.bucket_dataset) if owner == dataset]
    small = sorted((number for number in own if 0 < uses[number] < batch_size), key=lambda number: int(uses[number]))
    if not small:
        return
    told = []
    for number in small[:_NAMES_TOLD]:
        found = np.flatnonzero(np.asarray(placements.bucket) == number)
        told.append(f"{placements.buckets[number]} ({counted(int(uses[number]), 'use')}: {first_names(index, found)})")
    have = "has" if len(small) == 1 else "have"
    yield (
        f"{counted(len(small), 'bucket')} {have} fewer uses an epoch than the batch size {batch_size}, "
        f"so batches are smaller: {some_of(told, len(small))}"
    )


def _heavy_crops(
    index: ImageIndex, placements: Placements, rows: NDArray[np.bool_], has_buckets: bool
) -> Iterator[str]:
    lost = cropped_share(placements)
    found = np.flatnonzero(rows & (lost > HEAVY_CROP))
    if not len(found):
        return
    worst = found[np.argsort(-lost[found], kind="stable")][:_NAMES_TOLD]
    names = [f"{index.names[int(record)]} ({lost[record]:.0%})" for record in worst]
    verb = "loses" if len(found) == 1 else "lose"
    yield (
        f"{counted(len(found), 'picture')} {verb} more than {HEAVY_CROP:.0%} of the area to the crop: "
        f"{some_of(names, len(found))}{'' if has_buckets else '; enable_bucket would keep more'}"
    )


def _enlarged(index: ImageIndex, placements: Placements, rows: NDArray[np.bool_]) -> Iterator[str]:
    wider = np.asarray(placements.resized_width) > np.asarray(index.width)
    higher = np.asarray(placements.resized_height) > np.asarray(index.height)
    found = np.flatnonzero((wider | higher) & rows)
    if len(found):
        is_small = "is smaller than its bucket and gets" if len(found) == 1 else "are smaller than their bucket and get"
        yield f"{counted(len(found), 'picture')} {is_small} enlarged: {first_names(index, found)}"


def _idle_random_crops(index: ImageIndex, placements: Placements, dataset: int) -> Iterator[str]:
    """Folders whose pictures fit their buckets exactly, so that no other place can be cut out of them."""
    exact = cropped_share(placements) == 0
    first = sum(len(earlier.subsets) for earlier in index.datasets[:dataset])
    for number, subset in enumerate(index.datasets[dataset].subsets, first):
        own = np.asarray(index.subset) == number
        looks = subset.augmentations
        if looks.random_crop and looks.face_crop_range is None and own.any() and exact[own].all():
            yield f"{folder_name(subset)}: random_crop has nothing to move, every picture fits its bucket exactly"


def first_names(index: ImageIndex, records: NDArray[np.int64]) -> str:
    """The names of the first pictures, and how many follow."""
    return some_of([index.names[int(record)] for record in records[:_NAMES_TOLD]], len(records))


def counted(count: int, thing: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
