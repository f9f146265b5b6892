"""The facts of the report are those of the training: placements, plans, and what batches really hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from library.core.errors import Problem
from library.core.sizes import Size, Span
from library.data.augment import Augmentations
from library.data.captions.caption_changes import CaptionChanges
from library.data.dataset import TrainingDataset
from library.data.index.index import ImageIndex
from library.data.planner import Planner
from library.data.report.caption_lengths import longest_captions
from library.data.report.dataset_report import (
    BATCHES_SHOWN,
    Source,
    TokenCount,
    as_json_values,
    caption_draws,
    first_requests,
    report_of_problems,
    report_on,
    views_of,
)
from tests.data import data_helpers
from tests.data.data_helpers import captions_in, index_of, make_dataset, make_subset, make_world, save_picture

LIMIT = 5  # words


def count_words(caption: str) -> TokenCount:
    words = len(caption.split())
    return TokenCount(words, max(0, words - LIMIT))


def source_of(index: ImageIndex, seed: int = 3, **drawing: object) -> Source:
    views = data_helpers.views_of(index, seed, **{"total_steps": 50, **drawing})
    planner = Planner(index, views.placements, [dataset.batch_size for dataset in index.datasets], seed)
    return Source(views, planner, count_words, ("a note",))


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """A folder with every augmentation and caption change, and one without."""
    root = tmp_path_factory.mktemp("lively")
    for number, size in enumerate([(90, 60), (100, 64), (80, 80), (50, 120)]):
        save_picture(root / "a" / f"{number}.png", size, number)
        (root / "a" / f"{number}.txt").write_text("one, two, three, {x|y}, five", encoding="utf-8")
        save_picture(root / "b" / f"{number}_30_30_20_20.png", size, 10 + number)
    changes = CaptionChanges(shuffle=True, keep_tokens=1, tag_dropout_rate=0.2, wildcard=True, warmup_step=6)
    looks = Augmentations(flip=True, colour=True, random_crop=True)
    first = make_subset(root / "a", num_repeats=3, caption_changes=changes, augmentations=looks)
    second = make_subset(root / "b", augmentations=Augmentations(face_crop_range=Span(1.0, 2.0)))
    return index_of(make_dataset(first, second))


def test_images_tell_their_place_and_their_caption(tmp_path: Path) -> None:
    source = source_of(make_world(tmp_path))
    images = report_on(source).images
    placements = source.views.placements
    assert len(images) == len(source.index) == 10
    for record, image in enumerate(images):
        assert image.path == str(source.index.path(record)) and Path(image.path).is_file()
        assert image.size == source.index.size(record)
        assert (image.bucket, image.resized) == (placements.bucket_size(record), placements.resized_size(record))
        assert image.crop == placements.crop_box(record)
        left, top, right, bottom = image.crop
        assert (right - left, bottom - top) == image.bucket
        assert left >= 0 and right <= image.resized.width and top >= 0 and bottom <= image.resized.height
        assert image.lost == pytest.approx(1 - image.bucket.area / image.resized.area, abs=1e-4)
    assert [image.repeats for image in images] == [2] * 7 + [1] * 3
    assert [image.is_reg for image in images] == [False] * 7 + [True] * 3
    assert [image.loss_weight for image in images] == [1.0] * 7 + [0.5] * 3
    captioned = images[1]
    assert (captioned.caption, captioned.tokens, captioned.caption_source) == ("a dog, outdoors", 3, "file")
    assert (images[0].caption, images[0].caption_source, images[0].subset) == ("shs dog", "class_tokens", "dogs")


def test_the_caption_told_is_the_trained_one(tmp_path: Path) -> None:
    save_picture(tmp_path / "a" / "1.png")
    save_picture(tmp_path / "b" / "1.png")
    framed = CaptionChanges(prefix="by mira,", suffix="night", secondary_separator=";")
    subsets = [
        make_subset(tmp_path / "a", class_tokens="cat;sofa", caption_changes=framed),
        make_subset(tmp_path / "b", caption_changes=CaptionChanges(dropout_rate=1.0)),
    ]
    first, second = report_on(source_of(index_of(make_dataset(*subsets)))).images
    assert (first.caption, first.tokens, first.caption_varies) == ("by mira, cat,sofa night", 4, False)
    assert (second.caption, second.tokens, second.caption_varies) == ("", 0, False)


@pytest.mark.parametrize("variants", [None, 2])
def test_batches_are_those_that_are_trained(lively: ImageIndex, variants: int | None) -> None:
    source = source_of(lively, variants=variants)
    report = report_on(source)
    trained = TrainingDataset(source.views, data_helpers.toy_tokenize, data_helpers.noise_of(source.views))
    requests = source.planner.epoch_plan(0)[:BATCHES_SHOWN]
    assert requests == first_requests(source)
    assert len(report.batches) == len(requests) > 3
    for facts, request in zip(report.batches, requests, strict=True):
        batch = trained[request]
        assert [use.caption for use in facts.uses] == captions_in(batch.input_ids)
        assert tuple(use.name for use in facts.uses) == batch.names
        assert [use.is_reg for use in facts.uses] == batch.is_reg.tolist()
        assert [use.tokens for use in facts.uses] == [len(use.caption.split()) for use in facts.uses]
        assert (facts.number, facts.update) == (batch.position + 1, request.step + 1)
        looks = [source.views.read(record, view) for record, view in views_of(source, request)]
        assert batch.pixels is not None and torch.equal(torch.stack([look.pixels for look in looks]), batch.pixels)
        assert [(view.flipped, view.crop) for _, view in views_of(source, request)] == [
            (use.flipped, use.crop) for use in facts.uses
        ]
        assert (facts.bucket.height, facts.bucket.width) == batch.pixels.shape[2:]
    uses = [use for batch in report.batches for use in batch.uses]
    assert {use.flipped for use in uses} == {True, False}
    assert len({use.caption for use in uses}) > 3


def test_draws_are_those_of_the_first_epochs(lively: ImageIndex) -> None:
    source = source_of(lively)
    trained = TrainingDataset(source.views, data_helpers.toy_tokenize, data_helpers.noise_of(source.views))
    record, draws = 0, caption_draws(source, 0)
    assert len(draws) == 3 and len(set(draws)) > 1
    expected = []
    for epoch in range(3):
        plan = source.planner.epoch_plan(epoch, source.planner.updates_in_epochs(epoch))
        request = next(r for r in plan if (record, 0) in zip(r.records, r.repeats, strict=True))
        expected.append(captions_in(trained[request].input_ids)[request.records.index(record)])
    # within an epoch the warm-up lets later uses have more tags: those drawn at its start are among them
    for drawn, used in zip(draws, expected, strict=True):
        assert set(drawn.split(", ")) <= set(used.split(", "))
    assert caption_draws(source, len(source.index) - 1) == []


def test_buckets_count_pictures_uses_and_batches(tmp_path: Path) -> None:
    source = source_of(make_world(tmp_path))
    report = report_on(source)
    plan = source.planner.epoch_plan(0)
    assert {bucket.size for bucket in report.buckets} == set(source.views.placements.buckets)
    for number, bucket in enumerate(report.buckets):
        own = [r for r in plan if source.views.placements.bucket[r.records[0]] == number]
        assert bucket.uses == sum(len(request.records) for request in own)
        assert bucket.batches == len(own)
        assert bucket.underfilled == (bucket.uses < 2)
    assert sum(bucket.pictures for bucket in report.buckets) == len(source.index)


def test_epochs_count_both_kinds_of_uses_and_take_turns(tmp_path: Path) -> None:
    for number in range(6):
        save_picture(tmp_path / "a" / f"{number}.png", (64, 64), number)
    for number in range(4):
        save_picture(tmp_path / "reg" / f"{number}.png", (64, 64), number)
    training = make_subset(tmp_path / "a", num_repeats=0.25)
    source = source_of(index_of(make_dataset(training, make_subset(tmp_path / "reg", is_reg=True))))
    epochs = report_on(source).epochs
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    assert sum(epoch.training_uses for epoch in epochs) == 6
    assert [e.training_uses for e in epochs] == [e.regularisation_uses for e in epochs]
    assert [e.batches for e in epochs] == [len(source.planner.epoch_plan(number)) for number in range(4)]
    assert report_on(source).images[0].repeats == 0.25


def test_one_epoch_is_told_where_all_are_alike(lively: ImageIndex) -> None:
    (epoch,) = report_on(source_of(lively)).epochs
    assert (epoch.training_uses, epoch.regularisation_uses) == (16, 0)


def test_warnings_hold_every_note(tmp_path: Path) -> None:
    save_picture(tmp_path / "wide.png", (600, 64))
    (tmp_path / "wide.txt").write_text("one two three four five six seven", encoding="utf-8")
    index = index_of(make_dataset(make_subset(tmp_path), batch_size=3))
    warnings = report_on(source_of(index)).warnings
    assert warnings[0] == "a note"
    assert set(index.notes) <= set(warnings)
    for part in ("has fewer uses an epoch than the batch size 3", "1 picture loses more than 15% of the area"):
        assert any(part in text for text in warnings)
    assert "1 caption is too long, the last 2 tokens are not read: wide.png" in warnings


def test_json_has_the_promised_form(tmp_path: Path) -> None:
    source = source_of(make_world(tmp_path))
    problem = Problem("it is broken", "a.png", "mend it")
    values: dict[str, Any] = json.loads(json.dumps(as_json_values(report_on(source, [problem]))))
    assert values["ok"] is False
    assert values["problems"] == [{"what": "it is broken", "where": "a.png", "fix": "mend it"}]
    image = values["images"][3]
    assert {"path", "size", "bucket", "resized", "crop", "repeats", "is_reg", "caption", "tokens"} <= set(image)
    assert image["size"] == [128, 40] and len(image["crop"]) == 4
    assert isinstance(image["flips"], bool) and isinstance(image["mask"], bool)
    assert all(set(bucket) >= {"size", "pictures", "uses", "batches", "underfilled"} for bucket in values["buckets"])
    assert values["batches"][0]["uses"][0]["caption"]
    assert as_json_values(report_on(source))["ok"] is True


def test_problems_alone_are_a_report(tmp_path: Path) -> None:
    problem = Problem("no pictures are given", "command line", "give some")
    values = as_json_values(report_of_problems([problem], ["noted"]))
    assert values["images"] == () and values["warnings"] == ("noted",) and not values["ok"]


def test_masks_are_told_where_they_weigh(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((64, 64, 4), 128, dtype=np.uint8)).save(tmp_path / "clear.png")
    save_picture(tmp_path / "full.png", (64, 64))
    masked = report_on(source_of(index_of(make_dataset(make_subset(tmp_path, alpha_mask=True))))).images
    assert [image.mask for image in masked] == [True, False]
    plain = report_on(source_of(index_of(make_dataset(make_subset(tmp_path))))).images
    assert [image.mask for image in plain] == [False, False]
    assert masked[0].size == Size(64, 64)


def test_drawn_captions_are_judged_as_they_are_trained_with_all_their_tags(tmp_path: Path) -> None:
    """A choice of many short parts is short; the draws are those of the training."""
    choices = "{" + "|".join(f"cat number {number}" for number in range(50)) + "}"
    texts = {"wild": f"{choices}, outdoors", "moved": f"{choices}, outdoors", "plain": "{one|two}, three"}
    for name, text in texts.items():
        save_picture(tmp_path / name / "a.png")
        (tmp_path / name / "a.txt").write_text(text, encoding="utf-8")
    changes = {
        "wild": CaptionChanges(wildcard=True),
        "moved": CaptionChanges(wildcard=True, tag_dropout_rate=1.0, dropout_rate=0.9, warmup_step=9),
        "plain": CaptionChanges(),
    }
    subsets = [make_subset(tmp_path / name, caption_changes=changes[name]) for name in texts]
    source = source_of(index_of(make_dataset(*subsets)))
    wild, moved, plain = (longest_captions(source.views, record) for record in range(3))
    assert wild == caption_draws(source, 0) and len(set(wild)) > 1
    assert all(text.startswith("cat number ") and text.endswith(", outdoors") for text in [*wild, *moved])
    assert plain == ["{one|two}, three"]
    images = report_on(source).images
    assert [(image.tokens, image.tokens_lost) for image in images] == [(4, 0), (4, 0), (2, 0)]
    assert images[0].caption == texts["wild"]


def test_equal_problems_are_told_once(tmp_path: Path) -> None:
    source = source_of(make_world(tmp_path))
    problem, other = Problem("it is broken", "a.png", "mend it"), Problem("it is broken", "b.png", "mend it")
    report = report_on(source, [problem, other, problem], [other, other])
    assert report.problems == (problem, other) and report.left_out == (other,)
    assert report_of_problems([problem, problem]).problems == (problem,)
