"""Finding pictures: which kinds are read here, what a file holds by its first bytes, what stands in a picture's place.

Nothing trusts a name: it only decides which files of a folder are looked at.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from PIL import features

HEAD = 1024  # bytes that show what a file holds
_LONG_WINDOWS_PATH = 240  # characters; longer ones need a prefix there, folders already from 248 on
JXL_PACKAGE = "pillow-jxl-plugin"
NEW_COPY = "download or copy it again"

_HAS_AVIF = bool(features.check("avif"))
_HAS_JXL = importlib.util.find_spec("pillow_jxl") is not None
_ENDINGS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    **({"AVIF": (".avif",)} if _HAS_AVIF else {}),
    **({"JPEG XL": (".jxl",)} if _HAS_JXL else {}),
}
IMAGE_EXTENSIONS = tuple(ending for endings in _ENDINGS.values() for ending in endings)

_CONVERT = "convert it to PNG or JPEG"
_OTHER_KINDS = {
    **dict.fromkeys((".gif",), f"GIF is not read; {_CONVERT}"),
    **dict.fromkeys((".tif", ".tiff"), f"TIFF is not read; {_CONVERT}"),
    **dict.fromkeys((".heic", ".heif", ".hif"), f"HEIC is not read; {_CONVERT}"),
    **dict.fromkeys((".avif", ".avifs"), f"AVIF is not read by the Pillow installed here; {_CONVERT}"),
    ".jxl": f"JPEG XL needs a package: pip install {JXL_PACKAGE}; or {_CONVERT}",
    **dict.fromkeys((".jfif", ".jpe", ".pjpeg"), "a JPEG with a rare ending; rename it to .jpg"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), f"JPEG 2000 is not read; {_CONVERT}"),
    **dict.fromkeys((".svg", ".eps", ".ai"), f"a drawing of lines has no pixels; {_CONVERT}"),
    **dict.fromkeys((".psd", ".xcf", ".kra", ".clip"), f"a painting program's own file; {_CONVERT}"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), f"a camera's raw file; {_CONVERT}"
    ),
    **dict.fromkeys((".ico", ".tga", ".dds", ".exr", ".hdr", ".ppm", ".pgm", ".pnm", ".qoi", ".apng"), _CONVERT),
}
_OTHER_ENDINGS = tuple(ending for ending in _OTHER_KINDS if ending not in IMAGE_EXTENSIONS)
# Contents that are no picture we read, by how they begin; compared in lower case, without leading white space.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS stands in its place; run git lfs pull"),
    (b"<!doctype html", "the content is a web page, not a picture; the download failed"),
    (b"<html", "the content is a web page, not a picture; the download failed"),
    (b"<svg", f"the content is an SVG drawing, which has no pixels; {_CONVERT}"),
    (b"<?xml", "the content is an XML document, not a picture; the download may have failed"),
    (b"{", "the content is JSON text, not a picture; the download may have failed"),
    (b"pk\x03\x04", "the content is a zip archive; unpack it"),
    (b"rar!", "the content is a rar archive; unpack it"),
    (b"\x1f\x8b", "the content is a gzip archive; unpack it"),
    (b"gif8", f"the content is a GIF picture, which is not read; {_CONVERT}"),
    (b"ii*\0", f"the content is a TIFF picture or a camera's raw file, which is not read; {_CONVERT}"),
    (b"mm\0*", f"the content is a TIFF picture or a camera's raw file, which is not read; {_CONVERT}"),
    (b"8bps", f"the content is a Photoshop file, which is not read; {_CONVERT}"),
    (b"%pdf", f"the content is a PDF document; {_CONVERT}"),
    (b"\0\0\0\x0cjp  \r\n", f"the content is a JPEG 2000 picture, which is not read; {_CONVERT}"),
)  # fmt: skip
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def system_path(path: Path) -> str:
    """The path as the system wants it: Windows takes more than 260 characters only behind a prefix, and absolute."""
    text = os.fspath(path)
    if os.name != "nt" or text.startswith("\\\\?\\"):
        return text
    return prefixed(os.path.abspath(text))  # noqa: PTH100  Path.resolve would follow links


def prefixed(absolute: str) -> str:
    """An absolute Windows path, with the prefix that lifts the limit of its length where it is long."""
    if len(absolute) < _LONG_WINDOWS_PATH:
        return absolute
    return "\\\\?\\UNC\\" + absolute[2:] if absolute.startswith("\\\\") else "\\\\?\\" + absolute


def list_images(folder: Path) -> list[str]:
    """The file names of the pictures directly in `folder`, sorted by code point so that every platform agrees.

    Hidden files are left out: macOS leaves `._name.jpg` files on foreign drives that are no pictures. Links that lead
    nowhere are in, so that they are told and not silently missing.

    Raises:
        OSError: when the folder cannot be read.
    """
    return _names_of_files(folder, IMAGE_EXTENSIONS)


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture, see `list_images`."""
    return _has_ending(name, IMAGE_EXTENSIONS)


def other_pictures(folder: Path) -> list[str]:
    """The names of files in `folder` that are pictures by their ending but are not read; see `why_not_read`.

    Raises:
        OSError: when the folder cannot be read.
    """
    return _names_of_files(folder, _OTHER_ENDINGS)


def is_other_picture_name(name: str) -> bool:
    """Whether a file of this name is a picture by its ending but is not read, see `other_pictures`."""
    return _has_ending(name, _OTHER_ENDINGS)


def why_not_read(name: str) -> str:
    """Why a file that `other_pictures` names is not read, and what to do."""
    return _OTHER_KINDS.get(Path(name).suffix.lower(), _CONVERT)


def _names_of_files(folder: Path, endings: tuple[str, ...]) -> list[str]:
    with os.scandir(system_path(folder)) as entries:
        return sorted(entry.name for entry in entries if _has_ending(entry.name, endings) and not _is_folder(entry))


def _has_ending(name: str, endings: tuple[str, ...]) -> bool:
    return not name.startswith(".") and name.lower().endswith(endings)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def kind_of(head: bytes) -> str | None:
    """The kind of picture that a file begins with, by Pillow's name; None when it is none that is read here."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"BM"):
        return "BMP"
    if _HAS_JXL and head.startswith(_JXL_STARTS):
        return "JXL"
    return "AVIF" if _HAS_AVIF and _brands(head).intersection(_AVIF_BRANDS) else None


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a WebP, None for other files. Source: RFC 9649, RFC 6386 9.1."""
    if kind_of(head) != "WEBP" or len(head) < 30:
        return None
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def wrong_ending(path: Path, kind: str | None) -> str | None:
    """A remark when the file's ending names another kind than `kind`, Pillow's name of its content."""
    name = {"WEBP": "WebP", "JXL": "JPEG XL"}.get(kind or "", kind or "")
    fits = path.suffix.lower() in _ENDINGS.get(name, ())
    return None if fits else f"its content is {name}, which its ending does not say; it is read by its content"


def _brands(head: bytes) -> set[bytes]:
    """The kinds that a file of ISO boxes (AVIF, HEIC, MP4) says it is."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}


def foreign_content(head: bytes) -> str:
    """What stands in the place of a picture."""
    brands = _brands(head)
    if brands.intersection(_AVIF_BRANDS):
        return f"the content is an AVIF picture, which the Pillow installed here cannot read; {_CONVERT}"
    if brands.intersection(_HEIC_BRANDS):
        return f"the content is a HEIC photograph, which is not read; {_CONVERT}"
    if brands:
        return "the content is a video; take pictures out of it"
    if head.startswith(_JXL_STARTS):
        return f"the content is a JPEG XL picture; pip install {JXL_PACKAGE} reads it, or {_CONVERT}"
    if not head.strip(b"\0"):
        return f"the file begins with zero bytes only: writing it broke off; {NEW_COPY}"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, reason in _FOREIGN:
        if start.startswith(beginning):
            return reason
    is_text = all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return f"the content is not a picture{' but text' if is_text else ''}; {NEW_COPY}"
