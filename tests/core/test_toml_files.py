"""TOML files whose mistakes are told and never thrown."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.core.errors import UserError
from library.core.toml_files import read_toml


def read(tmp_path: Path, content: bytes) -> dict[str, object]:
    path = tmp_path / "options.toml"
    path.write_bytes(content)
    return read_toml(path, "--config_file").content


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfseed = 3\n") == {"seed": 3}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a = ", "line 1, column 5|end of document"),
        (b"a = 'caf\xe9'", "not UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = 1" + b"0" * 5000, "a number is too long"),
    ],
    ids=["broken", "latin", "deep", "long"],
)
def test_mistakes_are_told(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(tmp_path, content)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_toml(tmp_path / "none.toml", "--config_file")
    with pytest.raises(UserError, match="is a folder"):
        read_toml(tmp_path, "--config_file")
