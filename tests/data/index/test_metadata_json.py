"""Entries of metadata files as they are read for tools that write them again: nothing of them is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from library.core.errors import Problems, UserError
from library.data.index.finder import PictureFinder, Place
from library.data.index.metadata import match_keys
from library.data.index.metadata_json import check_object, read_entries
from tests.data.data_helpers import save_picture


def test_unknown_fields_and_every_order_are_kept(tmp_path: Path) -> None:
    text = '{"b": {"train_resolution": [64, 96], "tags": "x", "x": {"z": null, "a": 1.5}}, "a": {}, "犬": {"tags": ""}}'
    file = tmp_path / "meta.json"
    file.write_text(text, encoding="utf-8")
    problems = Problems()
    entries = read_entries(file, problems)
    assert not problems and json.dumps(entries, ensure_ascii=False) == text


def test_entries_of_a_wrong_type_are_left_out_and_told(tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    file.write_text('{"a": {"caption": 3}, "b": {"tags": "x"}, "b": {"tags": "y"}}', encoding="utf-8")
    problems = Problems()
    assert read_entries(file, problems) == {"b": {"tags": "y"}}
    told = "\n".join(map(str, problems))
    assert f"{file}, key a: caption must be text, got 3" in told and "key b: stands twice" in told


@pytest.mark.parametrize("content", ["[]", "3", "{", "\udcff"])
def test_what_can_be_no_metadata(tmp_path: Path, content: str) -> None:
    file = tmp_path / "meta.json"
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError) as error:
        check_object(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("content", ["{}", '{"a": 3}'])
def test_what_can_be_metadata_once_it_has_entries(tmp_path: Path, content: str) -> None:
    (tmp_path / "meta.json").write_text(content, encoding="utf-8")
    check_object(tmp_path / "meta.json")


def test_keys_count_from_several_folders(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "two/b.png", "two/c.png"):
        save_picture(tmp_path / name)
    one, two = tmp_path / "one", tmp_path / "two"
    finder = PictureFinder([one, two])
    found = match_keys(["a", "c.png", "b", f"{two}/b", "d"], Path("meta.json"), finder)
    assert found.key_of == {
        Place(str(one), "a.png"): "a",
        Place(str(two), "c.png"): "c.png",
        Place(str(two), "b.png"): f"{two}/b",
    }
    assert found.missing == ["d"]
    (told,) = found.unclear
    assert told.where == "meta.json, key b" and told.fix == "write the full path as the key"
    assert f"it fits {one / 'b.png'} and {two / 'b.png'}" in told.what


def test_the_shortest_name_leads_back_to_its_picture(tmp_path: Path) -> None:
    names = ("a.png", "a.jpg", "b.png", "b.png.webp", "c.tar.png")
    for name in names:
        save_picture(tmp_path / name)
    finder = PictureFinder([tmp_path])
    places = [Place(str(tmp_path), name) for name in names]
    shortest = [finder.shortest_name(place) for place in places]
    assert shortest == ["a.png", "a.jpg", "b", "b.png.webp", "c.tar"]
    assert [finder.find(name) for name in shortest] == [[place] for place in places]
