"""Caption files: encodings, endings, and what counts as missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.core.errors import UserError
from library.data.captions import DEFAULT_CAPTION_EXTENSIONS, find_caption


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"a dog\n", "a dog"),
        (b"  a dog \r\nsecond line", "a dog"),
        (b"\xef\xbb\xbfa dog", "a dog"),
        ("犬、空".encode(), "犬、空"),
        (b"", None),
        (b"  \n", None),
    ],
)
def test_first_line_counts(tmp_path: Path, content: bytes, caption: str | None) -> None:
    (tmp_path / "a.b.txt").write_bytes(content)
    assert find_caption(tmp_path / "a.b.png", DEFAULT_CAPTION_EXTENSIONS) == caption


def test_no_file_is_no_caption(tmp_path: Path) -> None:
    assert find_caption(tmp_path / "a.png", DEFAULT_CAPTION_EXTENSIONS) is None


@pytest.mark.parametrize("content", [b"caf\xe9", "a dog".encode("utf-16"), "a dog".encode("utf-16-le")])
def test_other_encodings_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match="UTF-8"):
        find_caption(tmp_path / "a.png", DEFAULT_CAPTION_EXTENSIONS)


def test_two_caption_files_need_a_decision(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("tags", encoding="utf-8")
    (tmp_path / "a.caption").write_text("a sentence", encoding="utf-8")
    with pytest.raises(UserError, match="--caption_extension"):
        find_caption(tmp_path / "a.png", DEFAULT_CAPTION_EXTENSIONS)
    assert find_caption(tmp_path / "a.png", (".caption",)) == "a sentence"
