"""Metadata files are written whole, as UTF-8 that people can read, and what stood there before is never lost."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.core.atomic_io import temporary_name
from library.core.errors import Problems, UserError
from library.preparation.metadata_file import check_output, read_entries, write_entries

ENTRIES = {"ねこ/猫 1": {"tags": "cat, 座る", "caption": 'a "cat"\n', "train_resolution": [64, 128]}, "b": {"x": None}}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> dict[str, dict[str, Any]]:
    problems = Problems()
    entries = read_entries(path, problems)
    assert not problems, list(problems)
    return entries


def told_of(path: Path) -> str:
    problems = Problems()
    check_output(path, "IN_JSON OUT_JSON", problems)
    return "\n".join(map(str, problems))


def test_the_file_is_utf_8_as_people_read_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "メタ.json"
    assert write_entries(file, ENTRIES) is None
    assert file.read_bytes() == (json.dumps(ENTRIES, indent=2, ensure_ascii=False) + "\n").encode()
    assert '  "ねこ/猫 1": {\n    "tags": "cat, 座る",' in file.read_text(encoding="utf-8")
    assert read(file) == ENTRIES and names_in(file.parent) == ["メタ.json"]


def test_every_other_content_stays_as_a_backup_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    file.write_bytes(b"first")
    for number, old in enumerate((b"first", b"", b"third \xff"), start=1):
        file.write_bytes(old)
        backup = write_entries(file, {"a": {"caption": str(number)}})
        assert backup == tmp_path / f"meta.backup-{number}.json" and backup.read_bytes() == old
    assert names_in(tmp_path) == [*(f"meta.backup-{number}.json" for number in (1, 2, 3)), "meta.json"]
    assert (tmp_path / "meta.backup-1.json").read_bytes() == b"first"


def test_the_same_content_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    write_entries(file, ENTRIES)
    before = file.stat()
    assert write_entries(file, dict(ENTRIES)) is None
    assert file.stat().st_ino == before.st_ino and file.stat().st_mtime_ns == before.st_mtime_ns
    assert names_in(tmp_path) == ["meta.json"]
    assert write_entries(file, dict(reversed(ENTRIES.items()))) is not None, "another order is another content"


def test_a_backup_like_the_newest_is_not_made_again(tmp_path: Path) -> None:
    """What a run that was killed between backup and file leaves, and then the same content as in an older backup."""
    file = tmp_path / "meta.json"
    file.write_bytes(b"one")
    (tmp_path / "meta.backup-1.json").write_bytes(b"one")
    assert write_entries(file, ENTRIES) == tmp_path / "meta.backup-1.json"
    assert names_in(tmp_path) == ["meta.backup-1.json", "meta.json"]
    (tmp_path / "meta.backup-2.json").write_bytes(b"two")
    file.write_bytes(b"one")
    assert write_entries(file, ENTRIES) == tmp_path / "meta.backup-3.json"


def test_numbers_of_backups_go_on_whatever_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "meta[1].json"
    file.write_bytes(b"old")
    (tmp_path / "meta[1].backup-9.json").mkdir()
    for other in ("meta1.backup-20.json", "meta[1].backup-30.txt", "meta[1].backup-x.json", "other.backup-40.json"):
        (tmp_path / other).write_bytes(b"old")
    assert write_entries(file, ENTRIES) == tmp_path / "meta[1].backup-10.json"


def test_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    dead = temporary_name(".json").replace(f"-{os.getpid()}.", "-999999999.")
    (tmp_path / dead).write_bytes(b"half")
    write_entries(tmp_path / "meta.json", ENTRIES)
    assert names_in(tmp_path) == ["meta.json"]
    (tmp_path / dead).write_bytes(b"half")
    write_entries(tmp_path / "meta.json", ENTRIES)
    assert names_in(tmp_path) == ["meta.json"], "also where nothing is written"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real" / "meta.json"
    real.parent.mkdir()
    real.write_bytes(b"old")
    link = tmp_path / "link.json"
    link.symlink_to(real)
    assert write_entries(link, ENTRIES) == real.with_name("meta.backup-1.json")
    assert link.is_symlink() and read(real) == ENTRIES and names_in(tmp_path) == ["link.json", "real"]


TEXTS = st.text(st.characters(codec=None), max_size=6)  # with halves of characters, as names on a disk may have
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXTS, st.dictionaries(TEXTS, VALUES, max_size=3), min_size=1, max_size=4))
def test_what_was_read_is_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, dict[str, Any]]
) -> None:
    whole = json.loads(json.dumps(entries))  # JSON joins two halves of a character that stand together
    for entry in whole.values():
        entry.pop("caption", None), entry.pop("tags", None)
    file = tmp_path_factory.mktemp("any") / "meta.json"
    write_entries(file, whole)
    read_again = read(file)
    assert json.dumps(read_again) == json.dumps(whole)
    assert write_entries(file, read_again) is None


def test_an_output_that_cannot_be_written_is_told_before(tmp_path: Path) -> None:
    assert f"{tmp_path}: this is a folder" in told_of(tmp_path)
    assert "the order is IN_JSON OUT_JSON" in told_of(tmp_path)
    photo = tmp_path / "a.png"
    photo.write_bytes(b"\x89PNG")
    assert f"{photo}: something else than metadata" in told_of(photo)
    assert f"{photo} is a file" in told_of(photo / "meta.json")
    assert told_of(tmp_path / "new" / "deeper" / "meta.json") == "" and names_in(tmp_path) == ["a.png"]
    write_entries(tmp_path / "meta.json", ENTRIES)
    assert told_of(tmp_path / "meta.json") == ""


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="rights do not hold root back")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "nothing can be written" in told_of(tmp_path / "meta.json")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="there are none")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no ordinary file" in told_of(tmp_path / "pipe")


def test_failures_are_told_and_leave_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    file.write_bytes(b"old")
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UserError, match="nested too deep"):
        write_entries(file, {"a": {"x": deep}})
    with pytest.raises(UserError, match="cannot be written") as error:
        write_entries(tmp_path / f"{'x' * 300}.json", ENTRIES)
    assert "xxx.json" in str(error.value)
    assert names_in(tmp_path) == ["meta.json"] and file.read_bytes() == b"old"
