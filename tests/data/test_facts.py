"""Values for the metadata of a trained file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from library.data.facts import MAX_TAGS_PER_FOLDER, bucket_info, dataset_dirs, reg_dataset_dirs, tag_frequency
from library.data.placement import place_all
from tests.data.data_helpers import index_of, make_dataset, make_subset, make_world, save_picture


def test_facts_of_a_small_world(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    info = bucket_info(index, place_all(index))
    assert tag_frequency(index) == {"dogs": {"shs dog": 6, "a dog": 1, "outdoors": 1}, "reg": {"dog": 3}}
    assert dataset_dirs(index) == {"dogs": {"n_repeats": 2, "img_count": 7}}
    assert reg_dataset_dirs(index) == {"reg": {"n_repeats": 1, "img_count": 3}}
    assert sum(bucket["count"] for bucket in info["buckets"].values()) == 2 * 7 + 3
    assert {"resolution": [64, 64], "count": 2 * 4 + 3} in info["buckets"].values()
    assert 0 < info["mean_img_ar_error"] < 1
    told = json.dumps([info, tag_frequency(index), dataset_dirs(index)])
    assert str(tmp_path) not in told


def test_folders_of_one_name_do_not_hide_each_other(tmp_path: Path) -> None:
    for parent in "ab":
        save_picture(tmp_path / parent / "dogs" / "x.png")
    index = index_of(make_dataset(*(make_subset(tmp_path / parent / "dogs") for parent in "ab")))
    assert list(dataset_dirs(index)) == ["dogs", "dogs (2)"]
    assert tag_frequency(index) == {"dogs": {"shs dog": 2}}


def test_tags_of_huge_folders_are_capped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_picture(tmp_path / "dogs" / "a.png")
    tags = [f"t{number}" for number in range(MAX_TAGS_PER_FOLDER + 10)] + ["often", "often"]
    (tmp_path / "dogs" / "a.txt").write_text(", ".join(tags), encoding="utf-8")
    with caplog.at_level("INFO"):
        frequency = tag_frequency(index_of(make_dataset(make_subset(tmp_path / "dogs"))))["dogs"]
    assert len(frequency) == MAX_TAGS_PER_FOLDER and frequency["often"] == 2
    assert "5000 most frequent of 5011 tags" in caplog.text
