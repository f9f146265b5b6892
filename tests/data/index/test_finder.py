"""Keys find pictures: a folder is one place by whichever path it is reached, and paths count from here at last."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.core.errors import Problems
from library.data.index.finder import PictureFinder, Place
from library.data.index.metadata import find_pictures, match_keys


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def link(path: Path, target: Path) -> Path:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("no links here")
    return path


# --- one folder by several paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["a", "la", None])
def test_two_keys_of_one_picture_by_two_paths_of_its_folder(tmp_path: Path, base: str | None) -> None:
    put(tmp_path, "a/1.jpg", "a/2.jpg", "a/x/1.jpg")
    link(tmp_path / "la", tmp_path / "a")
    image_dir = None if base is None else tmp_path / base
    for one, other in (("1.jpg", "1.jpg"), ("x/1", "x/1.jpg"), ("1", "x/../1")):
        problems = Problems()
        keys = {str(tmp_path / "a" / one): "caption", str(tmp_path / "la" / other): "tags"}
        find_pictures(keys, Path("meta.json"), image_dir, problems)
        (problem,) = problems
        assert "it names the same picture as the key" in problem.what and problem.fix == "keep one of them"


def test_names_count_from_the_folder_as_it_was_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg")
    folder, problems = link(tmp_path / "la", tmp_path / "a"), Problems()
    keys = dict.fromkeys(("1", str(tmp_path / "a" / "2.jpg")), "text")
    found = find_pictures(keys, Path("meta.json"), folder, problems)
    assert not problems and found.root == folder and found.without_entry == ("3.jpg",)
    assert [picture.name for picture in found.pictures] == ["1.jpg", "2.jpg"]


def test_a_folder_goes_by_the_path_of_who_listed_it(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg")
    link(tmp_path / "la", tmp_path / "a")
    finder = PictureFinder([tmp_path / "a", tmp_path / "la"])
    finder.know(str(tmp_path / "la"), ["1.jpg"])
    for key in ("1", str(tmp_path / "a" / "1"), str(tmp_path / "la" / "1")):
        assert finder.find(key) == [Place(str(tmp_path / "la"), "1.jpg")]


def test_a_picture_that_is_a_link_is_another_picture(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg")
    link(tmp_path / "a" / "2.jpg", tmp_path / "a" / "1.jpg")
    found = match_keys(["1", "2"], Path("meta.json"), PictureFinder([tmp_path / "a"]))
    assert len(found.key_of) == 2 and not found.unclear


# --- keys that count from the working folder --------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["td1/a.jpg", "td1/a", "td1\\a.jpg", "./td1/a.jpg"])
@pytest.mark.parametrize("base", ["td1", "td2", None])
def test_paths_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, base: str | None
) -> None:
    monkeypatch.chdir(put(tmp_path, "td1/a.jpg", "td2/b.jpg"))
    problems = Problems()
    found = find_pictures({key: "text"}, Path("meta.json"), None if base is None else Path(base), problems)
    assert not problems and found.from_here == (key,)
    (picture,) = found.pictures
    assert (found.root / picture.name).samefile("td1/a.jpg")


def test_the_folder_that_is_named_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path, "td1/a.jpg", "td1/b.jpg", "td1/td1/a.jpg", "c.jpg"))
    found = match_keys(["td1/a.jpg", "td1/b.jpg", "c", "td1/gone"], Path("meta.json"), PictureFinder([Path("td1")]))
    below, here = Place(str(tmp_path / "td1" / "td1"), "a.jpg"), Place(str(tmp_path / "td1"), "b.jpg")
    assert found.key_of == {below: "td1/a.jpg", here: "td1/b.jpg"} and found.from_here == ["td1/b.jpg"]
    assert found.missing == ["c", "td1/gone"]  # a bare name fits no picture that happens to lie here


def test_one_picture_by_its_name_and_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path, "td1/a.jpg"))
    found = match_keys(["a", "td1/a.jpg"], Path("meta.json"), PictureFinder([Path("td1")]))
    (problem,) = found.unclear
    assert "it names the same picture as the key a" in problem.what
