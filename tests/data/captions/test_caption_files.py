"""Caption files: encodings, endings, and what counts as missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.core.errors import UserError
from library.data.captions.caption_files import (
    DEFAULT_CAPTION_EXTENSIONS,
    caption_files,
    caption_names,
    find_caption,
    read_caption,
)


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
    with pytest.raises(UserError, match=r"(?s)a.txt and a.caption both .*--caption_extension .txt \(or .caption\)"):
        find_caption(tmp_path / "a.png", DEFAULT_CAPTION_EXTENSIONS)
    with pytest.raises(UserError, match=r"(?s)a.caption and a.txt both .*--caption_extension .caption \(or .txt\)"):
        find_caption(tmp_path / "a.png", (".tags", ".caption", ".txt"))
    assert find_caption(tmp_path / "a.png", (".caption",)) == "a sentence"
    assert find_caption(tmp_path / "a.png", (".caption", ".tags", ".caption")) == "a sentence"


@pytest.mark.parametrize(
    ("content", "first", "whole"),
    [
        ("a dog", "a dog", "a dog"),
        (" a dog \r\n\r\n  \n b,\tc \rd\n", "a dog", "a dog\nb,\tc\nd"),
        ("\n\na dog", None, "a dog"),
        ("a\u2028b\x0bc", "a\u2028b\x0bc", "a\u2028b\x0bc"),  # no ends of lines
        ("\n \r\n", None, None),
    ],
)
def test_one_line_or_all(tmp_path: Path, content: str, first: str | None, whole: str | None) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content.encode())
    assert read_caption(path, whole=False) == find_caption(tmp_path / "a.png", (".txt",)) == first
    assert read_caption(path, whole=True) == find_caption(tmp_path / "a.png", (".txt",), whole=True) == whole


def test_names_in_the_order_of_the_endings() -> None:
    names = {"a.png", "a.txt", "a.caption", "a.b.txt", "b.tags.txt", "sub/c.txt", ".txt"}
    assert caption_names("a.png", (".caption", ".txt", ".caption"), names) == ["a.caption", "a.txt"]
    assert caption_names("a.b.png", (".caption", ".txt"), names) == ["a.b.txt"]
    assert caption_names("b.png", (".txt", ".tags.txt"), names) == ["b.tags.txt"]
    assert caption_names("sub/c.webp", (".txt",), names) == ["sub/c.txt"]
    assert caption_names("d.png", (".txt",), names) == caption_names("a.png", (), names) == []
    assert caption_names("d", (".txt",), names) == []


def test_names_and_files_agree(tmp_path: Path) -> None:
    for name in ("a.txt", "a.caption", "犬 [1].txt", "..txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "b.txt").mkdir()
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    for image in ("a.png", "b.png", "犬 [1].jpg", "..png", "c.png"):
        found = [path.name for path in caption_files(tmp_path / image, DEFAULT_CAPTION_EXTENSIONS)]
        assert found == caption_names(image, DEFAULT_CAPTION_EXTENSIONS, names)
        assert bool(found) == (image not in ("b.png", "c.png"))


def test_a_name_too_long_for_a_caption_file_has_none(tmp_path: Path) -> None:
    image = tmp_path / f"{'a' * 251}.png"
    image.touch()
    assert find_caption(image, DEFAULT_CAPTION_EXTENSIONS) is None


def test_a_caption_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.txt: cannot read the file"):
        read_caption(tmp_path / "a.txt", whole=True)
