"""Which keys of a metadata file lie in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from library.data.index.within import entries_within, is_full_path


def test_keys_of_every_kind(tmp_path: Path) -> None:
    folder, twin = tmp_path / "data", tmp_path / "data 2"
    folder.mkdir()
    inside = [
        "a",
        "a.png",
        "sub/a",
        "sub\\a.png",
        "./a",
        "sub/../a",
        str(folder / "a.png"),
        str(folder / "sub" / "deep" / "a"),
    ]
    outside = ["../a", "../data 2/a", str(twin / "a.png"), str(tmp_path / "a"), "/a"]
    keys = {key: number for number, key in enumerate([*inside, *outside])}
    assert entries_within(keys, folder) == {key: keys[key] for key in inside}


@pytest.mark.skipif(os.name == "nt", reason="there such a path is one of this system")
def test_paths_of_another_system_lie_nowhere_here(tmp_path: Path) -> None:
    assert entries_within({"C:\\data\\a.png": 1, "D:/data/a": 2, "\\\\disk\\share\\a": 3}, tmp_path) == {}
    assert is_full_path("C:\\data\\a.png") and is_full_path("/data/a") and not is_full_path("data/a")


def test_links_on_the_way_do_not_matter(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    try:
        link.symlink_to(real, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert list(entries_within({str(link / "a"): 1, str(real / "b"): 2}, real)) == [str(link / "a"), str(real / "b")]
    assert list(entries_within({str(link / "a"): 1, str(real / "b"): 2}, link)) == [str(link / "a"), str(real / "b")]


def test_a_folder_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    keys = {"a": 1, str(tmp_path / "data" / "b.png"): 2, str(tmp_path / "c.png"): 3}
    assert list(entries_within(keys, Path("data"))) == ["a", str(tmp_path / "data" / "b.png")]
