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


def test_links_in_the_folder_lead_to_what_lies_in_it(tmp_path: Path) -> None:
    """By a path from the folder or by a full one; the other folder has its pictures as well."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    try:
        (folder / "sub").symlink_to(elsewhere, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    keys = {"sub/a": 1, str(folder / "sub" / "b"): 2, str(elsewhere / "c"): 3, "sub/../../d": 4}
    assert list(entries_within(keys, folder).values()) == [1, 2]
    assert list(entries_within(keys, elsewhere).values())[-2:] == [2, 3]


def test_paths_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the public tools write keys; what is there below the folder goes first."""
    for name in ("first", "second", "first/second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    keys = {"first/a": 1, "second/b": 2, "gone/c": 3, "d": 4, "e\0/f": 5}
    assert list(entries_within(keys, tmp_path / "first").values()) == [1, 2, 3, 4]
    (tmp_path / "first" / "second").rmdir()
    assert list(entries_within(keys, tmp_path / "first").values()) == [1, 3, 4]


def test_which_folder_a_path_counts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the finder takes them; where no picture is to be found, by the folders that are there."""
    for name in ("td1/a.jpg", "td1/td1/b.jpg", "td1/x/c.jpg", "td2/a.jpg", "x/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    inside = ["td1/a.jpg", "td1\\a.jpg", "td1/b.jpg", "td1/gone.jpg", "x/c.jpg", "x/gone.jpg", "new/a.jpg"]
    outside = ["td2/a.jpg", "td2\\a.jpg", "td2/gone.jpg", "x/d.jpg", "./td2/a"]
    keys = dict.fromkeys([*inside, *outside], 0)
    assert list(entries_within(keys, Path("td1"))) == inside
    assert entries_within({"\0/a": 0}, Path("td1")) == {}
