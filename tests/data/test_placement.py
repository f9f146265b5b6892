"""Placements of a whole index."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from library.core.sizes import Size
from library.data.buckets import place
from library.data.placement import place_all
from tests.data.data_helpers import LIMITS, index_of, make_dataset, make_subset, make_world, save_picture


def test_every_record_is_placed_like_a_single_picture(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    placements = place_all(index)
    for record in range(len(index)):
        expected = place(index.size(record), Size(64, 64), LIMITS)
        left, top, right, bottom = placements.crop_box(record)
        assert placements.bucket_size(record) == expected.bucket == (right - left, bottom - top)
        assert placements.resized_size(record) == expected.resized and (left, top) == expected.crop


def test_datasets_never_share_a_bucket(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    dataset = make_dataset(make_subset(tmp_path))
    placements = place_all(index_of(dataset, dataset))
    assert placements.buckets == (Size(64, 64), Size(64, 64)) and placements.bucket_dataset == (0, 1)
    assert np.array_equal(placements.bucket, [0, 1])
