"""Bucket sizes and placements: the named examples, and properties for any picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.sizes import Size
from library.data.buckets import BucketLimits, make_buckets, place, place_columns

SD1 = BucketLimits(256, 1024, 64)
SIDES = st.integers(1, 5000)
RESOLUTIONS = st.tuples(st.integers(4, 16), st.integers(4, 16)).map(lambda wh: Size(wh[0] * 64, wh[1] * 64))


def test_512_has_the_known_buckets() -> None:
    # The set that other trainers make for 512 x 512, 256 to 1024 in steps of 64.
    half = {(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)}
    assert set(make_buckets(Size(512, 512), SD1)) == half | {(h, w) for w, h in half} | {(512, 512)}


def test_longest_side_limits_the_narrowest_bucket() -> None:
    assert Size(256, 768) in make_buckets(Size(512, 512), BucketLimits(256, 768, 64))


def test_higher_minimum_removes_narrow_buckets() -> None:
    buckets = make_buckets(Size(512, 512), BucketLimits(384, 1024, 64))
    assert not {Size(256, 1024), Size(320, 768)} & set(buckets)
    assert Size(384, 640) in buckets


def test_non_square_resolution_is_a_bucket() -> None:
    assert Size(768, 512) in make_buckets(Size(768, 512), BucketLimits(384, 1280, 64))


@given(RESOLUTIONS, st.sampled_from([64, 128, 256]), st.sampled_from([1024, 1280]), st.sampled_from([32, 64]))
def test_buckets_stay_within_area_limits_and_steps(resolution: Size, low: int, high: int, step: int) -> None:
    buckets = make_buckets(resolution, BucketLimits(low, high, step))
    assert len(buckets) == len(set(buckets))
    for bucket in buckets:
        assert bucket.area <= resolution.area
        assert low <= min(bucket) and max(bucket) <= high
        assert bucket.width % step == 0 and bucket.height % step == 0
        assert Size(bucket.height, bucket.width) in buckets


def check_cover_and_crop(size: Size, resolution: Size, limits: BucketLimits | None) -> None:
    placed = place(size, resolution, limits)
    bucket, resized = placed.bucket, placed.resized
    assert resized.width >= bucket.width and resized.height >= bucket.height
    assert resized.width == bucket.width or resized.height == bucket.height
    assert placed.crop == ((resized.width - bucket.width) // 2, (resized.height - bucket.height) // 2)
    scale = max(bucket.width / size.width, bucket.height / size.height)
    assert abs(resized.width - size.width * scale) <= 0.5 + 1e-6
    assert abs(resized.height - size.height * scale) <= 0.5 + 1e-6


@given(SIDES, SIDES, RESOLUTIONS, st.sampled_from([None, SD1, BucketLimits(256, 1024, 64, no_upscale=True)]))
def test_scaled_picture_covers_its_bucket(width: int, height: int, resolution: Size, limits: BucketLimits) -> None:
    check_cover_and_crop(Size(width, height), resolution, limits)


def cut_off(width: int, height: int, bucket: Size) -> float:
    """The share of the picture that lies outside the bucket."""
    ratio = (width * bucket.height) / (height * bucket.width)
    return 1 - min(ratio, 1 / ratio)


@given(SIDES, SIDES)
def test_bucket_has_the_nearest_aspect_ratio(width: int, height: int) -> None:
    chosen = place(Size(width, height), Size(512, 512), SD1).bucket
    best = min(cut_off(width, height, bucket) for bucket in make_buckets(Size(512, 512), SD1))
    assert cut_off(width, height, chosen) <= best + 1e-9


@given(SIDES, SIDES)
def test_turned_picture_loses_the_same_share(width: int, height: int) -> None:
    upright = place(Size(width, height), Size(512, 512), SD1).bucket
    turned = place(Size(height, width), Size(512, 512), SD1).bucket
    assert cut_off(width, height, upright) == pytest.approx(cut_off(height, width, turned))


def test_of_equal_ratios_the_larger_bucket_is_taken() -> None:
    limits = BucketLimits(64, 128, 64)
    assert place(Size(500, 500), Size(128, 128), limits).bucket == (128, 128)


def test_without_bucketing_everything_goes_to_the_resolution() -> None:
    placed = place(Size(1000, 500), Size(512, 512), None)
    assert placed.bucket == (512, 512) and placed.resized == (1024, 512) and placed.crop == (256, 0)


@given(SIDES, SIDES, RESOLUTIONS)
def test_no_upscale_never_enlarges(width: int, height: int, resolution: Size) -> None:
    limits = BucketLimits(256, 1024, 64, no_upscale=True)
    bucket = place(Size(width, height), resolution, limits).bucket
    assert bucket.width % 64 == 0 and bucket.height % 64 == 0 and min(bucket) >= 64
    assert bucket.area <= resolution.area
    if min(width, height) >= 64:
        assert bucket.width <= width and bucket.height <= height


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        (Size(512, 512), Size(512, 512)),
        (Size(1024, 1024), Size(512, 512)),
        (Size(3000, 3000), Size(512, 512)),
        (Size(300, 200), Size(256, 192)),
        (Size(30, 30), Size(64, 64)),
        (Size(20000, 100), Size(4096, 64)),
    ],
)
def test_no_upscale_examples(size: Size, bucket: Size) -> None:
    assert place(size, Size(512, 512), BucketLimits(256, 1024, 64, no_upscale=True)).bucket == bucket


def test_columns_agree_with_single_placements() -> None:
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(10, 3000, 200), rng.integers(10, 3000, 200)
    columns = place_columns(widths, heights, Size(512, 512), SD1)
    for row, (width, height) in enumerate(zip(widths.tolist(), heights.tolist(), strict=True)):
        placed = place(Size(width, height), Size(512, 512), SD1)
        assert placed.bucket == (columns.bucket_width[row], columns.bucket_height[row])
        assert placed.resized == (columns.resized_width[row], columns.resized_height[row])
        assert placed.crop == (columns.crop_left[row], columns.crop_top[row])
