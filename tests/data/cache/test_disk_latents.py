"""Latents on disk: what is found again, what is encoded again, and where they lie."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.augment import Choice, View
from library.data.cache.disk_latents import DiskLatentStore, LatentFiles, Reuse, VaeWork, fill_disk_store
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.filling import Encoding
from library.data.cache.latent_files import State
from library.data.cache.latents import fill_memory_store
from library.data.dataset import TrainingDataset
from library.data.description.config import DatasetConfig
from library.data.index.index import ImageIndex
from library.data.index.index_cache import FILE_STEM, info_path
from library.data.planner import BatchRequest
from library.data.views import Seen, Views
from tests.data.cache.cache_helpers import EVERYTHING, DarkVae, Gathered, looks_of, make_varied_world, varied_views
from tests.data.data_helpers import (
    ToyVae,
    index_of,
    make_dataset,
    make_subset,
    make_world,
    noise_of,
    save_picture,
    toy_encode,
    toy_tokenize,
    views_of,
)

VAE = "ab" * 16
PLAIN_WORK = VaeWork(VAE)


def files_of(index: ImageIndex, vae: str = VAE, seed: int = 3) -> LatentFiles:
    return LatentFiles(views_of(index, seed), EntryPaths(index), VaeWork(vae))


def fill(index: ImageIndex, vae: str = VAE, seed: int = 3, workers: int = 0) -> tuple[DiskLatentStore, Reuse]:
    return fill_disk_store(files_of(index, vae, seed), toy_encode, workers)


def fill_varied(views: Views, vae: VaeWork = PLAIN_WORK) -> tuple[DiskLatentStore, Reuse]:
    return fill_disk_store(LatentFiles(views, EntryPaths(views.index), vae), toy_encode, 0)


def reasons(reuse: Reuse) -> dict[State, int]:
    return {state: number for state, number in reuse.counts.items() if number}


def assert_equals_memory(store: DiskLatentStore, views: Views) -> None:
    expected = fill_memory_store(views, toy_encode, workers=0)
    for record, choice in looks_of(views):
        found, wanted = store.get(record, choice), expected.get(record, choice)
        assert found.latents.dtype == torch.float32 and torch.equal(found.latents, wanted.latents)
        assert (found.mask is None) == (wanted.mask is None)
        assert found.mask is None or wanted.mask is None or torch.equal(found.mask, wanted.mask)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_start_encodes_nothing_and_reads_the_same_bits(tmp_path: Path, workers: int) -> None:
    index = make_world(tmp_path)
    first, reuse = fill(index, workers=workers)
    assert reasons(reuse) == {State.MISSING: 10} and reuse.encoded == 10
    assert reuse.lines() == ["latents on disk: 0 reused, 10 encoded (10 not there yet)"]
    assert_equals_memory(first, views_of(index, 3))

    vae, calls = ToyVae(), list[tuple[int, int]]()
    second, reuse = fill_disk_store(
        files_of(index), vae, workers, progress=lambda done, total: calls.append((done, total))
    )
    assert vae.counts == []
    assert reasons(reuse) == {State.FITS: 10} and reuse.encoded == 0
    assert reuse.lines() == ["latents on disk: 10 reused, 0 encoded"]
    assert calls == [(done, 10) for done in range(1, 11)]
    assert_equals_memory(second, views_of(index, 3))
    assert sorted(path.name for path in tmp_path.rglob("*.npz")) == sorted(
        [f"{number}.npz" for number in range(7)] + [f"r{number}.npz" for number in range(3)]
    )


def _touch(root: Path) -> None:
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))


def _change_one(root: Path) -> None:
    save_picture(root / "dogs" / "2.png", (64, 64), seed=99)


def _change_and_hide_it(root: Path) -> None:
    """Another picture with the old one's number of bytes and times."""
    path = root / "reg" / "r0.jpg"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 0x10  # among the last of the compressed picture
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def _cut(root: Path) -> None:
    path = root / "dogs" / "3.npz"
    path.write_bytes(path.read_bytes()[:700])


def _foreign(root: Path) -> None:
    path = root / "dogs" / "4.npz"
    with np.load(path) as fields:
        latents = fields["latents"]
    np.savez(path, latents=latents, original_size=np.array([120, 40]), crop_ltrb=np.array([0, 0, 1, 1]))


@dataclass(frozen=True)
class Change:
    """Something done between two starts, and what the second one has to encode for it."""

    name: str
    expected: dict[State, int]
    make: Callable[[Path], object] = lambda root: None
    vae: str = VAE
    seed: int = 3
    num_repeats: int = 2


CHANGES = [
    Change("nothing", {}),
    Change("file times", {}, _touch),
    Change("repeats", {}, num_repeats=5),
    Change("a caption", {}, lambda root: (root / "dogs" / "1.txt").write_text("a cat\n", encoding="utf-8")),
    Change("one picture", {State.PICTURE: 1}, _change_one),
    Change("one picture, size and time kept", {State.PICTURE: 1}, _change_and_hide_it),
    Change("two pictures swapped", {State.PICTURE: 2}, lambda root: _swap(root / "dogs" / "0.png", "2.png")),
    Change("two entries swapped", {State.PICTURE: 2}, lambda root: _swap(root / "dogs" / "0.npz", "2.npz")),
    Change("a picture more", {State.MISSING: 1}, lambda root: save_picture(root / "dogs" / "9.png", seed=9)),
    Change("a picture renamed", {State.MISSING: 1}, lambda root: (root / "reg/r0.jpg").rename(root / "reg/r9.jpg")),
    Change("another ending", {State.NAME: 1}, lambda root: (root / "reg/r0.jpg").rename(root / "reg/r0.jpeg")),
    Change("an entry less", {State.MISSING: 1}, lambda root: (root / "dogs" / "6.npz").unlink()),
    Change("an entry torn", {State.DAMAGED: 1}, _cut),
    Change("an entry of others", {State.FOREIGN: 1}, _foreign),
    Change("the VAE", {State.VAE: 10}, vae="cd" * 16),
    Change("the seed", {}, seed=4),
    Change("the VAE and a picture", {State.PICTURE: 1, State.VAE: 9}, _change_one, vae="cd" * 16),
]


def _swap(path: Path, other: str) -> None:
    contents = path.read_bytes(), path.with_name(other).read_bytes()
    path.write_bytes(contents[1])
    path.with_name(other).write_bytes(contents[0])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_what_changed_is_encoded_again_and_nothing_else(tmp_path: Path, change: Change) -> None:
    fill(make_world(tmp_path))
    change.make(tmp_path)
    index = _reread(tmp_path, change.num_repeats)
    store, reuse = fill(index, change.vae, change.seed)
    assert {state: n for state, n in reasons(reuse).items() if state is not State.FITS} == change.expected
    assert sum(reuse.counts.values()) == len(index)
    assert_equals_memory(store, views_of(index, change.seed))
    assert fill(index, change.vae, change.seed)[1].encoded == 0


def _reread(root: Path, num_repeats: int = 2, side: int = 64) -> ImageIndex:
    """The world of `make_world` as it lies on the disk now."""
    training = make_subset(root / "dogs", num_repeats=num_repeats)
    reg = make_subset(root / "reg", class_tokens="dog", is_reg=True)
    return index_of(make_dataset(training, reg, resolution=Size(side, side)), prior_loss_weight=0.5)


def test_another_resolution_encodes_again(tmp_path: Path) -> None:
    fill(make_world(tmp_path))
    index = _reread(tmp_path, side=96)
    store, reuse = fill(index)
    assert reasons(reuse) == {State.SIZE: 10}
    assert_equals_memory(store, views_of(index, 3))


def test_a_moved_folder_keeps_its_latents(tmp_path: Path) -> None:
    fill(make_world(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert fill(_reread(tmp_path / "there"))[1].encoded == 0


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    index = make_world(tmp_path)

    class Stopped(ToyVae):
        def distribution(self, pixels: Tensor) -> Encoding:
            if len(self.counts) == 4:
                raise KeyboardInterrupt
            return super().distribution(pixels)

    with pytest.raises(KeyboardInterrupt):
        fill_disk_store(files_of(index), Stopped(), workers=0)
    store, reuse = fill(index)
    assert reasons(reuse) == {State.FITS: 4, State.MISSING: 6}
    assert_equals_memory(store, views_of(index, 3))


def test_latents_that_are_not_finite_are_named_and_not_stored(tmp_path: Path) -> None:
    class Broken(ToyVae):
        def distribution(self, pixels: Tensor) -> Encoding:
            return Encoding(super().distribution(pixels).distribution * torch.nan)

    with pytest.raises(UserError, match=r"\.(png|jpg): the VAE turns this picture into numbers that are not finite"):
        fill_disk_store(files_of(make_world(tmp_path)), Broken(), workers=0)
    assert list(tmp_path.rglob("*.npz")) == []


def test_pictures_are_encoded_one_at_a_time(tmp_path: Path) -> None:
    vae = ToyVae()
    fill_disk_store(files_of(make_world(tmp_path)), vae, workers=0)
    assert vae.counts == [1] * 10


@pytest.mark.parametrize("redraws", [False, True])
def test_every_look_of_every_picture_is_kept(tmp_path: Path, redraws: bool) -> None:
    views = varied_views(tmp_path, redraws_latents=redraws)
    store, reuse = fill_varied(views)
    assert reasons(reuse) == {State.MISSING: 15}  # 4 pictures of 3 variants, 3 of one
    assert_equals_memory(store, views)
    names = {path.name for path in (tmp_path / "varied").glob("*.npz")}
    assert names == {f"{stem}{n}.npz" for stem in ("0", "1", "2", "clear") for n in ("", ".v1", ".v2")}
    assert fill_varied(views)[1].encoded == 0


@dataclass(frozen=True)
class Wish:
    """Another way to look at the same pictures, and what has to be encoded for it."""

    name: str
    expected: dict[State, int]
    drawing: dict[str, object]
    vae: VaeWork = PLAIN_WORK


WISHES = [
    Wish("fewer variants", {}, {"variants": 2}),
    Wish("more variants", {State.MISSING: 4}, {"variants": 4}),
    Wish("distributions", {State.DRAW: 15}, {"redraws_latents": True}),
    Wish("precision", {State.PRECISION: 15}, {}, VaeWork(VAE, "bf16")),
    Wish("batch of the VAE", {State.PRECISION: 15}, {}, VaeWork(VAE, "float", 4)),
]


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish.name)
def test_what_is_wanted_besides_is_encoded_and_nothing_else(tmp_path: Path, wish: Wish) -> None:
    fill_varied(varied_views(tmp_path))
    views = varied_views(tmp_path, **wish.drawing)
    store, reuse = fill_varied(views, wish.vae)
    assert {state: n for state, n in reasons(reuse).items() if state is not State.FITS} == wish.expected
    assert_equals_memory(store, views)


def _augmented(root: Path, **changes: object) -> Views:
    return views_of(index_of(make_dataset(make_subset(root / "varied", **changes))), 3, variants=3)


def test_mirrors_and_masks_are_added_and_may_be_there_in_vain(tmp_path: Path) -> None:
    make_varied_world(tmp_path)
    plain = replace(EVERYTHING, flip=False)
    fill_varied(_augmented(tmp_path, augmentations=plain))
    for changes, state in (
        ({"augmentations": EVERYTHING}, {State.MIRRORED: 12}),
        ({"augmentations": EVERYTHING, "alpha_mask": True}, {State.MASK: 3, State.FITS: 9}),  # three have no mask
    ):
        views = _augmented(tmp_path, **changes)
        store, reuse = fill_varied(views)
        assert reasons(reuse) == state
        assert_equals_memory(store, views)
    for changes in (
        {"augmentations": plain},
        {"augmentations": EVERYTHING},
        {"augmentations": plain, "alpha_mask": True},
    ):
        views = _augmented(tmp_path, **changes)
        store, reuse = fill_varied(views)
        assert reuse.encoded == 0
        assert_equals_memory(store, views)


@pytest.mark.parametrize("redraws", [False, True])
def test_another_seed_draws_other_crops_and_colours(tmp_path: Path, redraws: bool) -> None:
    """Nothing else depends on the seed, so only looks that are drawn differently are made anew."""
    fill_varied(varied_views(tmp_path, redraws_latents=redraws))
    views = varied_views(tmp_path, seed=4, redraws_latents=redraws)
    store, reuse = fill_varied(views)
    assert set(reasons(reuse)) <= {State.FITS, State.SIZE, State.COLOUR}
    assert reuse.counts[State.FITS] >= 3 and reuse.counts[State.SIZE] > 0
    assert_equals_memory(store, views)


def test_pictures_that_were_encoded_again_are_known(tmp_path: Path) -> None:
    views = varied_views(tmp_path)
    files = LatentFiles(views, EntryPaths(views.index), VaeWork(VAE, "fp16", 4))
    _, reuse = fill_disk_store(files, DarkVae(is_redone=True), 0)
    expected = fill_memory_store(views, DarkVae(is_redone=True), 0, 4).redone
    assert reuse.redone.tolist() == expected.nonzero().flatten().tolist() != []


@pytest.mark.parametrize("batch_size", [2, 5])
def test_larger_batches_give_the_same_files_whatever_was_there(tmp_path: Path, batch_size: int) -> None:
    views, work = varied_views(tmp_path), VaeWork(VAE, "float", batch_size)
    store, _ = fill_varied(views, work)
    assert_equals_memory(store, views)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.npz")}
    (tmp_path / "varied" / "1.v1.npz").unlink()
    assert fill_varied(views, work)[1].encoded == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.npz")} == before


def test_a_picture_at_two_resolutions_has_two_entries(tmp_path: Path) -> None:
    for seed in range(3):
        save_picture(tmp_path / "cats" / f"{seed}.png", (96, 96), seed=seed)
    (tmp_path / "link").symlink_to(tmp_path / "cats", target_is_directory=True)
    small = make_dataset(make_subset(tmp_path / "cats"))
    large = make_dataset(make_subset(tmp_path / "link"), resolution=Size(96, 96))
    alone = index_of(small)
    fill(alone)
    both = index_of(small, large)
    names = [EntryPaths(both)[record].name for record in range(len(both))]
    assert names == ["0.npz", "1.npz", "2.npz", "0.2.npz", "1.2.npz", "2.2.npz"]
    store, reuse = fill(both)
    assert reasons(reuse) == {State.FITS: 3, State.MISSING: 3}
    assert_equals_memory(store, views_of(both, 3))
    assert fill(both)[1].encoded == 0 and fill(alone)[1].encoded == 0


def test_names_that_are_no_text_keep_their_latents(tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"\xff\xe9 cat")
    try:
        save_picture(tmp_path / "cat.png").rename(strange.with_suffix(".png"))
    except OSError:
        pytest.skip("this disk takes no such names")
    save_picture(tmp_path / "名前 🐈.png", seed=1)
    index = index_of(make_dataset(make_subset(tmp_path)))
    store, _ = fill(index)
    assert_equals_memory(store, views_of(index, 3))
    assert fill(index)[1].encoded == 0


@pytest.mark.parametrize("count", [2, 3, 16])
def test_processes_share_the_work_and_nothing_is_done_twice(tmp_path: Path, count: int) -> None:
    index = make_world(tmp_path)
    gathered = Gathered(count)
    for number in range(count):
        vae, processes = ToyVae(), gathered.process(number)
        fill_disk_store(files_of(index), vae, 0, processes)
        assert len(vae.counts) == len(processes.share(10))
    states, _, digests = (sum(parts[1:], parts[0]) for parts in zip(*gathered.tensors.values(), strict=True))
    assert int(states.sum()) == int(states[State.MISSING]) == 10
    store, reuse = fill(index)
    assert reuse.encoded == 0 and torch.equal(digests, store.digests)
    assert_equals_memory(DiskLatentStore(files_of(index), digests), views_of(index, 3))


def test_the_store_holds_no_latents_and_travels_to_workers(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    store, _ = fill(index)
    dataset = TrainingDataset(store.files.views, toy_tokenize, noise_of(store.files.views), store)
    content = pickle.dumps(dataset)
    assert len(content) < 20_000 < 10 * store.get(0, Choice()).latents.numel() * 4 * 8
    request = BatchRequest(epoch=0, position=0, records=(0, 2), repeats=(0, 0), closes_update=True, loss_scale=1.0)
    batch = pickle.loads(content)[request]
    assert (
        batch.latents is not None
        and torch.equal(batch.latents[1], store.get(2, Choice()).latents)
        and batch.pixels is None
    )


@pytest.mark.parametrize("change", ["another run", "gone", "torn"])
def test_an_entry_that_changes_during_the_run_is_not_used(tmp_path: Path, change: str) -> None:
    index = make_world(tmp_path)
    store, _ = fill(index)
    path = tmp_path / "dogs" / "2.npz"
    if change == "another run":
        _change_one(tmp_path)
        fill(index)
    elif change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not those of the start any more") as caught:
        store.get(2, Choice())
    assert caught.value.problems[0].where == str(path)
    assert store.get(1, Choice()).latents.shape == (4, 8, 8)


def test_pictures_with_sideways_exif_keep_their_size_as_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(save_picture(tmp_path / "a.png", (120, 40))) as upright:
        upright.save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.png").unlink()
    index = index_of(make_dataset(make_subset(tmp_path)))
    fill(index)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as fields:
        assert fields["original_size"].tolist() == [40, 120]
        left, top, right, bottom = fields["crop_ltrb"].tolist()
        assert fields["latents"].shape == (4, (bottom - top) // 8, (right - left) // 8)


def test_the_place_in_the_dataset_does_not_count(tmp_path: Path) -> None:
    """Neither the number of a subset or a dataset nor the folder's name; only that of the file."""
    for seed in range(3):
        save_picture(tmp_path / "cats" / f"{seed}.png", (90, 64), seed=seed)
    save_picture(tmp_path / "dogs" / "d.png", seed=9)

    def cats(folder: str = "cats") -> DatasetConfig:
        return make_dataset(make_subset(tmp_path / folder, augmentations=EVERYTHING))

    fill_varied(views_of(index_of(cats()), 3, variants=2))
    for index in (
        index_of(make_dataset(make_subset(tmp_path / "dogs")), cats()),
        index_of(
            make_dataset(make_subset(tmp_path / "dogs"), make_subset(tmp_path / "cats", augmentations=EVERYTHING))
        ),
    ):
        views = views_of(index, 3, variants=2)
        store, reuse = fill_varied(views)
        assert reuse.counts[State.FITS] >= 6 and reuse.encoded <= 1
        assert_equals_memory(store, views)
    (tmp_path / "cats").rename(tmp_path / "20_cats")
    assert fill_varied(views_of(index_of(cats("20_cats")), 3, variants=2))[1].encoded == 0


@dataclass(frozen=True)
class Restless(Views):
    """Pictures of which one is exchanged just after it was read, so many times."""

    exchanges: list[Path]

    def read(self, record: int, view: View) -> Seen:
        seen = super().read(record, view)
        if record == 0 and self.exchanges:
            shutil.copy(self.exchanges.pop(), self.index.path(0))
        return seen


def _restless(root: Path, count: int) -> Restless:
    save_picture(root / "cats" / "a.png", seed=0)
    others = [save_picture(root / "others" / f"{seed}.png", seed=seed) for seed in range(1, count + 1)]
    views = views_of(index_of(make_dataset(make_subset(root / "cats"))), 3)
    return Restless(views.index, views.placements, views.drawing, others)


def test_a_picture_that_is_exchanged_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    views = _restless(tmp_path, 2)
    store, _ = fill_varied(views)
    assert views.exchanges == [] and views.index.path(0).read_bytes() == (tmp_path / "others/1.png").read_bytes()
    assert_equals_memory(store, views)
    assert fill_varied(views)[1].encoded == 0


def test_a_picture_that_never_rests_is_told_and_leaves_no_entry(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png: the picture changed while it was read"):
        fill_varied(_restless(tmp_path, 40))
    assert list(tmp_path.rglob("*.npz")) == []


def test_what_is_reused_does_not_wait_for_what_is_encoded(tmp_path: Path) -> None:
    """One picture of a batch that is never full is there first; all others are counted before it is encoded."""
    for seed in range(6):
        save_picture(tmp_path / f"{seed}.png", seed=seed)
    views, work, done = (
        views_of(index_of(make_dataset(make_subset(tmp_path))), 3),
        VaeWork(VAE, "float", 4),
        list[int](),
    )
    fill_varied(views, work)
    (tmp_path / "0.npz").unlink()

    class Late(ToyVae):
        def distribution(self, pixels: Tensor) -> Encoding:
            assert done == [1, 2, 3, 4, 5]
            return super().distribution(pixels)

    files = LatentFiles(views, EntryPaths(views.index), work)
    store, reuse = fill_disk_store(files, Late(), 0, progress=lambda number, total: done.append(number))
    assert reasons(reuse) == {State.FITS: 5, State.MISSING: 1} and done == [1, 2, 3, 4, 5, 6]
    assert_equals_memory(store, views)


def test_a_picture_called_like_the_file_of_cache_info_keeps_both(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", FILE_STEM, f"{FILE_STEM}-x")):
        save_picture(tmp_path / f"{name}.png", seed=seed)
    subset = make_subset(tmp_path, cache_info=True)
    index = index_of(make_dataset(subset))
    kept = info_path(subset).read_bytes()
    fill(index)
    assert info_path(subset).read_bytes() == kept and not (tmp_path / f"{FILE_STEM}-x.npz").exists()
    assert fill(index_of(make_dataset(subset)))[1].encoded == 0
