"""What is told of caches on disk before a model is loaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from library.core.errors import Problem, Problems, UserError
from library.core.sizes import Size
from library.data.augment import Choice
from library.data.cache.cache_checks import check_disk_cache, check_text_disk_cache
from library.data.cache.disk_latents import DiskLatentStore, LatentFiles, Reuse, VaeWork, fill_disk_store
from library.data.cache.entry_paths import EntryPaths
from library.data.index.index import ImageIndex
from library.data.placement import place_all
from library.options.caching import CachingOptions
from tests.data.cache.cache_helpers import make_varied_world
from tests.data.data_helpers import (
    index_of,
    make_dataset,
    make_subset,
    make_world,
    save_picture,
    toy_encode,
    views_of,
)


def fill(index: ImageIndex, seed: int = 3, **drawing: object) -> tuple[DiskLatentStore, Reuse]:
    files = LatentFiles(views_of(index, seed, **drawing), EntryPaths(index), VaeWork("ab" * 16))
    return fill_disk_store(files, toy_encode, 0)


def problems_of(index: ImageIndex) -> list[Problem]:
    problems = Problems()
    check_disk_cache(index, place_all(index), problems)
    return list(problems)


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
            assert np.isfinite(store.get(0, Choice()).latents.numpy()).all()
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


def _needed_mib(index: ImageIndex, caching: CachingOptions, variants: int | None) -> int:
    """What is told to be needed where each picture's latents are as large as no disk is."""
    placements = place_all(index)
    huge = replace(placements, buckets=tuple(Size(1 << 26, 1 << 26) for _ in placements.buckets))
    problems = Problems()
    check_disk_cache(index, huge, problems, caching, variants)
    (problem,) = problems
    return int(problem.what.split()[-2])


def test_every_look_and_mask_is_counted(tmp_path: Path) -> None:
    """Four pictures of 3 variants, plain and mirrored, each file with a mask; three with one look."""
    index = make_varied_world(tmp_path)
    layer = 4 << (2 * 23) >> 20  # MiB of one number for each of 2^23 x 2^23 cells
    numbers = 12 * (2 * 4 + 1) + 3 * 4
    assert abs(_needed_mib(index, CachingOptions(), 3) - numbers * layer) <= 1
    numbers = 12 * (2 * 8 + 1) + 3 * 8
    assert abs(_needed_mib(index, CachingOptions(cache_latent_distribution=True), 3) - numbers * layer) <= 1


def test_what_is_there_needs_no_room(tmp_path: Path) -> None:
    index = make_varied_world(tmp_path)
    fill(index, variants=3)
    (tmp_path / "varied" / "1.v2.npz").unlink()
    layer = 4 << (2 * 23) >> 20
    assert abs(_needed_mib(index, CachingOptions(), 3) - 9 * layer) <= 1


def test_files_in_the_way_of_variants_and_text_states_are_named(tmp_path: Path) -> None:
    index = make_varied_world(tmp_path)
    in_the_way = [tmp_path / "varied" / name for name in ("0.v2.npz", "1.te.npz")]
    for path in in_the_way:
        path.write_text("mine\n", encoding="utf-8")
    latents, texts = Problems(), Problems()
    check_disk_cache(index, place_all(index), latents, CachingOptions(), 3)
    check_text_disk_cache(index, 77, texts)
    assert [problem.where for problem in (*latents, *texts)] == [str(path) for path in in_the_way]


def test_text_states_without_room_or_right_are_told(tmp_path: Path) -> None:
    problems = Problems()
    check_text_disk_cache(make_world(tmp_path), 1 << 40, problems)
    (problem,) = problems
    assert "the text states need" in problem.what and "--cache_text_encoder_outputs_to_disk" in problem.fix
