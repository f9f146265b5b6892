"""The latents in memory, and what every filling of a cache does."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from library.core.errors import UserError
from library.data.augment import Choice
from library.data.cache.filling import Processes, describe_redone, list_variants, read_looks
from library.data.cache.latents import MemoryLatentStore, fill_memory_store
from library.data.views import Views
from tests.data.cache.cache_helpers import DarkVae, Gathered, looks_of, make_varied_world, varied_views
from tests.data.data_helpers import (
    SEED,
    ToyVae,
    assert_equal,
    batches_seen,
    make_world,
    toy_encode,
    views_of,
)


def assert_holds_every_look(store: MemoryLatentStore, views: Views) -> None:
    """Against each look read and encoded by itself."""
    for record, choice in looks_of(views):
        seen, entry = views.read(record, views.fixed(record, choice)), store.get(record, choice)
        expected = toy_encode(seen.pixels[None], views.latent_noise(record, choice)[None])[0]
        assert torch.equal(entry.latents, expected) and entry.latents.dtype == torch.float32
        assert (entry.mask is None) == (seen.mask is None)
        assert entry.mask is None or seen.mask is None or torch.equal(entry.mask, seen.mask)


@pytest.mark.parametrize("workers", [0, 2])
def test_store_holds_every_look_of_every_picture(tmp_path: Path, workers: int) -> None:
    views, calls = varied_views(tmp_path), list[tuple[int, int]]()
    store = fill_memory_store(views, toy_encode, workers, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 15) for done in range(1, 16)]  # 4 pictures of 3 variants, 3 of one
    assert len(looks_of(views)) == 27
    assert_holds_every_look(store, views)


def test_looks_differ_from_each_other(tmp_path: Path) -> None:
    """Mirrored, cut and coloured pictures are encoded as such: no two looks share their latents."""
    views = varied_views(tmp_path)
    store = fill_memory_store(views, toy_encode, 0)
    latents = [store.get(record, choice).latents for record, choice in looks_of(views)]
    assert len({numbers.numpy().tobytes() for numbers in latents}) == len(latents)
    means = fill_memory_store(replace(views, drawing=replace(views.drawing, redraws_latents=True)), toy_encode, 0)
    plain, mirrored = (means.get(1, Choice(0, flipped)).latents for flipped in (False, True))
    assert torch.allclose(mirrored, plain.flip(-1)) and not torch.equal(mirrored, plain)


@pytest.mark.parametrize("redraws", [False, True])
def test_batches_are_the_same_with_and_without(tmp_path: Path, redraws: bool) -> None:
    views = varied_views(tmp_path, redraws_latents=redraws)
    store = fill_memory_store(views, toy_encode, 0)
    cached = batches_seen(views, store, updates=30)
    read = batches_seen(views, updates=30)
    made = []
    for batch in read:
        assert batch.pixels is not None and batch.latent_noise is not None
        made.append(
            replace(batch, latents=toy_encode(batch.pixels, batch.latent_noise), pixels=None, latent_noise=None)
        )
    assert_equal(cached, made)
    assert any(batch.masks is not None for batch in cached) and any(batch.masks is None for batch in cached)


def test_distributions_give_each_use_its_own_draw(tmp_path: Path) -> None:
    views = views_of(make_world(tmp_path, num_repeats=3), SEED, redraws_latents=True)
    store = fill_memory_store(views, toy_encode, 0)
    assert store.get(0, Choice()).latents.shape == (8, 8, 8)
    uses = [
        latents
        for batch in batches_seen(views, store, updates=30)
        for name, latents in zip(batch.names, batch.latents if batch.latents is not None else [], strict=True)
        if name == "0.png"
    ]
    assert len({numbers.numpy().tobytes() for numbers in uses}) == len(uses) > 3


def test_pictures_are_encoded_one_at_a_time(tmp_path: Path) -> None:
    vae = ToyVae()
    fill_memory_store(varied_views(tmp_path), vae, 0)
    assert vae.counts == [1] * 27


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_are_of_one_size_and_shape(tmp_path: Path, batch_size: int) -> None:
    """Full ones, and one for the rest of each shape; the toy's numbers do not depend on the company."""
    views, vae = varied_views(tmp_path), ToyVae()
    store = fill_memory_store(views, vae, 0, batch_size)
    shapes = [views.placements.bucket_size(record) for record, _ in looks_of(views)]
    assert vae.counts == [batch_size] * sum(-(-shapes.count(shape) // batch_size) for shape in set(shapes))
    assert_holds_every_look(store, views)


@pytest.mark.parametrize("count", [2, 3, 16])
def test_processes_share_the_work_and_have_all_of_it(tmp_path: Path, count: int) -> None:
    views, gathered, encoded = varied_views(tmp_path), Gathered(count), 0
    for number in range(count):
        vae = ToyVae()
        fill_memory_store(views, vae, 0, processes=gathered.process(number))
        encoded += len(vae.counts)
    assert encoded == 27
    store = MemoryLatentStore(views)
    store.exchange(gathered.joined(0))
    assert_holds_every_look(store, views)


def test_exchange_keeps_every_bit() -> None:
    odd = torch.tensor([-0.0, 0.0, 1e-45, -1.5, torch.inf, 3e38])
    whole = odd.clone()
    Processes(0, 2, lambda bits: bits + torch.zeros_like(bits)).exchange(whole)
    assert torch.equal(whole.view(torch.int32), odd.view(torch.int32))


def test_pictures_of_one_bucket_follow_one_another(tmp_path: Path) -> None:
    views = varied_views(tmp_path)
    parts = [list_variants(views, Processes(number, 3, lambda tensor: tensor)) for number in range(3)]
    for variants in parts:
        buckets = views.placements.bucket[variants.records]
        assert (np.diff(buckets) >= 0).all()
    found = {(int(r), int(v)) for part in parts for r, v in zip(part.records, part.numbers, strict=True)}
    assert found == {(record, choice.variant) for record, choice in looks_of(views)}


def test_a_mirrored_look_is_what_reading_it_mirrored_gives(tmp_path: Path) -> None:
    views = varied_views(tmp_path)
    for record, choice in looks_of(views):
        looks, seen = read_looks(views, record, choice.variant), views.read(record, views.fixed(record, choice))
        assert torch.equal(looks.pixels[int(choice.flipped)], seen.pixels)
        if seen.mask is not None:
            assert looks.mask is not None
            assert torch.equal(looks.mask.flip(-1) if choice.flipped else looks.mask, seen.mask)


def test_latents_that_are_not_finite_name_the_picture(tmp_path: Path) -> None:
    views = varied_views(tmp_path)
    with pytest.raises(UserError, match=r"\.png: the VAE turns this picture into numbers that are not finite"):
        fill_memory_store(views, DarkVae(is_redone=False), 0, batch_size=4)


def test_pictures_that_were_encoded_again_are_named(tmp_path: Path) -> None:
    views = views_of(make_varied_world(tmp_path), 3, variants=1)
    dark = [
        record
        for record in range(len(views.index))
        if any(
            views.read(record, views.fixed(record, choice)).pixels[:, 0, 0].mean() < -0.2
            for choice in views.choices(record)
        )
    ]
    assert 0 < len(dark) < len(views.index)
    for batch_size in (1, 4):
        store = fill_memory_store(views, DarkVae(is_redone=True), 0, batch_size)
        assert np.flatnonzero(store.redone.numpy()).tolist() == dark
    names = [views.index.names[record] for record in dark]
    told = describe_redone(views.index, dark, "fp16")
    assert told is not None and told.startswith("pictures that overflow in fp16") and f"{len(dark)} ({names[0]}" in told
    assert describe_redone(views.index, [], "fp16") is None


def test_the_store_travels_to_workers(tmp_path: Path) -> None:
    views = varied_views(tmp_path)
    store: MemoryLatentStore = pickle.loads(pickle.dumps(fill_memory_store(views, toy_encode, 0)))
    assert_holds_every_look(store, views)
