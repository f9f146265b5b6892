"""Caption files: one beside each picture, named like it, UTF-8; the first line counts, or with wildcards every line."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from library.core.errors import UserError

DEFAULT_CAPTION_EXTENSIONS = (".txt", ".caption")


def split_lines(text: str) -> list[str]:
    """The lines of a text, whichever system ended them; at least one. Other marks that break lines are text."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def caption_names(image_name: str, extensions: Sequence[str], names: Container[str]) -> list[str]:
    """The caption files of a picture among the files of its folder, in the order of `extensions`.

    Args:
        image_name: file name of the picture, or its path where `names` are paths.
        extensions: endings of caption files, with the dot; each counts once.
        names: what stands in the folder.
    """
    stem = image_name.rpartition(".")[0] or image_name
    return [name for name in (stem + extension for extension in dict.fromkeys(extensions)) if name in names]


def caption_files(image_path: Path, extensions: Sequence[str]) -> list[Path]:
    """The caption files that exist for a picture, in the order of `extensions`."""
    return [image_path.parent / name for name in caption_names(image_path.name, extensions, _Files(image_path.parent))]


class _Files:
    """The names of the files in a folder, each looked up when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        try:
            return (self._folder / str(name)).is_file()
        except OSError:  # the name is too long for the file system
            return False


def only_caption(image_path: Path, names: Sequence[str]) -> Path | None:
    """The one caption file of a picture, or None when it has none.

    Args:
        image_path: the picture.
        names: its caption files, without their folder, see `caption_names`.

    Raises:
        UserError: when there are several.
    """
    if len(names) > 1:
        endings = [name.removeprefix(image_path.stem) for name in names]
        fix = f"say which one counts with --caption_extension {endings[0]} (or {' or '.join(endings[1:])})"
        raise UserError.of(f"{' and '.join(names)} both stand beside this picture", str(image_path), fix)
    return image_path.parent / names[0] if names else None


def find_caption(image_path: Path, extensions: Sequence[str], whole: bool = False) -> str | None:
    """The caption of a picture, or None when there is no caption file or nothing to read in it.

    Args:
        image_path: the picture.
        extensions: endings of caption files, with the dot.
        whole: see `read_caption`.

    Raises:
        UserError: when several caption files stand beside the picture, or the file cannot be read as UTF-8 text.
    """
    path = only_caption(image_path, [path.name for path in caption_files(image_path, extensions)])
    return None if path is None else read_caption(path, whole)


def read_caption(path: Path, whole: bool) -> str | None:
    """The text of a caption file without blanks around its lines, or None when there is none.

    Args:
        path: the caption file, UTF-8 with or without a byte order mark.
        whole: all lines that are not empty, joined by a line feed; otherwise the first line, even if it is empty.

    Raises:
        UserError: when the file cannot be read or is not UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(path, f"byte {error.start}") from None
    except OSError as error:
        raise UserError.of(f"cannot read the file: {error.strerror}", str(path), "check its rights") from None
    if "\0" in text:  # UTF-16 without a mark passes as UTF-8 full of zero bytes
        raise _not_text(path, "it holds zero bytes")
    lines = [line.strip() for line in split_lines(text)]
    return "\n".join(line for line in (lines if whole else lines[:1]) if line) or None


def _not_text(path: Path, detail: str) -> UserError:
    return UserError.of(f"the caption is not UTF-8 text ({detail})", str(path), "save it again as UTF-8")
