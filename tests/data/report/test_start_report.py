"""The start-up report tells what will be trained and what deserves a look."""

from __future__ import annotations

from pathlib import Path

from library.core.sizes import Size, Span
from library.data.augment import Augmentations
from library.data.captions.caption_changes import CaptionChanges
from library.data.index.index import ImageIndex
from library.data.placement import place_all
from library.data.planner import Planner
from library.data.report.start_report import describe_dataset
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
    assert "warning: 1 picture is smaller than its bucket and gets enlarged: tiny.png" in text
    assert "128x64, no buckets" in text


def test_both_counts_of_an_epoch_are_told(tmp_path: Path) -> None:
    assert "an epoch: 14 training uses, 14 regularisation uses, " in report_of(make_world(tmp_path))
    only = index_of(make_dataset(make_subset(tmp_path / "dogs")))
    assert "regularisation" not in report_of(only) and "an epoch: 7 training uses, " in report_of(only)


def test_fractions_of_repeats_are_told(tmp_path: Path) -> None:
    for number in range(4):
        save_picture(tmp_path / "a" / f"{number}.png")
    text = report_of(index_of(make_dataset(make_subset(tmp_path / "a", num_repeats=0.25))))
    assert "a: 4 pictures x 0.25 repeats" in text and "an epoch: 1 training use, 1 batches" in text


def test_under_filled_buckets_are_named_with_their_pictures(tmp_path: Path) -> None:
    for number in range(4):
        save_picture(tmp_path / "a" / f"square{number}.png", (64, 64))
    save_picture(tmp_path / "a" / "wide.png", (128, 32))
    subset = make_subset(tmp_path / "a", num_repeats=2)
    text = report_of(index_of(make_dataset(subset, batch_size=4)))
    told = "1 bucket has fewer uses an epoch than the batch size 4, so batches are smaller: 128x32 (2 uses: wide.png)"
    assert f"warning: {told}" in text
    assert "fewer uses" not in report_of(index_of(make_dataset(subset, batch_size=2)))


def test_heavy_crops_are_named_worst_first(tmp_path: Path) -> None:
    for name, width in {"fine": 70, "wide": 100, "wider": 160, "widest": 640}.items():
        save_picture(tmp_path / f"{name}.png", (width, 64))
    text = report_of(index_of(make_dataset(make_subset(tmp_path), bucketing=None)))
    assert (
        "warning: 3 pictures lose more than 15% of the area to the crop: "
        "widest.png (90%), wider.png (60%), wide.png (36%); enable_bucket would keep more" in text
    )


def test_looks_of_a_folder_are_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "a" / "a.png")
    looks = Augmentations(flip=True, colour=True, random_crop=True, face_crop_range=Span(2.0, 4.5))
    subset = make_subset(tmp_path / "a", augmentations=looks, alpha_mask=True, loss_weight=0.5)
    text = report_of(index_of(make_dataset(subset)))
    assert (
        "half of the uses mirrored, colours shifted, cut around faces at 2 to 4.5 times their size, random crops, "
        "loss weighted by transparency, loss weight 0.5" in text
    )
    assert "mirrored" not in report_of(index_of(make_dataset(make_subset(tmp_path / "a"))))


def test_a_random_crop_that_cannot_move_is_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "a" / "exact.png", (64, 64))
    subset = make_subset(tmp_path / "a", augmentations=Augmentations(random_crop=True))
    told = "warning: a: random_crop has nothing to move, every picture fits its bucket exactly"
    assert told in report_of(index_of(make_dataset(subset)))
    save_picture(tmp_path / "a" / "larger.png", (70, 64))
    assert told not in report_of(index_of(make_dataset(subset)))


def test_other_changes_of_captions_are_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "a" / "a.png")
    changes = CaptionChanges(wildcard=True, warmup_step=10, dropout_every_n_epochs=3)
    text = report_of(index_of(make_dataset(make_subset(tmp_path / "a", caption_changes=changes))))
    assert "number of tags grows at the start, wildcards drawn, all captions empty every 3 epochs" in text
