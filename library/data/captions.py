"""Caption files: one beside each picture, named like it, UTF-8, the first line counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from library.core.errors import UserError

DEFAULT_CAPTION_EXTENSIONS = (".txt", ".caption")


def caption_files(image_path: Path, extensions: Sequence[str]) -> list[Path]:
    """The caption files that exist for a picture, in the order of `extensions`."""
    candidates = (image_path.with_suffix(extension) for extension in extensions)
    return [path for path in candidates if path.is_file()]


def find_caption(image_path: Path, extensions: Sequence[str]) -> str | None:
    """The caption of a picture, or None when there is no caption file or its first line is empty.

    Args:
        image_path: the picture.
        extensions: endings of caption files, with the dot.

    Raises:
        UserError: when several caption files stand beside the picture, or the file is not UTF-8 text.
    """
    found = caption_files(image_path, extensions)
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        fix = f"say which one counts with --caption_extension {extensions[0]} (or {extensions[1]})"
        raise UserError.of(f"{names} both stand beside this picture", str(image_path), fix)
    return _first_line(found[0]) if found else None


def _first_line(path: Path) -> str | None:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(path, f"byte {error.start}") from None
    except OSError as error:
        raise UserError.of(f"cannot read the file: {error.strerror}", str(path), "check its rights") from None
    if "\0" in text:  # UTF-16 without a mark passes as UTF-8 full of zero bytes
        raise _not_text(path, "it holds zero bytes")
    return text.replace("\r", "\n").partition("\n")[0].strip() or None


def _not_text(path: Path, detail: str) -> UserError:
    return UserError.of(f"the caption is not UTF-8 text ({detail})", str(path), "save it again as UTF-8")
