"""Where every picture of the index goes: its bucket, its scaled size and its crop, in columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.core.sizes import Size
from library.data.buckets import place_columns
from library.data.index.columns import SharedColumns
from library.data.index.index import ImageIndex


@dataclass(frozen=True)
class Placements(SharedColumns):
    """Row = record number. `bucket` counts through `buckets`, which holds only the used shapes, dataset by dataset."""

    buckets: tuple[Size, ...]  # pixels
    bucket_dataset: tuple[int, ...]  # batches never mix datasets, so a shape used by two datasets is two buckets
    bucket: NDArray[np.int32]
    resized_width: NDArray[np.int32]
    resized_height: NDArray[np.int32]
    crop_left: NDArray[np.int32]
    crop_top: NDArray[np.int32]

    def bucket_size(self, record: int) -> Size:
        return self.buckets[int(self.bucket[record])]

    def resized_size(self, record: int) -> Size:
        return Size(int(self.resized_width[record]), int(self.resized_height[record]))

    def crop_box(self, record: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the training pixels within the scaled picture."""
        left, top, size = int(self.crop_left[record]), int(self.crop_top[record]), self.bucket_size(record)
        return left, top, left + size.width, top + size.height


def place_all(index: ImageIndex) -> Placements:
    """Places every picture by the resolution and bucketing of its dataset."""
    columns = {name: np.zeros(len(index), dtype=np.int32) for name in ("bucket", "width", "height", "left", "top")}
    buckets: list[Size] = []
    bucket_dataset: list[int] = []
    for number, dataset in enumerate(index.datasets):
        rows = np.flatnonzero(index.dataset == number)
        placed = place_columns(
            index.width[rows].astype(np.int64),
            index.height[rows].astype(np.int64),
            dataset.resolution,
            dataset.bucketing,
        )
        pairs = np.stack([placed.bucket_width, placed.bucket_height], axis=1)
        sizes, bucket_of_row = np.unique(pairs, axis=0, return_inverse=True)
        columns["bucket"][rows] = bucket_of_row.reshape(-1) + len(buckets)
        columns["width"][rows], columns["height"][rows] = placed.resized_width, placed.resized_height
        columns["left"][rows], columns["top"][rows] = placed.crop_left, placed.crop_top
        buckets += [Size(int(width), int(height)) for width, height in sizes]
        bucket_dataset += [number] * len(sizes)
    return Placements(
        buckets=tuple(buckets),
        bucket_dataset=tuple(bucket_dataset),
        bucket=columns["bucket"],
        resized_width=columns["width"],
        resized_height=columns["height"],
        crop_left=columns["left"],
        crop_top=columns["top"],
    )
