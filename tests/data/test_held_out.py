"""Pictures for validation: which they are, that no epoch uses them, and that the training does not notice them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.errors import Problems, UserError
from library.core.sizes import Size
from library.data.augment import Augmentations
from library.data.captions.caption_changes import CaptionChanges
from library.data.description.config import Description, SubsetConfig, describe
from library.data.facts import bucket_info, dataset_dirs, tag_frequency
from library.data.held_out import hold_out
from library.data.index.index import ImageIndex
from library.data.index.texts import Texts
from library.data.placement import place_all
from library.data.planner import Planner
from library.data.report.start_report import describe_dataset
from library.data.uses import check_uses
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.text import TextOptions
from library.options.training import TrainingOptions
from library.training.checks.pictures import check_fixed_uses
from library.training.debug.pictures_told import Asked, look_at_pictures
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture
from tests.data.test_planner import make_index

SIZES = [(64, 64), (90, 90), (128, 40), (120, 40), (40, 120), (70, 64), (64, 64), (64, 64)]


def make_pictures(folder: Path, count: int = 8) -> Path:
    for number in range(count):
        path = save_picture(folder / f"p{number}.png", SIZES[number % len(SIZES)], seed=number)
        path.with_suffix(".txt").write_text(f"tag {number}, red", encoding="utf-8")
    return folder


def held_names(index: ImageIndex) -> set[str]:
    return {index.names[int(record)] for record in np.flatnonzero(index.is_validation)}


def hold(index: ImageIndex, seed: int = 0) -> ImageIndex:
    """Held out without a complaint."""
    problems = Problems()
    found = hold_out(index, seed, problems)
    check_uses(found, problems)
    assert not problems, list(problems)
    return found


def told(index: ImageIndex, seed: int = 0) -> str:
    problems = Problems()
    hold_out(index, seed, problems)
    return "; ".join(f"{problem.where}: {problem.what} -> {problem.fix}" for problem in problems)


def named(names: list[str], split: float) -> ImageIndex:
    """An index without files, of one subset."""
    index, _ = make_index([1] * len(names))
    (dataset,) = index.datasets
    subset = replace(dataset.subsets[0], validation_split=split)
    changed = (replace(dataset, subsets=(subset,)),)
    return replace(index, names=Texts(names), datasets=changed, roots=(Path("x"),))


def planner_of(index: ImageIndex) -> Planner:
    return Planner(index, place_all(index), [dataset.batch_size for dataset in index.datasets], seed=5)


def uses_of(index: ImageIndex, epoch: int) -> list[list[tuple[str, str, int]]]:
    """The batches of an epoch: path, key in random draws, and number of each use."""
    plan = planner_of(index).epoch_plan(epoch)
    return [[(str(index.path(r)), index.key(r), n) for r, n in zip(q.records, q.repeats, strict=True)] for q in plan[:]]


@given(st.integers(2, 40), st.floats(0.02, 0.95), st.integers(0, 3))
def test_the_rounded_share_is_held_out_and_no_epoch_uses_it(count: int, split: float, seed: int) -> None:
    index = named([f"{number}.png" for number in range(count)], split)
    expected = int(count * split + 0.5)
    if expected in (0, count):
        assert told(index, seed)
        return
    found = hold(index, seed)
    assert len(held_names(found)) == expected
    planner = Planner(found, make_index([1] * count)[1], [2, 2], 0)
    for epoch in range(2):
        assert sorted(planner.epoch_samples(epoch).records) == np.flatnonzero(~found.is_validation).tolist()


def test_the_choice_depends_on_seed_and_names_alone_and_added_pictures_move_few() -> None:
    names = [f"{number}.png" for number in range(200)]
    held = held_names(hold(named(names, 0.2), seed=1))
    assert held == held_names(hold(named(names[::-1], 0.2), seed=1))
    assert held != held_names(hold(named(names, 0.2), seed=2))
    more = held_names(hold(named([*names, *(f"new{number}.png" for number in range(20))], 0.2), seed=1))
    assert len(more) == 44
    assert len(held - more) <= 4  # 40 of 200, 44 of 220: those added take a few places
    fewer = held_names(hold(named(names[20:], 0.2), seed=1))
    assert len(fewer - held) <= 8


def test_the_training_is_the_one_without_these_pictures(tmp_path: Path) -> None:
    """Held out or not there at all: the same batches with the same keys, for a whole subset and for a share."""
    shared = {"num_repeats": 1.25, "caption_changes": CaptionChanges(shuffle=True)}
    folders = [make_pictures(tmp_path / name) for name in ("a", "b", "c")]
    reg = make_subset(save_picture(tmp_path / "reg" / "r.png").parent, is_reg=True)
    a, b, c = (make_subset(folder, **shared) for folder in folders)
    whole, part = replace(a, validation_split=1.0), replace(c, validation_split=0.25)
    other = {"resolution": Size(96, 96), "batch_size": 3}
    held = hold(index_of(make_dataset(whole, b, reg), make_dataset(part, **other)))
    assert np.count_nonzero(held.is_validation) == 8 + 2
    for name in [held.path(int(record)) for record in np.flatnonzero(held.is_validation)]:
        name.unlink()
        name.with_suffix(".txt").unlink()
    without = index_of(make_dataset(b, reg), make_dataset(replace(c, validation_split=0.0), **other))
    for epoch in range(4):
        assert uses_of(held, epoch) == uses_of(without, epoch)
    assert planner_of(held).updates_in_epochs(4) == planner_of(without).updates_in_epochs(4)
    placed = place_all(held), place_all(without)
    samples = planner_of(held).epoch_samples(0), planner_of(without).epoch_samples(0)
    assert bucket_info(held, placed[0], samples[0]) == bucket_info(without, placed[1], samples[1])
    assert dataset_dirs(held) == dataset_dirs(without)
    assert tag_frequency(held) == tag_frequency(without)


def test_held_out_pictures_have_one_look_and_their_whole_caption(tmp_path: Path) -> None:
    changes = CaptionChanges(
        shuffle=True,
        keep_tokens=1,
        tag_dropout_rate=0.5,
        dropout_rate=1.0,
        dropout_every_n_epochs=2,
        warmup_step=9,
        prefix="photo,",
        separator=";",
    )
    looks = Augmentations(flip=True, colour=True, random_crop=True)
    subset = make_subset(
        make_pictures(tmp_path), caption_changes=changes, augmentations=looks, alpha_mask=True, validation_split=0.5
    )
    index = hold(index_of(make_dataset(subset)))
    training, validation = index.folders
    assert training == subset
    assert validation.is_validation and not training.is_validation
    assert validation.augmentations == Augmentations() and not validation.alpha_mask
    assert validation.caption_changes == CaptionChanges(prefix="photo,", separator=";")
    assert not validation.caption_changes.varies
    assert index.repeats[index.is_validation].sum() == 0


def test_a_picture_at_two_resolutions_is_held_out_at_both(tmp_path: Path) -> None:
    subset = make_subset(make_pictures(tmp_path), validation_split=0.5)
    index = hold(index_of(make_dataset(subset), make_dataset(subset, resolution=Size(96, 96))))
    assert len(held_names(index)) == 4 and np.count_nonzero(index.is_validation) == 8
    assert not index.notes


def test_shares_that_leave_a_side_empty_are_told(tmp_path: Path) -> None:
    few = make_subset(make_pictures(tmp_path / "few", 2))
    many = make_subset(make_pictures(tmp_path / "many", 8))
    reg = make_subset(make_pictures(tmp_path / "reg", 2), is_reg=True)

    def with_split(subset: SubsetConfig, split: float) -> SubsetConfig:
        return replace(subset, validation_split=split)

    assert "validation_split 0.9 of 2 pictures holds all of them out" in told(
        index_of(make_dataset(with_split(few, 0.9), many))
    )
    assert "so small that no picture is held out" in told(index_of(make_dataset(with_split(few, 0.1))))
    assert "every picture is held out" in told(index_of(make_dataset(with_split(few, 1.0), with_split(many, 1.0))))
    assert "all pictures of dataset 1 but its regularisation pictures" in told(
        index_of(make_dataset(with_split(few, 1.0), reg), make_dataset(many))
    )
    both = hold(index_of(make_dataset(with_split(few, 0.1), with_split(many, 0.25))))
    assert any("0.1 of 2 pictures is less than one, so none is held out" in note for note in both.notes)


def test_a_validation_picture_that_is_trained_elsewhere_is_told(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "a", 3)
    whole = make_subset(folder, validation_split=1.0)
    index = hold(index_of(make_dataset(whole, make_subset(folder / "." / ".." / "a"))))
    assert any("3 validation pictures are trained in another subset" in note for note in index.notes)
    assert not hold(index_of(make_dataset(whole, make_subset(make_pictures(tmp_path / "b"))))).notes


def test_the_start_report_counts_both_sides(tmp_path: Path) -> None:
    index = hold(index_of(make_dataset(make_subset(make_pictures(tmp_path / "dogs"), validation_split=0.25))))
    text = "\n".join(describe_dataset(index, place_all(index), planner_of(index)))
    assert "dogs: 6 pictures x 1 repeats" in text
    assert "validation: area of 64x64" in text and "dogs: 2 pictures held out, in no epoch" in text
    assert "an epoch: 6 training uses, none of 2 validation pictures" in text


@pytest.mark.parametrize("split", [0.0, 1.0])
def test_without_a_share_nothing_changes(tmp_path: Path, split: float) -> None:
    index = index_of(make_dataset(make_subset(make_pictures(tmp_path), validation_split=split)))
    assert (hold_out(index, 0, Problems()) is index) == (split == 0)


def described(tmp_path: Path, text: str, **options: object) -> Description:
    file = tmp_path / "d.toml"
    file.write_text(text, encoding="utf-8")
    return describe(DataOptions(dataset_config=str(file), resolution=Size(64, 64), **options))  # type: ignore[arg-type]


def test_regularisation_pictures_are_never_held_out(tmp_path: Path) -> None:
    subsets = (
        "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n[[datasets.subsets]]\nimage_dir = 'r'\nis_reg = true\n"
    )
    (dataset,) = described(tmp_path, subsets, validation_split=0.2).datasets
    assert [subset.validation_split for subset in dataset.subsets] == [0.2, 0.0]
    with pytest.raises(UserError, match="regularisation pictures are never held out") as raised:
        described(tmp_path, f"{subsets}validation_split = 0.2\n")
    (problem,) = raised.value.problems
    assert "line 7" in problem.where


def test_datasets_without_training_pictures_come_last(tmp_path: Path) -> None:
    texts = [f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{n}'\nvalidation_split = {n}\n" for n in (1, 0, 0.5)]
    found = described(tmp_path, "".join(texts)).datasets
    assert [dataset.subsets[0].validation_split for dataset in found] == [0.0, 0.5, 1.0]


def test_caches_may_hold_validation_pictures_whose_options_change_from_use_to_use(tmp_path: Path) -> None:
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n[[datasets.subsets]]\nimage_dir = 'b'\n"
    changing = "random_crop = true\nshuffle_caption = true\n"
    caching = CachingOptions(cache_latents=True, cache_text_encoder_outputs=True)
    counts = []
    for split in (0.5, 1.0):
        description = described(tmp_path, f"{text}validation_split = {split}\n{changing}")
        problems = Problems()
        check_fixed_uses(description, DataOptions(), caching, problems)
        counts.append(len(problems))
    assert counts == [2, 0]


def test_the_report_of_the_pictures_marks_them(tmp_path: Path) -> None:
    make_pictures(tmp_path / "2_dogs")
    data = DataOptions(train_data_dir=str(tmp_path), resolution=Size(64, 64), validation_split=0.25)
    for seed, training in ((None, TrainingOptions(seed=3)), (3, TrainingOptions())):
        asked = Asked(replace(data, validation_seed=seed), CachingOptions(), TextOptions(), training)
        report = look_at_pictures(asked).report
        assert not report.problems
        held = {Path(image.path).name for image in report.images if image.is_validation}
        by_hand = index_of(make_dataset(make_subset(tmp_path / "2_dogs", validation_split=0.25)))
        assert held == held_names(hold(by_hand, seed=3)) and len(held) == 2
        assert all((image.repeats == 0) == image.is_validation for image in report.images)
        assert report.epochs[0].training_uses == 12
        assert sum(bucket.pictures for bucket in report.buckets if bucket.is_validation) == 2
