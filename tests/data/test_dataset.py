"""Batches: equal for every worker count, start method and cache; each use with its own draws."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from library.core.errors import EXIT_INTERRUPTED, UserError
from library.data.augment import Choice
from library.data.batch import Batch
from library.data.cache.latents import fill_memory_store
from library.data.captions.caption_changes import CaptionChanges, split_tags
from library.data.dataset import LatentStore, Loader, TrainingDataset, make_loader
from library.data.index.index import ImageIndex
from library.data.placement import place_all
from library.data.planner import Planner, RequestStream
from tests.data.data_helpers import (
    SEED,
    assert_equal,
    batches_seen,
    captions_in,
    index_of,
    make_dataset,
    make_subset,
    make_world,
    noise_of,
    save_picture,
    toy_encode,
    toy_tokenize,
    toy_tokenize_with_weights,
    views_of,
)
from tests.training.runs import ROOT


def batches_of(
    index: ImageIndex, store: LatentStore | None, workers: int = 0, start_method: str | None = None, updates: int = 12
) -> list[Batch]:
    return batches_seen(views_of(index, SEED), store, workers, start_method, updates)


@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "fork"), (1, "spawn"), (2, "spawn")])
@pytest.mark.parametrize("is_cached", [False, True])
def test_workers_change_nothing(tmp_path: Path, workers: int, start_method: str, is_cached: bool) -> None:
    index = make_world(tmp_path)
    store = fill_memory_store(views_of(index, SEED), toy_encode, workers=0) if is_cached else None
    assert_equal(batches_of(index, store), batches_of(index, store, workers, start_method))
    if store is not None:
        assert store.get(0, Choice()).latents.is_shared() == (
            start_method == "spawn"
        )  # spawned workers hold no copies of their own


def test_batch_has_the_shapes_it_promises(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    for batch in batches_of(index, None):
        count = len(batch.names)
        assert batch.pixels is not None and batch.latents is None and batch.latent_noise is not None
        height, width = batch.pixels.shape[2:]
        latent_shape = (count, 4, height // 8, width // 8)
        assert batch.pixels.shape[:2] == (count, 3) and batch.pixels.abs().max() <= 1
        assert batch.noise.shape == batch.latent_noise.shape == latent_shape
        assert batch.input_ids.shape == (count, 2, 77) and batch.token_weights is None
        assert batch.timesteps.dtype == torch.int64
        assert ((batch.timesteps >= 0) & (batch.timesteps < 1000)).all()
        assert torch.equal(batch.loss_weights, torch.where(batch.is_reg, 0.5, 1.0))


def test_cache_changes_nothing(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    store = fill_memory_store(views_of(index, SEED), toy_encode, workers=0)
    for read, cached in zip(batches_of(index, None), batches_of(index, store), strict=True):
        assert read.pixels is not None and read.latent_noise is not None and cached.latents is not None
        encoded = [toy_encode(p[None], n[None]) for p, n in zip(read.pixels, read.latent_noise, strict=True)]
        assert torch.equal(torch.cat(encoded), cached.latents)
        assert torch.equal(read.noise, cached.noise) and torch.equal(read.timesteps, cached.timesteps)


def test_every_use_has_its_own_draws(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    updates = 2 * Planner(index, place_all(index), [2], SEED).updates_per_epoch
    noises = [noise for batch in batches_of(index, None, updates=updates) for noise in batch.noise]
    assert len({noise.numpy().tobytes() for noise in noises}) == len(noises) == 4 * 14


def test_latent_draw_stays_the_same_between_epochs(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    updates = 2 * Planner(index, place_all(index), [2], SEED).updates_per_epoch
    by_name: dict[str, set[bytes]] = {}
    for batch in batches_of(index, None, updates=updates):
        assert batch.latent_noise is not None
        for name, noise in zip(batch.names, batch.latent_noise, strict=True):
            by_name.setdefault(name, set()).add(noise.numpy().tobytes())
    assert all(len(draws) == 1 for draws in by_name.values())


def test_moved_folders_and_global_random_state_change_nothing(tmp_path: Path) -> None:
    here = batches_of(make_world(tmp_path / "a"), None)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    there = batches_of(make_world(tmp_path / "b"), None)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(here, there)


TAGS = ["mira cat", "sofa", "(red, [blue, green])", "window", "evening"]
KEPT_FIRST = CaptionChanges(shuffle=True, keep_tokens=1)


def tagged_world(root: Path, caption_changes: CaptionChanges, num_repeats: int = 3) -> ImageIndex:
    """Four pictures with a caption file, three that take their caption from the class tokens, in two folders."""
    for number in range(4):
        save_picture(root / "files" / f"{number}.png", seed=number)
        (root / "files" / f"{number}.txt").write_text(", ".join([str(number), *TAGS]), encoding="utf-8")
    for number in range(3):
        save_picture(root / "named" / f"n{number}.png", seed=number)
    files = make_subset(root / "files", num_repeats=num_repeats, caption_changes=caption_changes)
    named = make_subset(root / "named", class_tokens=", ".join(["n", *TAGS]), caption_changes=KEPT_FIRST)
    return index_of(make_dataset(files, named))


def uses_of(index: ImageIndex, workers: int = 0, is_cached: bool = False) -> list[tuple[int, str, str]]:
    """Epoch, file name and caption of every use in three epochs."""
    placements = place_all(index)
    store = fill_memory_store(views_of(index, SEED), toy_encode, workers=0) if is_cached else None
    updates = 3 * Planner(index, placements, [2], SEED).updates_per_epoch
    return [
        (batch.epoch, name, caption)
        for batch in batches_of(index, store, workers, updates=updates)
        for name, caption in zip(batch.names, captions_in(batch.input_ids), strict=True)
    ]


def test_captions_are_shuffled_at_every_use_of_epoch_and_repeat(tmp_path: Path) -> None:
    uses = uses_of(tagged_world(tmp_path, KEPT_FIRST))
    assert len(uses) == 3 * (4 * 3 + 3)
    for _, name, caption in uses:
        first, *others = split_tags(caption)
        assert first == ("n" if name.startswith("n") else name[0])
        assert sorted(others) == sorted(TAGS)
    orders = {(epoch, caption) for epoch, name, caption in uses if name == "0.png"}
    assert len(orders) == 9  # of 120 orders; the seed is fixed
    assert len({caption for _, caption in orders}) >= 8
    assert len({caption for _, name, caption in uses if name == "n0.png"}) == 3  # class tokens are captions like others


@pytest.mark.parametrize(("workers", "is_cached"), [(1, False), (2, False), (0, True), (2, True)])
def test_workers_and_cache_change_no_caption(tmp_path: Path, workers: int, is_cached: bool) -> None:
    asked = CaptionChanges(shuffle=True, keep_tokens=1, tag_dropout_rate=0.3, dropout_rate=0.2)
    index = tagged_world(tmp_path, asked)
    assert uses_of(index, workers, is_cached) == uses_of(index)


def test_captions_do_not_depend_on_batch_or_process(tmp_path: Path) -> None:
    index = tagged_world(tmp_path, KEPT_FIRST)
    placements = place_all(index)
    views = views_of(index, SEED)
    dataset = TrainingDataset(views, toy_tokenize, noise_of(views))

    def uses(batch_size: int, processes: int) -> set[tuple[str, str]]:
        requests = Planner(index, placements, [batch_size], SEED, 1, processes).epoch_plan(1)
        batches = [dataset[request] for request in requests]
        return {use for batch in batches for use in zip(batch.names, captions_in(batch.input_ids), strict=True)}

    assert uses(2, 1) == uses(5, 1) == uses(2, 2)


def test_captions_without_changes_keep_their_bytes(tmp_path: Path) -> None:
    uses = uses_of(tagged_world(tmp_path, CaptionChanges()))
    files = {(name, caption) for _, name, caption in uses if not name.startswith("n")}
    assert files == {(f"{number}.png", ", ".join([str(number), *TAGS])) for number in range(4)}


@pytest.mark.parametrize(("rate", "share"), [(0.0, (0, 0)), (0.5, (0.3, 0.7)), (1.0, (1, 1))])
def test_captions_are_dropped_as_often_as_asked(tmp_path: Path, rate: float, share: tuple[float, float]) -> None:
    uses = uses_of(tagged_world(tmp_path, CaptionChanges(dropout_rate=rate), num_repeats=10))
    captions = [caption for _, name, caption in uses if not name.startswith("n")]
    assert len(captions) == 120 and share[0] <= captions.count("") / 120 <= share[1]
    assert all(caption for _, name, caption in uses if name.startswith("n"))  # the other folder asks for none


@pytest.mark.parametrize("workers", [0, 1])
def test_weights_come_with_their_tokens(tmp_path: Path, workers: int) -> None:
    index = make_world(tmp_path)
    placements = place_all(index)
    views = views_of(index, SEED)
    dataset = TrainingDataset(views, toy_tokenize_with_weights, noise_of(views))
    stream = RequestStream(Planner(index, placements, [2], SEED), 0, 4)
    for batch in make_loader(dataset, stream, workers, pin_memory=False):
        assert batch.token_weights is not None and batch.token_weights.shape == batch.input_ids.shape
        assert torch.equal(batch.token_weights, batch.input_ids / 100 + 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_picture_lost_during_training_is_named(tmp_path: Path, workers: int) -> None:
    index = make_world(tmp_path)
    (tmp_path / "dogs" / "3.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3\.png: the file is empty") as error:
        batches_of(index, None, workers, updates=40)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(("ahead", "asked_for"), [(0, 2), (7, 7)])
def test_workers_read_so_many_items_ahead(ahead: int, asked_for: int) -> None:
    """Beside the one that was taken; an encoder that takes several at once is not kept waiting."""
    drawn: list[int] = []

    def requests() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    items = iter(make_loader(Squares(), requests(), 1, pin_memory=False, ahead=ahead))
    assert next(items) == 0
    assert len(drawn) == asked_for + 1
    assert list(items) == [number**2 for number in range(1, 20)]


class Squares(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        return number**2


INTERRUPTED_WHILE_FORKING = """
import os, signal, sys
from torch.utils.data import Dataset
from library.core.errors import run_script
from library.data.dataset import make_loader

class Numbers(Dataset):
    def __getitem__(self, number):
        return number

def main():
    loader = make_loader(Numbers(), range(100), 2, pin_memory=False, start_method="fork")
    os.register_at_fork(before=lambda: sys.argv.pop() and signal.raise_signal(signal.SIGINT) if sys.argv[1:] else None)
    print(sum(loader))

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(run_script(main))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked there")
def test_a_ctrl_c_while_workers_are_forked_is_not_lost() -> None:
    """Python swallows what is raised in the hooks of a fork, and goes on."""
    command = [sys.executable, "-c", INTERRUPTED_WHILE_FORKING, "once"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (EXIT_INTERRUPTED, "")
    assert ended.stderr.strip().endswith("interrupted") and "KeyboardInterrupt" not in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as Linux and macOS have it")
def test_afterwards_a_signal_means_what_it_did() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:

        class Stream:
            """Its iteration begins where workers would be started."""

            def __iter__(self) -> Iterator[int]:
                os.kill(os.getpid(), signal.SIGTERM)
                assert heard == []
                return iter([1])

        assert list(Loader[int](Stream())) == [1]
        assert heard == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, former)
