"""Picture files: opening one for what it holds, the limits, and why one cannot be used.

What a file holds is told by its first bytes, and only that kind's reader of Pillow is asked. Opening decodes nothing.
Limits are our own, since Pillow's (a warning at 89, an error at 179 megapixels) are one global for the whole process
and lower than what can be trained.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from PIL import AvifImagePlugin, BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from library.core.errors import UserError
from library.core.optional import import_optional
from library.data.pictures.picture_kinds import (
    HEAD,
    JXL_PACKAGE,
    NEW_COPY,
    foreign_content,
    kind_of,
    system_path,
    webp_size,
)

MOST_PIXELS = 2**30  # of any picture
MOST_WHOLE_PIXELS = 2**29  # of a picture that can only be decoded as a whole, at 3 to 17 bytes a pixel
WHOLE_PIXELS = 2**24  # larger pictures are read in strips, or one at a time
LONGEST_SIDE = 200_000

_WHOLE_READ = 8 << 20  # bytes; files up to this size are read at once, larger ones by and by
_ORIENTATION_TAG = 0x0112
_INTEGER_KINDS = {1: "B", 3: "H", 4: "I"}  # TIFF's number for a type: how struct reads it
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# A camera's file of several JPEGs is read as its first; AVIF is asked for only where it is supported.
_READERS: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
# As many zero bytes at the end of a file are no content; BMP and PNG can end so, or find it out by themselves.
_ZERO_TAIL = {"JPEG": 16, "WEBP": 4096, "AVIF": 4096, "JXL": 4096}
_LONGEST_REASON = 120  # characters of what a decoder says
_ZEROS_AT_ONCE = 1 << 16
_HEADER_CUT_OFF = re.compile(r"truncated|unpack_from requires|chunk b'.{0,3}'|index out of range|Not enough data", re.I)
ONE_AT_A_TIME = threading.RLock()  # held while a large picture is decoded as a whole

# What Pillow's decoders raise on damaged files.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Pillow warns of odd metadata by Python's `warnings`, on the console, without the file's name. What matters of it is
# told by the examination. (`warnings.catch_warnings` around each call would not be safe in threads.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class RefusedPictureError(Exception):
    """A file that cannot be used; its text is the reason, and what to do where that can be said."""


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Opens a picture without decoding it: its size, mode and metadata are known.

    Yields:
        Pillow's image; `format` tells its kind. Its file is open until the context ends.

    Raises:
        RefusedPictureError: it is no picture we read, or too large.
        UserError: it needs a package that is installed but broken.
        One of DECODE_ERRORS: its header is damaged, or the file cannot be read.
    """
    text = system_path(path)
    status = os.stat(text)  # noqa: PTH116  faster, and this runs for every picture
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        is_folder = stat.S_ISDIR(status.st_mode)
        raise RefusedPictureError(
            "it is a folder, not a file" if is_folder else "it is no regular file but a pipe or device"
        )
    if status.st_size == 0:
        raise RefusedPictureError(f"the file is empty; {NEW_COPY}")
    with open(text, "rb", buffering=0) as raw:  # noqa: PTH123
        is_small = status.st_size <= _WHOLE_READ
        file: IO[bytes] = io.BytesIO(raw.readall()) if is_small else io.BufferedReader(raw, 1 << 16)
        head = file.read(HEAD)
        file.seek(0)
        with _alone_to_open(head):
            yield _open_content(file, head, status.st_size)


def _alone_to_open(head: bytes) -> AbstractContextManager[object]:
    """A reader of WebP takes memory for all of its pixels when it opens; large ones wait for each other."""
    size = webp_size(head)
    return ONE_AT_A_TIME if size is not None and size[0] * size[1] > WHOLE_PIXELS else nullcontext()


def _open_content(file: IO[bytes], head: bytes, length: int) -> Image.Image:
    kind = kind_of(head)
    if kind is None:
        raise RefusedPictureError(foreign_content(head))
    if kind in _ZERO_TAIL:
        _refuse_zero_tail(file, length, kind)
    if kind == "WEBP" and int.from_bytes(head[4:8], "little") + 8 > length:
        raise RefusedPictureError(_cut_off())
    if kind == "JXL":
        import_optional("pillow_jxl", JXL_PACKAGE, "reading JPEG XL pictures")
        picture: Image.Image = Image.OPEN[kind][0](file, "")
    else:
        picture = _READERS[kind](file)
    width, height = picture.size
    if width * height > MOST_PIXELS:
        limit = f"more than the {MOST_PIXELS / 1e6:.0f} megapixels that are read"
        raise RefusedPictureError(f"too many pixels: {width}x{height}, {limit}; make it smaller")
    if max(width, height) > LONGEST_SIDE:
        raise RefusedPictureError(f"a side is too long: {width}x{height}, more than {LONGEST_SIDE}; cut it into parts")
    if kind == "PNG":
        _mend_transparency(picture)
    return picture


def _refuse_zero_tail(file: IO[bytes], length: int, kind: str) -> None:
    """A file whose copy broke off can have its full length, with zeros at the end; decoders take them for grey."""
    least = _ZERO_TAIL[kind]
    file.seek(max(0, length - least))
    end = length if not file.read(least).strip(b"\0") else 0
    while end > 0:
        start = max(0, end - _ZEROS_AT_ONCE)
        file.seek(start)
        kept = file.read(end - start).rstrip(b"\0")
        if kept:
            zeros = length - start - len(kept)
            if kind == "JPEG" and kept.endswith(b"\xff\xd9"):  # whole; some cameras fill up the file
                break
            reason = f"the last {zeros} bytes of the file are zero: writing it broke off; {NEW_COPY}"
            raise RefusedPictureError(reason)
        end = start
    file.seek(0)


def _mend_transparency(picture: Image.Image) -> None:
    """A PNG names its transparent grey or colour in the file's depth, Pillow hands out pixels of 8 bits."""
    key: Any = picture.info.get("transparency")
    kind = png_sample_kind(picture)
    if isinstance(key, tuple):
        picture.info["transparency"] = tuple(value >> 8 if kind == "RGB;16B" else value & 255 for value in key)
    elif isinstance(key, int) and picture.mode == "L":
        depth, scale = {"L;2": (3, 85), "L;4": (15, 17)}.get(kind, (255, 1))
        picture.info["transparency"] = (key & depth) * scale


def png_sample_kind(picture: Image.Image) -> str:
    """How an opened PNG stores its pixels, by Pillow's name (`RGB`, `L;4`, `RGB;16B`)."""
    tiles: list[Any] = getattr(picture, "tile", [])
    kind = tiles[0].args if tiles else ""
    return kind if isinstance(kind, str) else str(kind[0])


def orientation_of(info: dict[Any, Any]) -> int:
    """The EXIF orientation, 1 to 8, in the metadata of a picture; 1 where none is given or it makes no sense.

    Source: EXIF 2.3, 4.6.4 (tag 274); the same tag in XMP counts when EXIF has none.
    """
    exif = info.get("exif")
    if exif is None and "Raw profile type exif" in info:
        exif = _exif_in_text(info["Raw profile type exif"])
    found = _orientation_in(exif) if isinstance(exif, bytes) else None
    if found is None:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp))
        found = int(match[1]) if match else None
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_in_text(text: object) -> bytes | None:
    """EXIF as ImageMagick writes it into a PNG's text: a name, a length, hexadecimal digits."""
    try:
        return bytes.fromhex("".join(str(text).strip().split("\n")[2:]))
    except ValueError:
        return None


def _orientation_in(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, at)
            if tag == _ORIENTATION_TAG and kind in _INTEGER_KINDS:
                return int(struct.unpack_from(order + _INTEGER_KINDS[kind], exif, at + 8)[0])
    except struct.error:  # cut off; other programs read such a file as upright, too
        return None
    return None


def reason_of(path: Path, error: Exception) -> str:
    """Why a file cannot be used, from what reading it raised."""
    if isinstance(error, RefusedPictureError):
        return str(error)
    if isinstance(error, UserError):
        return "; ".join(f"{problem.what} ({problem.fix})" for problem in error.problems)
    if isinstance(error, MemoryError):
        return "not enough memory to decode it; make the picture smaller"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels for its kind of file, which is decoded as a whole; save it as PNG, which may be larger"
    if isinstance(error, OSError) and error.errno is not None:
        return _system_reason(path, error)
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    if "PngImagePlugin.MAX_TEXT" in text or "MAX_TEXT_MEMORY" in text:
        return "its metadata unpack to an enormous size; save the picture again without them"
    if isinstance(error, struct.error) or _HEADER_CUT_OFF.search(text):
        return _cut_off()
    if isinstance(error, zlib.error) or "broken data stream" in text:
        text = "its pixels are damaged"
    if "not identified by this driver" in text:
        text = "its header gives it no width or height"
    return f"the picture is broken: {text or type(error).__name__}; {NEW_COPY}, or save it again"


def _cut_off() -> str:
    return f"the picture is broken: the file ends before the picture does; {NEW_COPY}"


def _system_reason(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        is_link = os.path.islink(system_path(path))  # noqa: PTH114
        return "it is a link to a file that does not exist" if is_link else "the file does not exist"
    if isinstance(error, PermissionError):
        return "no right to read the file; change its rights"
    if error.errno == errno.ELOOP:
        return "it is a link that leads back to itself"
    if error.errno == errno.ENAMETOOLONG:
        return "its path is longer than the system allows; shorten the names of its folders"
    return f"the file cannot be read: {error.strerror}"
