"""Where cache files lie: one name for each, whatever the pictures are called, and at a million pictures."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from library.data.cache.entry_paths import EntryPaths, remove_temporaries
from library.data.index.columns import SharedColumns
from library.data.index.index import ImageIndex, Texts
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture


def _index(root: Path, names: list[str]) -> ImageIndex:
    for seed, name in enumerate(names):
        save_picture(root / name, seed=seed)
    return index_of(make_dataset(make_subset(root)))


def _names(index: ImageIndex) -> list[str]:
    return [EntryPaths(index)[record].name for record in range(len(index))]


def test_every_kind_of_file_has_its_name(tmp_path: Path) -> None:
    paths = EntryPaths(_index(tmp_path, ["cat.png"]))
    assert paths[0] == paths.latents(0) == tmp_path / "cat.npz"
    assert paths.latents(0, 2) == tmp_path / "cat.v2.npz" and paths.texts(0) == tmp_path / "cat.te.npz"


def test_pictures_of_one_stem_have_names_of_their_own(tmp_path: Path) -> None:
    index = _index(tmp_path, ["a.b.png", "a.jpg", "a.png", "a.png.bmp", "b.png"])
    assert _names(index) == ["a.b.npz", "a.jpg.npz", "a.png.2.npz", "a.png.npz", "b.npz"]


def test_stems_that_differ_in_capitals_alone_do_not_share_an_entry(tmp_path: Path) -> None:
    assert _names(_index(tmp_path, ["A.jpg", "a.png"])) == ["A.jpg.npz", "a.png.npz"]


def test_pictures_that_are_called_like_further_files_do_not_take_their_names(tmp_path: Path) -> None:
    names = ["a.V2.png", "a.png", "a.te.png", "a.v1.jpg", "a.v1.png", "a.v1x.png", "b.v1.png", "v1.png"]
    index = _index(tmp_path, names)
    assert _names(index) == [
        "a.V2.png.npz", "a.npz", "a.te.png.npz", "a.v1.jpg.npz", "a.v1.png.npz", "a.v1x.npz", "b.v1.png.npz", "v1.npz"
    ]  # fmt: skip
    paths = EntryPaths(index)
    files = [path for r in range(len(index)) for path in (paths.texts(r), *(paths.latents(r, v) for v in range(4)))]
    assert len({path.name.casefold() for path in files}) == len(files) == 40


def test_a_picture_used_twice_has_two_names_also_by_another_path(tmp_path: Path) -> None:
    for seed in range(3):
        save_picture(tmp_path / "cats" / f"{seed}.png", seed=seed)
    (tmp_path / "link").symlink_to(tmp_path / "cats", target_is_directory=True)
    index = index_of(make_dataset(make_subset(tmp_path / "cats")), make_dataset(make_subset(tmp_path / "link")))
    assert _names(index) == ["0.npz", "1.npz", "2.npz", "0.2.npz", "1.2.npz", "2.2.npz"]


def test_equal_names_in_two_folders_stay_simple(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_picture(tmp_path / folder / "cat.png")
    index = index_of(make_dataset(make_subset(tmp_path / "a"), make_subset(tmp_path / "b")))
    assert [EntryPaths(index)[record] for record in range(2)] == [tmp_path / "a/cat.npz", tmp_path / "b/cat.npz"]


def _grown(index: ImageIndex, count: int) -> ImageIndex:
    """An index with so many rows; only names and folders matter here."""
    assert isinstance(index, SharedColumns)
    columns = {name: np.resize(values, count) for name, values in vars(index).items() if isinstance(values, np.ndarray)}
    return replace(index, **columns, names=Texts(f"folder {n % 7}/picture number {n:07}.jpg" for n in range(count)))


def test_many_pictures_need_no_object_each(tmp_path: Path) -> None:
    """The growth is linear, and nothing is kept of usual names; two that clash still do not share."""
    count = 100_000
    index = _grown(_index(tmp_path, ["a.png"]), count)
    start = time.process_time()
    paths = EntryPaths(index)
    assert time.process_time() - start < 5  # a tenth of it, at a time when the machine is not shared
    kept = vars(paths)
    assert set(kept) == {"_index", "_unusual"} and len(kept["_unusual"]) == 0 and sys.getsizeof(kept["_unusual"]) < 1000
    assert paths[count - 1] == tmp_path / f"folder {(count - 1) % 7}" / f"picture number {count - 1:07}.npz"


@pytest.mark.parametrize("name", ["..png.png", "a..png", "a b.c.png", "名前.png"])
def test_odd_names_have_the_stem_that_pathlib_sees(tmp_path: Path, name: str) -> None:
    save_picture(tmp_path / "x.png")
    index = replace(index_of(make_dataset(make_subset(tmp_path))), names=Texts([name]))
    assert _names(index) == [f"{Path(name).stem}.npz"]


def test_the_names_of_the_file_of_cache_info_are_not_taken(tmp_path: Path) -> None:
    names = ["SD_atelier_index.png", "my_sd_atelier_index.png", "sd_atelier_index-meta.png"]
    index = _index(tmp_path, names)
    assert _names(index) == ["SD_atelier_index.png.npz", "my_sd_atelier_index.npz", "sd_atelier_index-meta.png.npz"]


def test_left_overs_of_killed_runs_are_found_in_every_folder(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        save_picture(tmp_path / folder / "cat.png")
        left = tmp_path / folder / f".tmp-{'1' * 8}-{'0' * 8}-5.npz"
        left.write_text("half")
        os.utime(left, (1, 1))
    paths = EntryPaths(index_of(make_dataset(make_subset(tmp_path / "a"), make_subset(tmp_path / "b"))))
    assert paths.folders() == [tmp_path / "a", tmp_path / "b"]
    assert remove_temporaries(paths) == 2
    assert [path.parent.name for path in tmp_path.rglob("*.npz")] == ["c"]
