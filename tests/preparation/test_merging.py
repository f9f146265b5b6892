"""Texts beside pictures in a metadata file: under keys that training finds, nothing lost, every mistake told."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.core.errors import Problems, UserError
from library.core.log import start_logging
from library.data.captions.caption_files import find_caption
from library.data.index.metadata import find_pictures, read_metadata
from library.options.preparation import MergeCaptionsOptions, MergeTagsOptions
from library.preparation import texts_beside
from library.preparation.merging import merge_texts, tidy_tags

Entries = dict[str, dict[str, Any]]


def put(folder: Path, texts: Mapping[str, str | None], ending: str = ".caption") -> Path:
    """Files named like pictures, and their texts."""
    for name, text in texts.items():
        picture = folder / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
        if text is not None:
            picture.with_suffix(ending).write_text(text, encoding="utf-8")
    return folder


def write(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def entries_of(path: Path) -> Entries:
    entries: Entries = json.loads(path.read_text(encoding="utf-8"))
    return entries


def merge(out: Path, *folders: Path, **changes: Any) -> Entries:
    """The captions of folders in `out`."""
    merge_texts("caption", MergeCaptionsOptions(tuple(map(str, folders)), str(out), **changes))
    return entries_of(out)


def merge_tags(out: Path, *folders: Path, **changes: Any) -> Entries:
    merge_texts("tags", MergeTagsOptions(tuple(map(str, folders)), str(out), **changes))
    return entries_of(out)


def refusal_of(out: Path, *folders: Path, **changes: Any) -> UserError:
    """What is told; no file is written or changed by it."""
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        merge(out, *folders, **changes)
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before
    return error.value


def trained(out: Path, image_dir: Path | None) -> dict[str, str | None]:
    """What training reads from the file: the text of each picture, by its name."""
    problems = Problems()
    found = find_pictures(read_metadata(out, problems), out, image_dir, problems)
    assert not problems, list(problems)
    return {picture.name: picture.caption for picture in found.pictures}


@pytest.fixture(autouse=True)
def said(capfd: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    start_logging()
    return capfd


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_and_texts_of_one_folder(tmp_path: Path) -> None:
    folder = put(tmp_path / "写真", {"a.png": " a cat \nsecond line", "ねこ.jpg": "猫\r\n", "b.x.webp": "b"})
    put(folder, {"deep/c.png": "not taken"})
    entries = merge(tmp_path / "meta.json", folder)
    assert entries == {"a": {"caption": "a cat"}, "b.x": {"caption": "b"}, "ねこ": {"caption": "猫"}}
    assert list(entries) == ["a", "b.x", "ねこ"]
    assert trained(tmp_path / "meta.json", folder) == {"a.png": "a cat", "b.x.webp": "b", "ねこ.jpg": "猫"}


def test_folders_below(tmp_path: Path) -> None:
    folder = put(tmp_path / "data", {"z.png": "z", "x/a.png": "xa", "x/y/a.png": "xya", ".hidden/a.png": "no"})
    (folder / "a link").symlink_to(folder / "x", target_is_directory=True)
    (folder / "x" / "circle").symlink_to(folder, target_is_directory=True)
    entries = merge(tmp_path / "meta.json", folder, recursive=True)
    assert list(entries) == ["z", "x/a", "x/y/a"]
    assert trained(tmp_path / "meta.json", folder) == {"z.png": "z", "x/a.png": "xa", "x/y/a.png": "xya"}


def test_pictures_that_share_a_stem_have_keys_with_ending(tmp_path: Path) -> None:
    folder = put(tmp_path / "data", {"a.png": "one text", "a.jpg": "one text", "b.png": "b", "b.png.webp": "long name"})
    entries = merge(tmp_path / "meta.json", folder)
    assert list(entries) == ["a.jpg", "a.png", "b", "b.png.webp"]
    assert len(trained(tmp_path / "meta.json", folder)) == 4


def test_full_paths_of_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = put(tmp_path / "一", {"a.png": "one"}), put(tmp_path / "two", {"a.png": "two", "x/b.png": "deep"})
    monkeypatch.chdir(tmp_path)
    entries = merge(Path("meta.json"), Path("一"), Path("two/../two"), recursive=True, full_path=True)
    expected = {(one / "a.png"): "one", (two / "a.png"): "two", (two / "x" / "b.png"): "deep"}
    assert entries == {path.as_posix(): {"caption": text} for path, text in expected.items()}
    assert trained(Path("meta.json"), None) == {"一/a.png": "one", "two/a.png": "two", "two/x/b.png": "deep"}


def test_several_folders_need_full_paths_and_one_folder_counts_once(tmp_path: Path) -> None:
    folder, other = put(tmp_path / "a", {"a.png": "x"}), put(tmp_path / "b", {"a.png": "y"})
    assert "add --full_path" in str(refusal_of(tmp_path / "meta.json", folder, other))
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    same = (folder, folder / ".." / "a", tmp_path / "link")
    assert merge(tmp_path / "meta.json", *same) == {"a": {"caption": "x"}}


def test_a_folder_below_another_counts_once(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "a", {"a.png": "x", "below/b.png": "y"})
    entries = merge(tmp_path / "meta.json", folder, folder / "below", recursive=True, full_path=True)
    assert len(entries) == 2 and "2 pictures: 2 new entries" in said.readouterr().err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="their names are always text")
def test_names_that_are_no_text_come_back_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    put(folder, {os.fsdecode(b"caf\xe9.png"): "coffee", os.fsdecode(b"\xff.jpg"): "two bytes", "back\\slash.png": "b"})
    out = tmp_path / "meta.json"
    entries = merge(out, folder)
    assert '"caf\\udce9": {' in out.read_text(encoding="utf-8")
    assert entries == merge(out, folder) and not list(tmp_path.glob("*backup*"))
    assert trained(out, folder) == {"caf\udce9.png": "coffee", "\udcff.jpg": "two bytes", "back\\slash.png": "b"}


# --- entries that are there -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_path", [True, False])
@pytest.mark.parametrize("spelling", ["x/a", "x/a.png", "x\\a", "x\\a.png", "./x/a", "FULL/x/a", "FULL/x/a.png"])
def test_an_entry_under_any_spelling_is_extended(tmp_path: Path, spelling: str, full_path: bool) -> None:
    folder = put(tmp_path / "data", {"x/a.png": "new", "b.png": "b"})
    key = spelling.replace("FULL", str(folder))
    old = {"lost": {"caption": "stays"}, key: {"tags": "t", "train_resolution": [64, 64], "caption": "old"}}
    source = write(tmp_path / "in.json", old)
    before = source.read_bytes()
    out = tmp_path / "out.json"
    entries = merge(out, folder, in_json=str(source), recursive=True, full_path=full_path)
    new_key = (folder / "b.png").as_posix() if full_path else "b"
    assert list(entries) == ["lost", key, new_key]
    assert entries[key] == {"tags": "t", "train_resolution": [64, 64], "caption": "new"}
    assert list(entries[key]) == ["tags", "train_resolution", "caption"] and entries["lost"] == old["lost"]
    assert source.read_bytes() == before


def test_relative_keys_of_two_folders(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    one, two = put(tmp_path / "one", {"a.png": "1a", "b.png": "1b"}), put(tmp_path / "two", {"b.png": "2b"})
    out = tmp_path / "out.json"
    entries = merge(out, one, two, in_json=str(write(tmp_path / "in.json", {"a": {"tags": "x"}})), full_path=True)
    assert entries["a"] == {"tags": "x", "caption": "1a"} and len(entries) == 3
    assert "1 entries keep keys that are no full paths: a" in said.readouterr().err
    source = write(tmp_path / "in.json", {"b": {"tags": "x"}})
    told = str(refusal_of(tmp_path / "other.json", one, two, in_json=str(source), full_path=True))
    assert f"{source}, key b: it fits {one / 'b.png'} and {two / 'b.png'}" in told


def test_duplicates_and_unclear_keys_are_errors_as_in_training(tmp_path: Path) -> None:
    folder = put(tmp_path / "data", {"a.png": "a", "a.jpg": "a", "b.png": "b"})
    source = write(tmp_path / "in.json", {"a": {}, "b": {}, "b.png": {}, "c": {"tags": 3}})
    error = refusal_of(tmp_path / "out.json", folder, in_json=str(source))
    told = str(error)
    assert f"{source}, key a: it fits a.jpg and a.png" in told
    assert f"{source}, key b.png: it names the same picture as the key b" in told
    assert f"{source}, key c: tags must be text, got 3" in told and len(error.problems) == 3


def test_entries_without_picture_stay_and_are_named(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "data", {"a.png": "a"})
    lost = {f"lost{number}": {"caption": "x"} for number in range(7)}
    entries = merge(tmp_path / "out.json", folder, in_json=str(write(tmp_path / "in.json", lost)))
    assert entries == {**lost, "a": {"caption": "a"}}
    told = said.readouterr().err
    assert "7 entries have no picture, and stay as they are: lost0, lost1, lost2, lost3, lost4 and 2 more" in told
    assert "several folders need --full_path" in told


def test_counts(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    texts = {"a.png": "a", "b.png": "b", "c.png": "c", "d.png": "d", "e.png": None, "f.png": " \nno", "g.png": ""}
    folder = put(tmp_path / "data", texts)
    old = {"a": {"caption": "a"}, "b": {"caption": "other"}, "c": {"tags": "x"}, "e": {"caption": "from before"}}
    out = write(tmp_path / "out.json", old)
    entries = merge(out, folder)
    assert {key: entry.get("caption") for key, entry in entries.items()} == {
        **{name: name for name in "abcd"},
        "e": "from before",
    }
    told = said.readouterr().err
    assert "7 pictures: 1 new entries, 1 extended, 1 changed, 1 the same, 3 pictures without text" in told
    assert f"1 pictures have no .caption file: {folder / 'e.png'}" in told
    assert f"2 .caption files hold no text in their first line: {folder / 'f.caption'}, {folder / 'g.caption'}" in told
    assert f"1 .caption files hold more than one line, of which the first counts, as in training: {folder}" in told


# --- files ------------------------------------------------------------------------------------------------------------


def test_an_output_that_is_there_is_extended_and_kept(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    folder, out = put(tmp_path / "data", {"a.png": "a"}), write(tmp_path / "meta.json", {"old": {"tags": "x"}})
    before = out.read_bytes()
    assert list(merge(out, folder)) == ["old", "a"]
    assert (tmp_path / "meta.backup-1.json").read_bytes() == before
    told = said.readouterr().err
    assert f"{out} is there, and is extended" in told and str(tmp_path / "meta.backup-1.json") in told
    merge(out, folder)
    assert "holds all of this already" in said.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "meta.backup-1.json", "meta.json"]


@pytest.mark.parametrize("spelling", ["meta.json", "data/../meta.json", "link.json"])
def test_input_that_is_the_output_by_any_name_stays_as_a_backup(tmp_path: Path, spelling: str) -> None:
    folder, out = put(tmp_path / "data", {"a.png": "a"}), write(tmp_path / "meta.json", {"old": {"tags": "x"}})
    (tmp_path / "link.json").symlink_to(out)
    before = out.read_bytes()
    merge(tmp_path / spelling, folder, in_json=str(out))
    assert list(entries_of(out)) == ["old", "a"] and (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "meta.backup-1.json").read_bytes() == before


def test_with_an_input_an_old_output_is_replaced_and_kept(tmp_path: Path) -> None:
    folder, out = put(tmp_path / "data", {"a.png": "a"}), write(tmp_path / "out.json", {"gone": {"tags": "x"}})
    source = write(tmp_path / "in.json", {"b": {"tags": "y"}})
    assert list(merge(out, folder, in_json=str(source))) == ["b", "a"]
    assert entries_of(tmp_path / "out.backup-1.json") == {"gone": {"tags": "x"}}
    assert entries_of(source) == {"b": {"tags": "y"}} and not (tmp_path / "in.backup-1.json").exists()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_no_picture_with_a_text_is_an_error_that_names_the_endings(tmp_path: Path) -> None:
    folder = put(tmp_path / "data", {"a.png": "a", "b.png": "b"}, ending=".txt")
    (folder / "notes.md").touch()
    told = str(refusal_of(tmp_path / "meta.json", folder))
    assert f"{folder}: none of 2 pictures has a .caption file beside it; there are files with .txt, .md" in told
    assert "--caption_extension" in told
    put(folder, {"a.png": " \n", "b.png": ""})
    assert "none of the 2 .caption files holds a text" in str(refusal_of(tmp_path / "meta.json", folder))
    other = put(tmp_path / "other", {"c.png": "c"})
    assert f"{folder}: none of the 2" in str(refusal_of(tmp_path / "meta.json", other, folder, full_path=True))


def test_texts_that_cannot_be_read_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "data", {f"{number}.png": "x" for number in range(6)})
    for number in range(5):
        (folder / f"{number}.caption").write_bytes(b"caf\xe9")
    error = refusal_of(tmp_path / "meta.json", folder)
    told = str(error)
    assert [f"{folder / f'{number}.caption'}: the caption is not UTF-8 text" in told for number in range(5)] == [
        True
    ] * 5
    monkeypatch.setattr(texts_beside, "_MOST_TOLD", 3)
    error = refusal_of(tmp_path / "meta.json", folder)
    assert len(error.problems) == 4 and "2 more files like these" in str(error)


def test_words_in_another_order(tmp_path: Path) -> None:
    folder, file = put(tmp_path / "data", {"a.png": "a"}), write(tmp_path / "in.json", {"a": {}})
    told = str(refusal_of(folder, file))
    assert f"{folder}: this is a folder" in told and f"--in_json {file}" in told
    assert told.count("the order is DIR [DIR ...] OUT_JSON") == 2 and "--full_path" not in told
    told = str(refusal_of(tmp_path / "out.json", folder, file))
    assert f"--in_json {file}" in told and "--full_path" not in told
    assert f"{folder}: this is a folder" in str(refusal_of(folder, folder))
    assert "something else than metadata" in str(refusal_of(folder / "a.png", folder, in_json=str(file)))


def test_folders_and_files_that_are_missing_are_told_together(tmp_path: Path) -> None:
    empty, below = tmp_path / "empty", put(tmp_path / "below", {"x/a.png": "a"})
    empty.mkdir()
    out, lost, source = tmp_path / "out.json", tmp_path / "lost", tmp_path / "in.json"
    error = refusal_of(out, lost, empty, below, in_json=str(source), full_path=True)
    told = str(error)
    assert f"{lost}: the folder does not exist" in told and f"{empty}: no pictures in this folder" in told
    assert f"{below}: no pictures directly in this folder; it holds the folders x" in told
    assert f"{source}: the metadata file does not exist" in told and len(error.problems) == 4
    assert "a folder without a name" in str(_raised(("", str(below)), out))


def _raised(folders: tuple[str, ...], out: Path) -> UserError:
    with pytest.raises(UserError) as error:
        merge_texts("caption", MergeCaptionsOptions(folders, str(out), full_path=True, recursive=True))
    return error.value


def test_an_output_that_is_broken_is_not_written_over(tmp_path: Path) -> None:
    folder, out = put(tmp_path / "data", {"a.png": "a"}), tmp_path / "out.json"
    out.write_text('{"a": ', encoding="utf-8")
    error = refusal_of(out, folder)
    assert "is not valid JSON" in str(error) and len(error.problems) == 1
    error = refusal_of(out, folder, in_json=str(out))
    assert len(error.problems) == 1


def test_no_control_codes_of_names_are_printed(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "data", {"a.png": "a", "\x1b[31mred.png": None})
    merge(tmp_path / "out.json", folder, in_json=str(write(tmp_path / "in.json", {"\x1b[2Jlost": {}})))
    told = said.readouterr().err
    assert "\\x1b[31mred.png" in told and "\\x1b[2Jlost" in told and "\x1b" not in told


def test_real_folders_and_pictures_that_are_not_read(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "data", {"z/a.png": "a", "z/b.heic": "left out"})
    (folder / "a link").symlink_to(folder / "z", target_is_directory=True)
    assert list(merge(tmp_path / "out.json", folder, recursive=True)) == ["z/a"]
    assert f"{folder / 'z'}: 1 pictures are left out (HEIC is not read" in said.readouterr().err


# --- tags -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "tags"),
    [
        ("1girl,solo ,  long_hair, rating:safe", "1girl, solo, long_hair, rating:safe"),
        (", ,solo,,", "solo"),
        (" , ", ""),
        ("(red,blue:1.2),x,:d,>_<", "(red,blue:1.2), x, :d, >_<"),
        ("猫、犬", "猫、犬"),
    ],
)
def test_tags_are_set_apart_alike(line: str, tags: str) -> None:
    assert tidy_tags(line) == tags == tidy_tags(tags)


def test_tags_stand_beside_captions(tmp_path: Path, said: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "data", {"a.png": "a cat", "b.png": "b"})
    put(folder, {"a.png": "1girl,long_hair", "b.png": ", "}, ending=".txt")
    merge(tmp_path / "cap.json", folder)
    entries = merge_tags(tmp_path / "dd.json", folder, in_json=str(tmp_path / "cap.json"))
    assert entries == {"a": {"caption": "a cat", "tags": "1girl, long_hair"}, "b": {"caption": "b"}}
    assert f"1 .txt files hold no text in their first line: {folder / 'b.txt'}" in said.readouterr().err
    assert trained(tmp_path / "dd.json", folder) == {"a.png": "a cat, 1girl, long_hair", "b.png": "b"}


# --- any set ----------------------------------------------------------------------------------------------------------

STEMS = st.sampled_from(["a", "b", "a.png", "é", "犬 1", "x.y"])
PLACES = st.lists(
    st.tuples(st.sampled_from(["", "d/", "d/e/"]), STEMS, st.sampled_from([".png", ".jpg"])),
    min_size=1,
    max_size=7,
    unique=True,
)


@settings(max_examples=80, deadline=None)
@given(PLACES, st.booleans(), st.data())
def test_training_finds_each_picture_once_with_its_text(
    places: list[tuple[str, str, str]], full_path: bool, data: st.DataObject
) -> None:
    """Whatever lies there, and under whichever keys some of it was in the file before."""
    with tempfile.TemporaryDirectory() as root:
        folder, out = Path(root, "data"), Path(root, "meta.json")
        names = ["".join(place) for place in places]
        for part, stem, _ in places:
            path = folder / f"{part}{stem}.caption"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"text of {part}{stem}", encoding="utf-8")
        for name in names:
            (folder / name).touch()
        old = data.draw(st.lists(st.sampled_from(names), unique=True))
        spellings = {
            name: data.draw(st.sampled_from([name, f"{folder}/{name}", name.replace("/", "\\")])) for name in old
        }
        if old:
            write(out, {spelling: {"tags": "t"} for spelling in spellings.values()})
        entries = merge(out, folder, full_path=full_path, recursive=True)
        assert len(entries) == len(names) and set(spellings.values()) <= set(entries)
        texts = {name: find_caption(folder / name, (".caption",)) for name in names}
        assert trained(out, folder) == {name: f"{text}, t" if name in old else text for name, text in texts.items()}
        assert merge(out, folder, full_path=full_path, recursive=True) == entries
        assert len(list(Path(root).glob("*backup*"))) == bool(old)
