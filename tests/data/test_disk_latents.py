"""Latents on disk: what is found again, what is encoded again, and where they lie."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from library.core.errors import Problem, Problems, UserError
from library.core.sizes import Size
from library.data.dataset import TrainingDataset
from library.data.disk_latents import (
    DiskLatentStore,
    EntryPaths,
    LatentFiles,
    Processes,
    Reuse,
    check_disk_cache,
    fill_disk_store,
)
from library.data.index import ImageIndex
from library.data.latent_files import State
from library.data.latents import fill_memory_store
from library.data.placement import place_all
from library.data.planner import BatchRequest
from tests.data.data_helpers import (
    index_of,
    make_dataset,
    make_subset,
    make_world,
    save_picture,
    toy_encode,
    toy_tokenize,
)

VAE = "ab" * 16


def files_of(index: ImageIndex, vae: str = VAE, seed: int = 3) -> LatentFiles:
    return LatentFiles(index, place_all(index), EntryPaths(index), vae, seed)


def fill(index: ImageIndex, vae: str = VAE, seed: int = 3, workers: int = 0) -> tuple[DiskLatentStore, Reuse]:
    return fill_disk_store(files_of(index, vae, seed), toy_encode, workers)


def reasons(reuse: Reuse) -> dict[State, int]:
    return {state: number for state, number in reuse.counts.items() if number}


def assert_equals_memory(store: DiskLatentStore, index: ImageIndex, seed: int = 3) -> None:
    expected = fill_memory_store(index, place_all(index), toy_encode, seed, workers=0)
    for record in range(len(index)):
        latents = store.get(record)
        assert latents.dtype == torch.float32 and torch.equal(latents, expected.get(record))


def problems_of(index: ImageIndex) -> list[Problem]:
    problems = Problems()
    check_disk_cache(index, place_all(index), problems)
    return list(problems)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_start_encodes_nothing_and_reads_the_same_bits(tmp_path: Path, workers: int) -> None:
    index = make_world(tmp_path)
    first, reuse = fill(index, workers=workers)
    assert reasons(reuse) == {State.MISSING: 10} and reuse.encoded == 10
    assert reuse.line() == "latents on disk: 0 reused, 10 encoded (10 not there yet)"
    assert_equals_memory(first, index)

    def refuse(pixels: Tensor, latent_noise: Tensor) -> Tensor:
        raise AssertionError("nothing is left to encode")

    calls: list[tuple[int, int]] = []
    second, reuse = fill_disk_store(
        files_of(index), refuse, workers, progress=lambda done, total: calls.append((done, total))
    )
    assert reasons(reuse) == {State.FITS: 10} and reuse.encoded == 0
    assert reuse.line() == "latents on disk: 10 reused, 0 encoded"
    assert calls == [(done, 10) for done in range(1, 11)]
    assert_equals_memory(second, index)
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
    Change("another ending", {State.PLACE: 1}, lambda root: (root / "reg/r0.jpg").rename(root / "reg/r0.jpeg")),
    Change("an entry less", {State.MISSING: 1}, lambda root: (root / "dogs" / "6.npz").unlink()),
    Change("an entry torn", {State.DAMAGED: 1}, _cut),
    Change("an entry of others", {State.FOREIGN: 1}, _foreign),
    Change("the VAE", {State.VAE: 10}, vae="cd" * 16),
    Change("the seed", {State.SEED: 10}, seed=4),
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
    assert_equals_memory(store, index, change.seed)
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
    assert_equals_memory(store, index)


def test_a_moved_folder_keeps_its_latents(tmp_path: Path) -> None:
    fill(make_world(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert fill(_reread(tmp_path / "there"))[1].encoded == 0


def test_a_stopped_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    calls: list[int] = []

    def encode(pixels: Tensor, latent_noise: Tensor) -> Tensor:
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return toy_encode(pixels, latent_noise)

    with pytest.raises(KeyboardInterrupt):
        fill_disk_store(files_of(index), encode, workers=0)
    store, reuse = fill(index)
    assert reasons(reuse) == {State.FITS: 4, State.MISSING: 6}
    assert_equals_memory(store, index)


def test_latents_that_are_not_finite_are_named_and_not_stored(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    with pytest.raises(UserError, match=r"0\.png: the VAE turns this picture into numbers that are not finite"):
        fill_disk_store(files_of(index), lambda pixels, noise: noise * torch.nan, workers=0)
    assert list(tmp_path.rglob("*.npz")) == []


def test_pictures_are_encoded_one_at_a_time(tmp_path: Path) -> None:
    counts = []

    def encode(pixels: Tensor, latent_noise: Tensor) -> Tensor:
        counts.append(len(pixels))
        return toy_encode(pixels, latent_noise)

    fill_disk_store(files_of(make_world(tmp_path)), encode, workers=0)
    assert counts == [1] * 10


def _names(index: ImageIndex) -> list[str]:
    return [EntryPaths(index)[record].name for record in range(len(index))]


def test_pictures_of_one_stem_do_not_share_an_entry(tmp_path: Path) -> None:
    names = ["a.b.png", "a.jpg", "a.png", "a.png.bmp", "b.png"]
    for seed, name in enumerate(names):
        save_picture(tmp_path / name, seed=seed)
    index = index_of(make_dataset(make_subset(tmp_path)))
    assert _names(index) == ["a.b.npz", "a.jpg.npz", "a.png.2.npz", "a.png.npz", "b.npz"]
    store, _ = fill(index)
    assert_equals_memory(store, index)
    assert fill(index)[1].encoded == 0


def test_stems_that_differ_in_capitals_alone_do_not_share_an_entry(tmp_path: Path) -> None:
    for name in ("A.jpg", "a.png"):
        save_picture(tmp_path / name)
    assert _names(index_of(make_dataset(make_subset(tmp_path)))) == ["A.jpg.npz", "a.png.npz"]


def test_a_picture_at_two_resolutions_has_two_entries(tmp_path: Path) -> None:
    for seed in range(3):
        save_picture(tmp_path / "cats" / f"{seed}.png", (96, 96), seed=seed)
    (tmp_path / "link").symlink_to(tmp_path / "cats", target_is_directory=True)
    small = make_dataset(make_subset(tmp_path / "cats"))
    large = make_dataset(make_subset(tmp_path / "link"), resolution=Size(96, 96))
    alone = index_of(small)
    fill(alone)
    both = index_of(small, large)
    assert _names(both) == ["0.npz", "1.npz", "2.npz", "0.2.npz", "1.2.npz", "2.2.npz"]
    store, reuse = fill(both)
    assert reasons(reuse) == {State.FITS: 3, State.MISSING: 3}
    assert_equals_memory(store, both)
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
    assert_equals_memory(store, index)
    assert fill(index)[1].encoded == 0


@pytest.mark.parametrize("count", [2, 3, 16])
def test_processes_share_the_work_and_nothing_is_done_twice(tmp_path: Path, count: int) -> None:
    index = make_world(tmp_path)
    parts: list[tuple[Tensor, Tensor]] = []
    for number in range(count):
        seen: list[Tensor] = []
        processes = Processes(number, count, lambda tensor, seen=seen: seen.append(tensor) or tensor)  # type: ignore[misc]
        calls: list[int] = []

        def encode(pixels: Tensor, latent_noise: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return toy_encode(pixels, latent_noise)

        fill_disk_store(files_of(index), encode, 0, processes)
        assert len(calls) == len(processes.share(10))
        parts.append((seen[0], seen[1]))
    states, digests = (sum(tensors[1:], tensors[0]) for tensors in zip(*parts, strict=True))
    assert int(states.sum()) == int(states[State.MISSING]) == 10
    store, reuse = fill(index)
    assert reuse.encoded == 0 and torch.equal(digests, store.digests)
    assert_equals_memory(DiskLatentStore(files_of(index), digests), index)


def test_the_store_holds_no_latents_and_travels_to_workers(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    store, _ = fill(index)
    dataset = TrainingDataset(index, store.files.placements, toy_tokenize, store, seed=3)
    content = pickle.dumps(dataset)
    assert len(content) < 20_000 < 10 * store.get(0).numel() * 4 * 8
    request = BatchRequest(epoch=0, position=0, records=(0, 2), repeats=(0, 0), closes_update=True, loss_scale=1.0)
    batch = pickle.loads(content)[request]
    assert batch.latents is not None and torch.equal(batch.latents[1], store.get(2)) and batch.pixels is None


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
        store.get(2)
    assert caught.value.problems[0].where == str(path)
    assert store.get(1).shape == (4, 8, 8)


def test_files_in_the_way_are_all_named_before_the_start(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    assert problems_of(index) == []
    for name in ("dogs/0.npz", "reg/r1.npz"):
        (tmp_path / name).write_text("mine\n", encoding="utf-8")
    found = problems_of(index)
    assert [problem.where for problem in found] == [str(tmp_path / "dogs/0.npz"), str(tmp_path / "reg/r1.npz")]
    assert all("holds something else" in problem.what for problem in found)
    with pytest.raises(UserError, match=r"0\.npz"):
        fill(index)
    assert (tmp_path / "dogs/0.npz").read_text(encoding="utf-8") == "mine\n"


def test_many_files_in_the_way_are_counted(tmp_path: Path) -> None:
    for number in range(25):
        save_picture(tmp_path / f"{number:02}.png")
        (tmp_path / f"{number:02}.npz").write_text("mine\n", encoding="utf-8")
    found = problems_of(index_of(make_dataset(make_subset(tmp_path))))
    assert len(found) == 21 and found[-1].what == "5 more files like these"


@contextmanager
def _folder_for_reading_only() -> Iterator[Path]:
    """Pictures in a folder that this process may not write to, also when it runs as root."""
    if os.name == "nt":
        pytest.skip("rights of folders work in another way on Windows")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        root, folder = Path(name), Path(name) / "cats"
        for seed in range(2):
            save_picture(folder / f"{seed}.png", seed=seed)
        root.chmod(0o755)
        yield folder
        folder.chmod(0o755)


@contextmanager
def _without_rights(folder: Path) -> Iterator[None]:
    is_root = os.geteuid() == 0
    folder.chmod(0o555)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_folder_for_reading_only_is_named_once_before_the_start() -> None:
    with _folder_for_reading_only() as folder:
        index = index_of(make_dataset(make_subset(folder)))
        with _without_rights(folder):
            (problem,) = problems_of(index)
        assert problem.where == str(folder) and "cannot be written beside the pictures" in problem.what
        assert "--cache_latents" in problem.fix


def test_a_whole_cache_serves_where_nothing_can_be_written() -> None:
    with _folder_for_reading_only() as folder:
        index = index_of(make_dataset(make_subset(folder)))
        fill(index)
        with _without_rights(folder):
            assert problems_of(index) == []
            store, reuse = fill(index)
            assert reuse.encoded == 0
            assert_equals_memory(store, index)
            with pytest.raises(UserError, match=r"0\.npz: the latents cannot be written: Permission denied"):
                fill(index, seed=4)
        assert fill(index)[1].encoded == 0  # nothing was harmed


def test_too_little_room_is_told_before_the_start(tmp_path: Path) -> None:
    """A picture's latents can be asked to be larger than any disk: the numbers are plain arithmetic."""
    index = make_world(tmp_path)
    placements = place_all(index)
    huge = replace(placements, buckets=tuple(Size(1 << 26, 1 << 26) for _ in placements.buckets))
    problems = Problems()
    check_disk_cache(index, huge, problems)
    (problem,) = problems
    assert "MiB are free on its disk, the latents need" in problem.what
    assert problem.where == f"{tmp_path / 'dogs'}, {tmp_path / 'reg'}"


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
