"""Batches of validation: the same pictures, noise and diffusion times, whatever else the run is."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from library.core.errors import Problems
from library.data.augment import Augmentations
from library.data.cache.latents import fill_memory_store
from library.data.captions.caption_changes import CaptionChanges
from library.data.dataset import make_loader
from library.data.held_out import hold_out
from library.data.index.index import ImageIndex
from library.data.placement import place_all
from library.data.validation import (
    STRATA,
    ValidationBatch,
    ValidationDataset,
    ValidationDraws,
    validation_requests,
)
from tests.data.data_helpers import (
    captions_in,
    index_of,
    make_dataset,
    make_subset,
    save_picture,
    toy_encode,
    toy_tokenize,
    views_of,
)
from tests.data.test_held_out import make_pictures

DRAWS = ValidationDraws(seed=3, min_timestep=0, max_timestep=1000)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures to validate with, and one to train."""
    make_pictures(tmp_path / "v")
    save_picture(tmp_path / "t" / "t.png")
    return tmp_path


def index_at(root: Path, **changes: object) -> ImageIndex:
    """The index of the pictures; their uses differ as much as they can where they are trained."""
    looks = Augmentations(flip=True, colour=True, random_crop=True)
    changing = CaptionChanges(shuffle=True, tag_dropout_rate=0.5, dropout_rate=0.5)
    values = {"augmentations": looks, "caption_changes": changing, "alpha_mask": True, **changes}
    subsets = [make_subset(root / "t", **values), make_subset(root / "v", validation_split=1.0, **values)]
    problems = Problems()
    index = hold_out(index_of(make_dataset(*subsets)), 0, problems)
    assert not problems
    return index


def batches_of(
    index: ImageIndex, workers: int = 0, draws: ValidationDraws = DRAWS, seed: int = 1
) -> list[ValidationBatch]:
    dataset = ValidationDataset(views_of(index, seed, variants=2), draws, toy_tokenize)
    return list(make_loader(dataset, validation_requests(index, place_all(index)), workers, pin_memory=False))


def assert_equal(first: list[ValidationBatch], second: list[ValidationBatch]) -> None:
    assert len(first) == len(second) > 1
    for one, other in zip(first, second, strict=True):
        for item in fields(ValidationBatch):
            a, b = getattr(one, item.name), getattr(other, item.name)
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, item.name


def test_every_held_out_picture_is_in_one_batch_of_its_bucket(pictures: Path) -> None:
    index = index_at(pictures)
    placements = place_all(index)
    requests = validation_requests(index, placements)
    records = [record for request in requests for record in request.records]
    assert sorted(records) == np.flatnonzero(index.is_validation).tolist()
    assert [request.number for request in requests] == list(range(len(requests)))
    for request in requests:
        assert 1 <= len(request.records) <= 2
        assert len({placements.bucket_size(record) for record in request.records}) == 1


def test_a_limit_takes_batches_from_everywhere_and_always_the_same(pictures: Path) -> None:
    index = index_at(pictures)
    placements = place_all(index)
    whole = validation_requests(index, placements)
    some = validation_requests(index, placements, most=2)
    assert some == validation_requests(index, placements, most=2)
    assert [request.number for request in some] == [0, 1]
    assert [request.records for request in some] == [whole[0].records, whole[len(whole) // 2].records]
    assert validation_requests(index, placements, most=100) == whole


def test_a_batch_is_always_the_same_whatever_the_workers_and_the_seed_of_the_run(pictures: Path) -> None:
    index = index_at(pictures)
    first = batches_of(index)
    assert_equal(first, batches_of(index))
    assert_equal(first, batches_of(index, workers=2))
    assert_equal(first, batches_of(index, seed=9))
    other = batches_of(index, draws=replace(DRAWS, seed=4))
    assert not torch.equal(first[0].noise, other[0].noise) and not torch.equal(first[0].timesteps, other[0].timesteps)


def by_name(batches: list[ValidationBatch]) -> dict[str, list[Tensor]]:
    """What each picture is measured with."""
    return {
        name: [batch.noise[:, row], batch.timesteps[:, row], batch.latent_noise[row]]
        for batch in batches
        for row, name in enumerate(batch.names)
        if batch.latent_noise is not None
    }


def test_noise_and_times_of_a_picture_depend_on_its_name_alone(pictures: Path) -> None:
    before = by_name(batches_of(index_at(pictures)))
    for name in ("p0", "p3"):
        (pictures / "v" / f"{name}.png").unlink()
        (pictures / "v" / f"{name}.txt").unlink()
    after = by_name(batches_of(index_at(pictures)))
    assert len(before) == 8 and len(after) == 6
    for name, values in after.items():
        assert all(torch.equal(one, other) for one, other in zip(before[name], values, strict=True))
    assert len({tuple(values[0].flatten()[:4].tolist()) for values in after.values()}) == 6


@pytest.mark.parametrize(("low", "high"), [(0, 1000), (200, 600), (10, 12), (999, 1000)])
def test_each_picture_has_a_time_in_each_quarter_of_those_that_are_trained(low: int, high: int) -> None:
    draws = ValidationDraws(seed=0, min_timestep=low, max_timestep=high)
    width, found = (high - low) / STRATA, []
    for stratum in range(STRATA):
        times = [draws.timestep(f"{number}.png", stratum) for number in range(200)]
        assert all(low + stratum * width - 1 < time < low + (stratum + 1) * width for time in times)
        assert low <= min(times) and max(times) < high
        found += times
    if high - low > 100:
        assert abs(np.mean(found) - (low + high - 1) / 2) < (high - low) / 50


def test_pictures_and_captions_are_plain(pictures: Path) -> None:
    index = index_at(pictures)
    plain = index_at(pictures, augmentations=Augmentations(), caption_changes=CaptionChanges())
    assert_equal(batches_of(index), batches_of(plain))
    captions = {c for batch in batches_of(index) for c in captions_in(batch.input_ids)}
    assert captions == {f"tag {number}, red" for number in range(8)}


def test_wildcards_are_drawn_once_and_for_all(pictures: Path) -> None:
    for path in (pictures / "v").glob("*.txt"):
        path.write_text("a {red|green|blue} thing", encoding="utf-8")
    index = index_at(pictures, caption_changes=CaptionChanges(wildcard=True, dropout_rate=0.5))
    captions = [c for batch in batches_of(index) for c in captions_in(batch.input_ids)]
    assert captions == [c for batch in batches_of(index, seed=8) for c in captions_in(batch.input_ids)]
    assert len(set(captions)) > 1 and all("{" not in caption and caption for caption in captions)


@pytest.mark.parametrize("redraws_latents", [False, True])
def test_latents_from_the_cache_are_those_that_pixels_give(pictures: Path, redraws_latents: bool) -> None:
    index = index_at(pictures)
    views = views_of(index, 1, variants=2, redraws_latents=redraws_latents)
    store = fill_memory_store(views, toy_encode, workers=0)
    requests = validation_requests(index, views.placements)
    cached = ValidationDataset(views, DRAWS, toy_tokenize, store)
    assert cached.is_cached
    for request, fresh in zip(requests, batches_of(index), strict=True):
        batch = cached[request]
        assert batch.pixels is None and batch.latents is not None
        assert fresh.pixels is not None and fresh.latent_noise is not None
        one_by_one = zip(fresh.pixels.split(1), fresh.latent_noise.split(1), strict=True)
        assert torch.equal(batch.latents, torch.cat([toy_encode(*pair) for pair in one_by_one]))
        assert torch.equal(batch.noise, fresh.noise) and torch.equal(batch.timesteps, fresh.timesteps)
