"""Several small files at once, each whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.captioning.drafts import Draft, put_in_place
from library.core.atomic_io import TEMPORARY_MARK


def test_files_have_temporary_names_until_all_are_put_in_place(tmp_path: Path) -> None:
    names = ["a.txt", "猫.caption", "b.tags.txt"]
    drafts = [Draft(tmp_path / name, f"{name}\nline\n") for name in names]
    assert all(path.name.startswith(TEMPORARY_MARK) for path in tmp_path.iterdir())
    assert put_in_place(drafts) == {}
    assert {path.name: path.read_bytes().decode() for path in tmp_path.iterdir()} == {
        name: f"{name}\nline\n" for name in names
    }
    for draft in drafts:
        draft.discard()  # does nothing to what is in place
    assert len(list(tmp_path.iterdir())) == 3


def test_one_that_cannot_take_its_place_hinders_no_other(tmp_path: Path) -> None:
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "c.txt").write_text("old")
    drafts = [Draft(tmp_path / f"{letter}.txt", letter) for letter in "abc"]
    failed = put_in_place(drafts)
    assert list(failed) == [1] and isinstance(failed[1], OSError)
    drafts[1].discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt", "c.txt"]
    assert (tmp_path / "c.txt").read_text() == "c"


def test_a_text_that_cannot_be_encoded_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        Draft(tmp_path / "a.txt", "\ud800")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="gone"):
        Draft(tmp_path / "gone" / "a.txt", "x")
