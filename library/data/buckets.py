"""Bucket sizes and where a picture goes: pure integer arithmetic on widths and heights.

A bucket is one picture shape; all pictures of a batch share it. No bucket has more pixels than the training resolution,
which bounds the memory of a batch (the idea is NovelAI's aspect ratio bucketing, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.core.sizes import Size

IntColumn = NDArray[np.int64]


@dataclass(frozen=True)
class BucketLimits:
    """The shapes buckets may have, in pixels; with `no_upscale` pictures set them and the limits have no part."""

    min_size: int
    max_size: int
    step: int
    no_upscale: bool = False


@dataclass(frozen=True)
class Placement:
    """How one picture becomes training pixels: scale to `resized`, cut `bucket` out at `crop` (left, top)."""

    bucket: Size
    resized: Size
    crop: tuple[int, int]


@dataclass(frozen=True)
class PlacementColumns:
    """The placements of many pictures, one row each; all in pixels."""

    bucket_width: IntColumn
    bucket_height: IntColumn
    resized_width: IntColumn
    resized_height: IntColumn

    @property
    def crop_left(self) -> IntColumn:
        return (self.resized_width - self.bucket_width) // 2

    @property
    def crop_top(self) -> IntColumn:
        return (self.resized_height - self.bucket_height) // 2


def make_buckets(resolution: Size, limits: BucketLimits) -> list[Size]:
    """The bucket sizes for a training resolution, sorted by width and height.

    For each width from the smallest to the largest side, in steps: the largest height that keeps the area within
    that of `resolution`, and the mirror of that size; beside them the largest square. Other trainers make the same set.

    Args:
        resolution: width and height in pixels; only its area counts.
        limits: smallest side, largest side and step in pixels.
    """
    step = limits.step
    side = math.isqrt(resolution.area) // step * step
    sizes = {Size(side, side)} if limits.min_size <= side <= limits.max_size else set()
    for width in range(limits.min_size, limits.max_size + 1, step):
        height = min(limits.max_size, resolution.area // width) // step * step
        if height >= limits.min_size:
            sizes |= {Size(width, height), Size(height, width)}
    return sorted(sizes)


def place(size: Size, resolution: Size, limits: BucketLimits | None) -> Placement:
    """Where one picture goes.

    Args:
        size: the picture as it is seen (after its orientation mark), in pixels.
        resolution: training resolution in pixels.
        limits: the bucket limits, or None without bucketing: every picture goes to the one resolution.
    """
    columns = place_columns(
        np.array([size.width], dtype=np.int64), np.array([size.height], dtype=np.int64), resolution, limits
    )
    return Placement(
        Size(int(columns.bucket_width[0]), int(columns.bucket_height[0])),
        Size(int(columns.resized_width[0]), int(columns.resized_height[0])),
        (int(columns.crop_left[0]), int(columns.crop_top[0])),
    )


def place_columns(
    width: IntColumn, height: IntColumn, resolution: Size, limits: BucketLimits | None
) -> PlacementColumns:
    """`place` for many pictures at once.

    The scaled picture is the smallest one that keeps the aspect ratio and covers the bucket fully; what sticks out is
    cut off evenly on both sides.
    """
    if limits is None:
        bucket_width, bucket_height = np.full_like(width, resolution.width), np.full_like(height, resolution.height)
    elif limits.no_upscale:
        bucket_width, bucket_height = _own_buckets(width, height, resolution.area, limits.step)
    else:
        bucket_width, bucket_height = _best_buckets(width, height, make_buckets(resolution, limits))
    resized_width, resized_height = _cover(width, height, bucket_width, bucket_height)
    return PlacementColumns(bucket_width, bucket_height, resized_width, resized_height)


def _best_buckets(width: IntColumn, height: IntColumn, buckets: Sequence[Size]) -> tuple[IntColumn, IntColumn]:
    """For each picture the bucket of the nearest aspect ratio: the one that cuts off the smallest share of it."""
    best = np.zeros(len(width), dtype=np.int64)
    best_stretch = np.full(len(width), np.inf)
    # Of buckets with equal ratio the larger one comes first and stays, as only a strictly better one replaces it.
    ordered = sorted(buckets, key=lambda bucket: (-bucket.area, bucket))
    for number, bucket in enumerate(ordered):
        across, down = width * bucket.height, height * bucket.width
        # Ratio of the two aspect ratios, 1 or more: one division, hence the same bits on every platform.
        stretch = np.maximum(across, down) / np.minimum(across, down)
        better = stretch < best_stretch
        best[better], best_stretch[better] = number, stretch[better]
    sizes = np.array(ordered, dtype=np.int64).reshape(-1, 2)
    return sizes[best, 0], sizes[best, 1]


def _own_buckets(width: IntColumn, height: IntColumn, area: int, step: int) -> tuple[IntColumn, IntColumn]:
    """Buckets of the pictures' own size, scaled down to `area` where larger, each side cut to a multiple of `step`."""
    scale = np.minimum(1.0, np.sqrt(area / (width * height)))
    # The tiny addend keeps 511.9999999 from losing a whole step; it is far below one pixel.
    own_width = np.maximum(np.floor(width * scale + 1e-6).astype(np.int64) // step, 1) * step
    own_height = np.maximum(np.floor(height * scale + 1e-6).astype(np.int64) // step, 1) * step
    # A strip thinner than one step is widened to it, so its length must give way to keep the area.
    longest_width, longest_height = area // own_height // step * step, area // own_width // step * step
    return (
        np.where(own_height == step, np.minimum(own_width, longest_width), own_width),
        np.where(own_width == step, np.minimum(own_height, longest_height), own_height),
    )


def _cover(
    width: IntColumn, height: IntColumn, bucket_width: IntColumn, bucket_height: IntColumn
) -> tuple[IntColumn, IntColumn]:
    """The smallest size of the picture's aspect ratio, to the nearest pixel, that covers the bucket."""
    fits_width = bucket_width * height >= bucket_height * width
    tall = (2 * height * bucket_width + width) // (2 * width)
    wide = (2 * width * bucket_height + height) // (2 * height)
    return np.where(fits_width, bucket_width, wide), np.where(fits_width, tall, bucket_height)
