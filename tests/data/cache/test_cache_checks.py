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
import torch

from library.core.errors import Problem, Problems, UserError
from library.core.sizes import Size
from library.data.augment import Augmentations, Choice
from library.data.cache.cache_checks import check_disk_cache, check_text_disk_cache
from library.data.cache.disk_latents import DiskLatentStore, LatentFiles, Reuse, VaeWork, fill_disk_store
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.text_states import TextFiles, fill_disk_texts
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
                fill(index, redraws_latents=True)
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
    """Four pictures of 3 variants, plain and mirrored, one of them with masks; three with one look."""
    index = make_varied_world(tmp_path)
    layer = 4 << (2 * 23) >> 20  # MiB of one number for each of 2^23 x 2^23 cells
    numbers = 12 * 2 * 4 + 3 * 1 + 3 * 4
    assert abs(_needed_mib(index, CachingOptions(), 3) - numbers * layer) <= 1
    numbers = 12 * 2 * 8 + 3 * 1 + 3 * 8
    assert abs(_needed_mib(index, CachingOptions(cache_latent_distribution=True), 3) - numbers * layer) <= 1


def test_what_is_there_needs_room_only_where_it_grows(tmp_path: Path) -> None:
    """Entries of another kind are left alone by the arithmetic of what is missing; too small ones will be replaced."""
    index = make_varied_world(tmp_path)
    fill(index, variants=3)
    layer = 4 << (2 * 23) >> 20
    assert abs(_needed_mib(index, CachingOptions(), 3) - (12 * 2 * 4 + 3 * 1 + 3 * 4) * layer) <= 1
    problems = Problems()
    check_disk_cache(index, place_all(index), problems, CachingOptions(), 3)
    assert not problems


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


def _told_where_nothing_can_be_written(
    index: ImageIndex, folder: Path, variants: int | None = None, seed: int | None = None, **caching: object
) -> list[str]:
    problems = Problems()
    with _without_rights(folder):
        options = CachingOptions(**caching)  # type: ignore[arg-type]
        check_disk_cache(index, place_all(index), problems, options, variants, seed)
    return [problem.what.partition("some do not fit ")[2] for problem in problems]


def test_entries_that_do_not_fit_are_told_where_nothing_can_be_written() -> None:
    """Before a model is loaded, as far as it can be known then."""
    with _folder_for_reading_only() as folder:
        small = index_of(make_dataset(make_subset(folder)))
        fill(small)
        large = index_of(make_dataset(make_subset(folder), resolution=Size(96, 96)))
        flipped = index_of(make_dataset(make_subset(folder, augmentations=Augmentations(flip=True))))
        for index, caching, expected in (
            (small, {}, []),
            (large, {}, ["(2 other size or crop)"]),
            (flipped, {}, ["(2 without the mirrored picture)"]),
            (small, {"vae_batch_size": 2}, ["(2 other precision or batch size of the VAE)"]),
        ):
            assert _told_where_nothing_can_be_written(index, folder, **caching) == expected
        distributions = _told_where_nothing_can_be_written(small, folder, cache_latent_distribution=True)
        assert distributions and "2 a single draw where distributions are wanted" in distributions[0]
        assert problems_of(large) == []  # where they can be replaced, they will be


def test_drawn_crops_are_compared_where_the_seed_is_known() -> None:
    with _folder_for_reading_only() as folder:
        save_picture(folder / "wide.png", (128, 40))
        subset = make_subset(folder, augmentations=Augmentations(random_crop=True))
        index = index_of(make_dataset(subset, bucketing=None))
        fill(index, seed=3, variants=4)
        assert _told_where_nothing_can_be_written(index, folder, 4, 3) == []
        assert _told_where_nothing_can_be_written(index, folder, 4) == []
        (told,) = _told_where_nothing_can_be_written(index, folder, 4, 5)
        assert "other size or crop" in told


def test_captions_that_changed_are_told_where_nothing_can_be_written() -> None:
    with _folder_for_reading_only() as folder:
        index = index_of(make_dataset(make_subset(folder)))
        files = TextFiles(index, EntryPaths(index), "encoder", "reading")
        fill_disk_texts(files, lambda caption: torch.ones(77, 8), 0)
        other = index_of(make_dataset(make_subset(folder, class_tokens="a cat")))
        for looked_at, count in ((index, 0), (other, 1)):
            problems = Problems()
            with _without_rights(folder):
                check_text_disk_cache(looked_at, 77, problems)
            assert len(problems) == count
        assert "(2 caption changed)" in next(iter(problems)).what


def test_names_that_become_too_long_are_told(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") if os.name != "nt" else 255
    save_picture(tmp_path / ("a" * (longest - 4) + ".png"))
    save_picture(tmp_path / ("b" * (longest - 7) + ".png"))
    varied = make_subset(tmp_path, augmentations=Augmentations(random_crop=True))
    index = index_of(make_dataset(varied))
    assert problems_of(index) == []
    latents, texts = Problems(), Problems()
    check_disk_cache(index, place_all(index), latents, CachingOptions(), 2)
    check_text_disk_cache(index, 77, texts)
    first, second, *more = [*latents, *texts]
    assert f"a file whose name has {longest + 3} bytes, {longest} are possible there" in first.what
    assert "by 3 bytes, or use --cache_latents," in first.fix
    assert "by 3 bytes, or use --cache_text_encoder_outputs," in second.fix and more == []
    fill(index_of(make_dataset(make_subset(tmp_path))))
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    for name in ("0.npz", "0.te.npz"):
        (tmp_path / "dogs" / name).symlink_to(tmp_path / "gone.npz")
    problems = Problems()
    check_text_disk_cache(index, 77, problems)
    (latents,), (texts,) = problems_of(index), problems
    assert "a link to" in latents.what and "a link to" in texts.what
