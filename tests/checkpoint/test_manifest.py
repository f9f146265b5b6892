"""The list of a state's files tells whole from cut off, altered, damaged and too new."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from library.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    Listed,
    TornStateError,
    check_sizes,
    check_sum,
    has_manifest,
    list_file,
    manifest_text,
    read_manifest,
)
from library.core.errors import UserError

CONTENT = b"some bytes"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_bytes(CONTENT)
    (tmp_path / MANIFEST).write_text(manifest_text({"a.json": list_file(tmp_path / "a.json")}), encoding="utf-8")
    return tmp_path


def sealed(content: dict[str, object]) -> str:
    """A manifest with the checksum that the format asks for, computed here a second time."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "checksum": hashlib.sha256(text.encode()).hexdigest()})


def test_a_manifest_lists_sizes_and_checksums_of_files(folder: Path) -> None:
    files = read_manifest(folder)
    assert files == {"a.json": Listed(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())}
    check_sizes(folder, files)
    check_sum(folder, "a.json", files["a.json"])


def test_the_same_files_give_the_same_text_and_the_format_is_pinned(folder: Path) -> None:
    one, two = Listed(1, "aa"), Listed(2, "bb")
    text = manifest_text({"a": one, "b": two})
    assert text == manifest_text({"b": two, "a": one})
    written = {
        "format": "sd-atelier state",
        "version": 1,
        "files": {"a": {"bytes": 1, "sha256": "aa"}, "b": {"bytes": 2, "sha256": "bb"}},
    }
    assert json.loads(text) == json.loads(sealed(written))


def test_every_flipped_bit_of_a_manifest_is_noticed(folder: Path) -> None:
    path = folder / MANIFEST
    whole = path.read_bytes()
    unharmed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        try:
            assert read_manifest(folder) == {"a.json": Listed(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())}
            unharmed += 1  # white space
        except TornStateError as error:
            assert "its manifest is damaged" in str(error)
    assert unharmed < 20


@pytest.mark.parametrize("text", ("", "{", "[]", "null", "{}", '{"checksum": "0"}', "\x00" * 50, "[" * 100_000))
def test_what_is_no_manifest_is_told_as_damage(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(TornStateError, match="its manifest is damaged"):
        read_manifest(folder)


@pytest.mark.parametrize("name", ("../a.json", "b/a.json", "/etc/passwd", ""))
def test_names_do_not_lead_out_of_the_folder(folder: Path, name: str) -> None:
    content = {"format": FORMAT, "version": 1, "files": {name: {"bytes": 1, "sha256": ""}}}
    (folder / MANIFEST).write_text(sealed(content), encoding="utf-8")
    with pytest.raises(TornStateError):
        read_manifest(folder)


def test_a_newer_version_is_refused_as_such(folder: Path) -> None:
    (folder / MANIFEST).write_text(sealed({"format": FORMAT, "version": 7, "parts": []}), encoding="utf-8")
    with pytest.raises(UserError, match=r"version 7 .* knows version 1.*\n.*resume with the version") as raised:
        read_manifest(folder)
    assert not isinstance(raised.value, TornStateError) and has_manifest(folder)


@pytest.mark.parametrize(
    ("content", "sentence"),
    (
        (CONTENT[:-3], "cut off, 3 of 10 bytes are missing"),
        (CONTENT + b"12", "has 2 bytes too many"),
        (None, "a.json is missing"),
    ),
)
def test_files_of_another_size_are_told_apart(folder: Path, content: bytes | None, sentence: str) -> None:
    (folder / "a.json").unlink()
    if content is not None:
        (folder / "a.json").write_bytes(content)
    with pytest.raises(TornStateError, match=sentence):
        check_sizes(folder, read_manifest(folder))


def test_a_flipped_bit_in_a_file_is_noticed(folder: Path) -> None:
    (folder / "a.json").write_bytes(b"s" + bytes([CONTENT[1] ^ 4]) + CONTENT[2:])
    files = read_manifest(folder)
    check_sizes(folder, files)
    with pytest.raises(TornStateError, match="checksum is another"):
        check_sum(folder, "a.json", files["a.json"])


def test_a_folder_without_manifest_has_none(tmp_path: Path) -> None:
    assert not has_manifest(tmp_path) and not has_manifest(tmp_path / "nowhere")
    (tmp_path / MANIFEST).write_text('{"manifest_version": 3}', encoding="utf-8")  # that of a browser extension
    assert not has_manifest(tmp_path)
