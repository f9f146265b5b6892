"""The list of what a run has saved: what it holds, and what names mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from library.checkpoint.naming import epoch_stem, step_stem
from library.checkpoint.saves import END, EPOCH, STEP, FileFacts, Save, SaveList, files_of, planned_number
from library.core.errors import UserError


def make_save(name: str, step: int, kind: str = STEP, is_state: bool = False) -> Save:
    return Save(kind, is_state, step, 1, (name,), {name: FileFacts(3, "ab")})


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    saves = SaveList(tmp_path, "猫")
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b-state").mkdir()
    (tmp_path / "b-state" / "x.json").write_bytes(b"{}")
    saves.add(Save(EPOCH, False, 4, 2, ("a",), files_of(tmp_path, ["a"])))
    saves.add(Save(EPOCH, True, 4, 2, ("b-state",), files_of(tmp_path, ["b-state"])))
    saves.write()
    assert saves.path == tmp_path / "猫-saves.json"
    found = SaveList.read(tmp_path, "猫").saves
    assert found == saves.saves
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", as everybody knows
    assert found[0].files == {"a": FileFacts(3, digest)}
    assert list(found[1].files) == ["b-state/x.json"] and found[1].size == 2
    before = saves.path.read_bytes()
    saves.write()
    assert saves.path.read_bytes() == before


def test_what_is_written_again_is_listed_once_and_what_came_later_is_forgotten(tmp_path: Path) -> None:
    saves = SaveList(tmp_path, None, [make_save("one", 1), make_save("two", 2)])
    saves.add(make_save("one", 3))
    assert [(save.names, save.step) for save in saves.saves] == [(("two",), 2), (("one",), 3)]
    saves.forget_after(2)
    assert [save.names for save in saves.saves] == [("two",)]
    assert saves.holds("two") and not saves.holds("one")
    assert saves.of(STEP, False) == saves.saves and saves.of(STEP, True) == saves.of(END, False) == []


def test_only_what_is_as_it_was_written_is_known_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    save = Save(STEP, False, 1, 1, ("a",), files_of(tmp_path, ["a"]))
    assert save.is_as_written(tmp_path)
    (tmp_path / "a").write_bytes(b"abd")
    assert not save.is_as_written(tmp_path)
    (tmp_path / "a").unlink()
    assert not save.is_as_written(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 2, "saves": []}', "its format is 2"),
        ('{"format": 1}', "is no list of saves"),
        ('{"format": 1, "saves": [{"kind": "step"}]}', "is no list of saves"),
        ('{"format": 1, "saves": 7}', "is no list of saves"),
        ("{", "not valid JSON"),
    ],
)
def test_a_damaged_list_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "last-saves.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        SaveList.read(tmp_path, None)


@pytest.mark.parametrize("name", ["../precious", "/etc/passwd", "..", "", "a/b"])
def test_a_list_never_names_what_lies_elsewhere(tmp_path: Path, name: str) -> None:
    """What is listed may be removed, and a list may come from anywhere."""
    entry = {"kind": "step", "is_state": False, "step": 1, "epoch": 1, "names": [name], "files": {}}
    (tmp_path / "last-saves.json").write_text(json.dumps({"format": 1, "saves": [entry]}), encoding="utf-8")
    with pytest.raises(UserError, match="is no list of saves"):
        SaveList.read(tmp_path, None)


@pytest.mark.parametrize("name", [None, "cat", "a-step5", "cat-000001", "1-2"])
def test_names_tell_epochs_and_updates(name: str | None) -> None:
    for number in (1, 12, 999999, 1234567890):
        assert planned_number(epoch_stem(name, number), name) == (EPOCH, number)
        assert planned_number(step_stem(name, number), name) == (STEP, number)
    assert planned_number(epoch_stem("other", 3), name) is None
    for stem in ("cat", "last", "cat-1", "cat-step1", f"{name}-0000001"):
        assert planned_number(stem, name) is None
