"""What merging tells of texts and entries that it passes over, replaces, or finds by an unusual key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from library.core.errors import UserError
from library.core.log import start_logging
from library.options.preparation import MergeCaptionsOptions, MergeTagsOptions
from library.preparation.merging import merge_texts


def put(folder: Path, **texts: str) -> Path:
    """Pictures with captions, and with tags."""
    folder.mkdir(exist_ok=True)
    for stem, text in texts.items():
        (folder / f"{stem}.jpg").touch()
        (folder / f"{stem}.caption").write_text(text, encoding="utf-8")
        (folder / f"{stem}.txt").write_text(f"tag of {text}", encoding="utf-8")
    return folder


def merge(out: str, *folders: str, **changes: Any) -> dict[str, dict[str, Any]]:
    start_logging()  # to the standard error of this test
    merge_texts("caption", MergeCaptionsOptions(folders, out, **changes))
    return read(out)


def merge_tags(out: str, *folders: str, **changes: Any) -> dict[str, dict[str, Any]]:
    start_logging()
    merge_texts("tags", MergeTagsOptions(folders, out, **changes))
    return read(out)


def read(path: str) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return entries


@pytest.fixture(autouse=True)
def said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> pytest.CaptureFixture[str]:
    monkeypatch.chdir(tmp_path)
    return capfd


# --- one folder by several paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recursive", [False, True])
def test_a_folder_by_another_path_gets_no_second_entries(tmp_path: Path, recursive: bool) -> None:
    put(tmp_path / "a", **{"1": "one"})
    put(tmp_path / "a" / "below", **{"2": "two"})
    try:
        (tmp_path / "la").symlink_to("a", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    merge("c.json", "a", full_path=True, recursive=recursive)
    entries = merge_tags("l.json", "la", full_path=True, recursive=recursive, in_json="c.json")
    one, two = (tmp_path / "a" / name for name in ("1.jpg", "below/2.jpg"))
    expected = {one.as_posix(): {"caption": "one", "tags": "tag of one"}}
    if recursive:
        expected[two.as_posix()] = {"caption": "two", "tags": "tag of two"}
    assert entries == expected
    new = merge("new.json", "la", full_path=True, recursive=recursive)
    assert all(key.startswith((tmp_path / "la").as_posix()) for key in new) and len(new) == len(expected)


# --- keys from the working folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_keys_as_the_public_tools_write_them(tmp_path: Path, said: pytest.CaptureFixture[str], slash: str) -> None:
    put(tmp_path / "td1", a="new a", b="new b")
    put(tmp_path / "td2", a="other a")
    keys = [f"td1{slash}a.jpg", f"td1{slash}b.jpg", f"td2{slash}a.jpg"]
    Path("k.json").write_text(json.dumps({key: {"caption": "old"} for key in keys}), encoding="utf-8")
    entries = merge("ko.json", "td1", full_path=True, in_json="k.json")
    assert [entry["caption"] for entry in entries.values()] == ["new a", "new b", "old"] and list(entries) == keys
    told = said.readouterr().err
    assert f"3 keys fit only as paths from the working folder ({tmp_path}): {keys[0]}" in told
    assert "have no picture" not in told and "no full paths" not in told and "2 of 2 entries that had caption" in told
    assert "MOST TEXTS" not in told  # such keys name their folder


def test_who_gave_full_path_is_not_told_to(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "td1", a="a")
    Path("k.json").write_text('{"gone/b.jpg": {}}', encoding="utf-8")
    merge("ko.json", "td1", full_path=True, in_json="k.json")
    told = said.readouterr().err
    assert "1 entries have no picture, and stay as they are: gone/b.jpg" in told and "need --full_path" not in told


# --- what is passed over ----------------------------------------------------------------------------------------------


def test_texts_without_picture_and_for_several(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    data = put(tmp_path / "data", a="a", b="b")
    for name in ("a.png", "photo.heic"):
        (data / name).touch()
    for number in range(7):
        (data / f"old{number}.caption").write_text("x", encoding="utf-8")
    for name in ("photo.caption", "notes.txt"):
        (data / name).write_text("x", encoding="utf-8")
    assert list(merge("out.json", "data")) == ["a.jpg", "a.png", "b"]
    told = said.readouterr().err
    names = ", ".join(str(data / f"old{number}.caption") for number in range(5))
    assert f"7 .caption files have no picture: {names} and 2 more" in told
    assert f"1 .caption files belong to several pictures of one name: {data / 'a.caption'}\n" in told
    assert "data: 1 pictures are left out (HEIC is not read; convert it to PNG or JPEG): photo.heic" in told
    merge("b.json", str(put(tmp_path / "clean", a="a")))
    assert not {"have no picture", "belong to"} & set(said.readouterr().err.split(": "))


def test_a_folder_with_pictures_of_other_kinds_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.heic", "b.gif", "a.caption"):
        (data / name).touch()
    with pytest.raises(UserError) as error:
        merge("out.json", "data")
    told = str(error.value)
    assert "no pictures in this folder; 1 pictures are left out (HEIC" in told and "(GIF" in told and "b.gif" in told


# --- what is replaced -------------------------------------------------------------------------------------------------


def test_texts_of_another_folder_take_the_place_of_those_before(
    tmp_path: Path, said: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "one", **{"0001": "one 1", "0002": "one 2", "0003": "one 3"})
    put(tmp_path / "two", **{"0001": "two 1", "0002": "two 2"})
    merge("1.json", "one")
    merge("2.json", "two", in_json="1.json")
    told = said.readouterr().err
    assert "MOST TEXTS WERE REPLACED: 2 of 2 entries that had caption got other caption instead: 0001, 0002" in told
    assert "(what they had stands in 1.json)" in told and "merge each folder with --full_path" in told


def test_a_few_edited_texts_are_told_more_quietly(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    data = put(tmp_path / "data", a="a", b="b", c="c")
    merge("m.json", "data")
    merge("m.json", "data")
    assert "instead" not in said.readouterr().err
    put(data, a="edited")
    merge("m.json", "data")
    told = said.readouterr().err
    assert "1 of 3 entries that had caption got other caption instead: a (what they had stands in" in told
    assert "m.backup-1.json)" in told and "MOST TEXTS" not in told and "--full_path" in told
    merge("full.json", "data", full_path=True)
    put(data, a="again", b="again")
    said.readouterr()
    merge("full.json", "data", full_path=True)
    told = said.readouterr().err
    assert "2 of 3 entries that had caption" in told and "MOST TEXTS" not in told and "another folder" not in told
