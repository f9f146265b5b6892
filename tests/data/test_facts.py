"""Values for the metadata of a trained file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from library.data.captions.caption_changes import CaptionChanges
from library.data.facts import MAX_TAGS_PER_FOLDER, bucket_info, dataset_dirs, reg_dataset_dirs, tag_frequency
from library.data.placement import place_all
from library.data.planner import Planner
from tests.data.data_helpers import index_of, make_dataset, make_subset, make_world, save_picture


def test_facts_of_a_small_world(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    placements = place_all(index)
    uses = Planner(index, placements, [2], 1).epoch_samples(0)
    info = bucket_info(index, placements, uses)
    assert tag_frequency(index) == {"dogs": {"shs dog": 6, "a dog": 1, "outdoors": 1}, "reg": {"dog": 3}}
    assert dataset_dirs(index) == {"dogs": {"n_repeats": 2, "img_count": 7}}
    assert reg_dataset_dirs(index) == {"reg": {"n_repeats": 1, "img_count": 3}}
    assert sum(bucket["count"] for bucket in info["buckets"].values()) == 2 * 7 + 14  # regularisation in balance
    assert {"resolution": [64, 64], "count": 2 * 4 + 14} in info["buckets"].values()
    assert 0 < info["mean_img_ar_error"] < 1
    told = json.dumps([info, tag_frequency(index), dataset_dirs(index)])
    assert str(tmp_path) not in told


def test_folders_of_one_name_do_not_hide_each_other(tmp_path: Path) -> None:
    for parent in "abc":
        save_picture(tmp_path / parent / "dogs" / "x.png")
    subsets = [make_subset(tmp_path / parent / "dogs", class_tokens=f"dog {parent}") for parent in "ab"]
    reg = make_subset(tmp_path / "c" / "dogs", class_tokens="dog c", is_reg=True)
    index = index_of(make_dataset(*subsets, reg))
    assert list(dataset_dirs(index)) == ["dogs", "dogs (2)"]
    assert list(reg_dataset_dirs(index)) == ["dogs (3)"]
    assert tag_frequency(index) == {"dogs": {"dog a": 1}, "dogs (2)": {"dog b": 1}, "dogs (3)": {"dog c": 1}}


@pytest.mark.parametrize(
    ("caption", "changes", "tags"),
    [
        ("A cat, sofa", {}, ["a cat", "sofa"]),
        ("a cat\nsofa, rug", {"wildcard": True}, ["a cat", "sofa", "rug"]),
        ("a cat\n\nsofa", {}, ["a cat"]),
        ("a ||| b;;;c, d", {"keep_tokens_separator": "|||", "secondary_separator": ";;;"}, ["a", "b", "c", "d"]),
        ("hat", {"prefix": "Ink,", "suffix": "by mira, indoors"}, ["ink", "hat by mira", "indoors"]),
        ("a AND b, c", {"separator": "AND"}, ["a", "b, c"]),
        ("a cat", {"dropout_rate": 1.0}, []),
        ("a cat", {"dropout_every_n_epochs": 1}, []),
    ],
)
def test_tags_are_those_that_are_trained(
    tmp_path: Path, caption: str, changes: dict[str, object], tags: list[str]
) -> None:
    save_picture(tmp_path / "dogs" / "a.png")
    (tmp_path / "dogs" / "a.txt").write_text(caption, encoding="utf-8")
    subset = make_subset(tmp_path / "dogs", caption_changes=CaptionChanges(**changes))  # type: ignore[arg-type]
    found = tag_frequency(index_of(make_dataset(subset)))
    assert found == ({"dogs": dict.fromkeys(tags, 1)} if tags else {})


def test_captions_that_are_not_trained_are_not_counted(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    assert tag_frequency(index, [1]) == {"reg": {"dog": 3}}
    assert tag_frequency(index, []) == {}


def test_tags_of_huge_folders_are_capped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_picture(tmp_path / "dogs" / "a.png")
    tags = [f"t{number}" for number in range(MAX_TAGS_PER_FOLDER + 10)] + ["often", "often"]
    (tmp_path / "dogs" / "a.txt").write_text(", ".join(tags), encoding="utf-8")
    with caplog.at_level("INFO"):
        frequency = tag_frequency(index_of(make_dataset(make_subset(tmp_path / "dogs"))))["dogs"]
    assert len(frequency) == MAX_TAGS_PER_FOLDER and frequency["often"] == 2
    assert "5000 most frequent of 5011 tags" in caplog.text
