"""The start-up report tells what will be trained and what deserves a look."""

from __future__ import annotations

from pathlib import Path

from library.core.sizes import Size
from library.data.caption_changes import CaptionChanges
from library.data.index import ImageIndex
from library.data.placement import place_all
from library.data.planner import Planner
from library.data.report import describe_dataset
from tests.data.data_helpers import index_of, make_dataset, make_subset, make_world, save_picture


def report_of(index: ImageIndex) -> str:
    placements = place_all(index)
    planner = Planner(index, placements, [dataset.batch_size for dataset in index.datasets], 0)
    return "\n".join(describe_dataset(index, placements, planner))


def test_report_of_a_small_world(tmp_path: Path) -> None:
    text = report_of(make_world(tmp_path))
    for part in (
        "dataset 1: area of 64x64, buckets from 32 to 128 in steps of 16, batch size 2",
        'dogs: 7 pictures x 2 repeats, class tokens "shs dog"',
        'reg: 3 pictures x 1 repeats, class tokens "dog", regularisation',
        "regularisation: 14 of 3 uses an epoch",
        "they are repeated",
        "captions: 1 from files, 9 class tokens (0.png, 2.png, 3.png and 6 more)",
        "64x64: 7",
        "an epoch: ",
    ):
        assert part in text


def test_changes_of_captions_are_told_by_folder(tmp_path: Path) -> None:
    save_picture(tmp_path / "a" / "a.png")
    changes = CaptionChanges(shuffle=True, keep_tokens=2, tag_dropout_rate=0.1, dropout_rate=0.05)
    text = report_of(index_of(make_dataset(make_subset(tmp_path / "a", caption_changes=changes))))
    assert "tags shuffled, 10% of the tags left out, first 2 kept, 5% of the captions empty" in text


def test_captions_of_a_metadata_file_and_what_it_leaves_out_are_told(tmp_path: Path) -> None:
    for name in "abc":
        save_picture(tmp_path / "cats" / f"{name}.png")
    file = tmp_path / "meta.json"
    file.write_text('{"a": {"tags": "x"}, "b": {}}', encoding="utf-8")
    text = report_of(index_of(make_dataset(make_subset(tmp_path / "cats", metadata_file=file))))
    assert "captions: 1 from metadata, 1 class tokens (b.png)" in text
    assert 'cats: 2 pictures x 1 repeats, class tokens "shs dog"' in text
    assert f"{file}: 1 pictures in its folders have no entry and are not trained: c.png" in text


def test_surplus_regularisation_is_said_to_rotate(tmp_path: Path) -> None:
    save_picture(tmp_path / "b" / "dogs" / "a.png")
    for number in range(4):
        save_picture(tmp_path / "b" / "reg" / f"{number}.png")
    training, reg = make_subset(tmp_path / "b" / "dogs"), make_subset(tmp_path / "b" / "reg", is_reg=True)
    text = report_of(index_of(make_dataset(training, reg)))
    assert "1 of 4 uses an epoch" in text and "later epochs" in text


def test_enlarged_pictures_are_named(tmp_path: Path) -> None:
    save_picture(tmp_path / "tiny.png", (20, 20))
    save_picture(tmp_path / "big.png", (200, 200))
    index = index_of(make_dataset(make_subset(tmp_path), bucketing=None, resolution=Size(128, 64)))
    text = report_of(index)
    assert "1 pictures are smaller than their bucket and get enlarged: tiny.png" in text
    assert "128x64, no buckets" in text
