"""What a file really is, told from its first bytes: people's "models" are often something else."""

from __future__ import annotations

import os
from pathlib import Path

from library.core.errors import UserError
from library.core.pickled import LEGACY_START, ZIP_MARK, explained, shown

SAFETENSORS, TORCH, UNKNOWN = "safetensors", "torch", "unknown"

_START = 4096
_SMALLEST = 10  # bytes: a safetensors file without any tensor
_AGAIN = "download it again"
_UNPACK = "unpack it, and give the model file inside"
_PICTURE = "give the model; where a page shows both, the picture is its preview"
_LFS_MARK = b"version https://git-lfs"

# (place, bytes there, what the file is, what to do)
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"7z\xbc\xaf'\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"\x1f\x8b\x08", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (0, b"GGUF", "a GGUF file (quantised weights for other programs)", "get the .safetensors version of the model"),
    (0, b"\x89HDF\r\n", "an HDF5 file (weights for Keras)", "get the .safetensors version of the model"),
    (0, b"\x89PNG\r\n", "a picture (PNG)", _PICTURE),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", _PICTURE),
    (0, b"GIF8", "a picture (GIF)", _PICTURE),
    (8, b"WEBP", "a picture (WebP)", _PICTURE),
    (0, b"%PDF", "a PDF document", _AGAIN),
    (0, b"MZ\x90\x00", "a Windows program; do not start it", "delete it, and get the model from a source you trust"),
)
_PAGE_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")


def kind_of(path: Path) -> str:
    """`SAFETENSORS`, `TORCH` (either form of torch.save, or any zip archive) or `UNKNOWN`.

    Raises:
        UserError: it cannot be read, is empty, or is something else that can be named.
    """
    if path.is_dir():
        raise UserError.of("a folder stands where a file is expected", str(path), "give the model file inside it")
    with explained(path), path.open("rb") as file:
        start, size = file.read(_START), os.fstat(file.fileno()).st_size
    if size < _SMALLEST:
        raise damaged(path, "it is empty" if size == 0 else f"it has only {size} bytes")
    if start[4:9] == b"\0\0\0\0{":  # a header of less than 4 GiB and the JSON it begins with
        return SAFETENSORS
    if start.startswith((ZIP_MARK, LEGACY_START)):
        return TORCH
    for place, mark, what, fix in _MAGICS:
        if start[place : place + len(mark)] == mark:
            raise UserError.of(f"this is {what}, no model file", str(path), fix)
    if not start.strip(b"\0"):
        raise damaged(path, "it begins with nothing but zeros: a download reserved its place and never finished")
    _refuse_text(path, start)
    return UNKNOWN


def damaged(path: Path, how: str) -> UserError:
    """The error for a file that is not what it once was."""
    fix = "download or copy the file again, and compare its size with the original"
    return UserError.of(f"the file is damaged: {how}", str(path), fix)


def _refuse_text(path: Path, start: bytes) -> None:
    text = start.removeprefix(b"\xef\xbb\xbf").strip()
    if not _is_text(text) or (text[:1] in b"c(" and b"\n" in text):  # pickles of protocol 0 look like that
        return
    saying = f": {shown(' '.join(text.decode('utf-8', 'replace').split()), 80)}"
    if text.startswith(_LFS_MARK):
        what, fix = "a Git LFS pointer, which stands for the real file", "run git lfs pull in that repository"
    elif text.lower().startswith(_PAGE_STARTS):
        what, fix = "a web page, saved as a model: the download needs a login or another address", _AGAIN
    elif text.startswith(b"<"):
        what, fix = f"XML text, no model{saying}", f"mend what the text says, then {_AGAIN}"
    elif text[:1] in b"{[":
        what, fix = f"JSON text, no model{saying}", f"if the text tells an error, mend that; then {_AGAIN}"
    else:
        what, fix = f"plain text, no model{saying}", f"if the text tells an error, mend that; then {_AGAIN}"
    raise UserError.of(f"this is {what}", str(path), fix)


def _is_text(content: bytes) -> bool:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(content) - 3:  # a character cut at the end is no fault
            return False
        text = content[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)
