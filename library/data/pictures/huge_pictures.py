"""Pictures too large to decode as a whole: shrunk while they are decoded, within a set memory.

What is possible depends on the kind of file. Peaks of memory at 20,000 x 20,000 pixels:

- JPEG: its decoder leaves out what a smaller picture does not need; 50 MiB. A progressive one keeps all of its
  coefficients meanwhile, 3 to 6 bytes a pixel.
- PNG and BMP: read in strips of rows, each shrunk at once; 50 MiB. The rows of a PNG build on each other, so each strip
  is handed to Pillow's decoder as a small PNG of its own, with the last row of the strip before on top.
- WebP (up to 179 megapixels), AVIF, interlaced PNG, run-length coded BMP: only as a whole, one at a time in a process,
  17, 10, 4 and 4 bytes a pixel (measured).

Shrinking here takes means of whole boxes down to at least twice the size asked for; Lanczos does the rest. Boxes are
counted from the corner that is seen at the top left, so that the EXIF orientation changes no bit.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.core.sizes import Size
from library.data.pictures.colour_profiles import has_alpha, plain
from library.data.pictures.cutting import Box, FloatBox, pixels_needed
from library.data.pictures.picture_files import (
    MOST_WHOLE_PIXELS,
    ONE_AT_A_TIME,
    WHOLE_PIXELS,
    RefusedPictureError,
    orientation_of,
    png_sample_kind,
)

_STRIP_PIXELS = 1 << 20
_MOST_SHRUNK = 64  # times in a direction while reading; a strip has at least as many rows
_READ_AT_ONCE = 1 << 16
_MOST_EXIF = 1 << 20  # bytes
_HARMLESS_ENDS = {b"IDAT", b"eXIf", b"tIME"}  # chunks behind the pixels that cannot make a PNG unreadable to Pillow
_LANES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # a mode of as many bytes a pixel: all that matters to the row filters
_DEEP = {"I;16B": "L", "RGB;16B": "RGB", "LA;16B": "LA", "RGBA;16B": "RGBA"}
_LAST_FILTER = 4
# What makes a stored picture upright, by EXIF orientation.
_TRANSPOSES = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same in steps: mirrored left-right, upside-down, and then rows exchanged for columns.
_TURNS = {
    1: (False, False, False),
    2: (True, False, False),
    3: (True, True, False),
    4: (False, True, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}


@dataclass(frozen=True)
class Shrunk:
    """A decoded picture, upright; `box` is where the picture lies, in its pixels.

    The box ends within the last column and row where the factors do not divide the size of the file's picture, and
    reaches beyond the image where only a part of the picture was wanted.
    """

    image: Image.Image
    box: FloatBox


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turns a stored picture as its EXIF orientation says; no pixel changes its value."""
    turn = _TRANSPOSES[orientation]
    return image if turn is None else image.transpose(turn)


def is_sideways(orientation: int) -> bool:
    """Whether width and height of the stored picture are swapped to see it upright."""
    return _TURNS[orientation][2]


def can_stream(picture: Image.Image) -> bool:
    """Whether an opened, undecoded picture can be read strip by strip."""
    tiles: list[Any] = getattr(picture, "tile", [])
    if picture.format == "PNG":
        return len(tiles) == 1 and tiles[0].extents == (0, 0, *picture.size) and not picture.info.get("interlace")
    return picture.format == "BMP" and len(tiles) == 1 and tiles[0][0] == "raw"


def needs_no_pixels(picture: Image.Image) -> bool:
    """Whether `check_stream` finds all that decoding would: text behind the pixels can make Pillow refuse a PNG."""
    if not can_stream(picture) or has_alpha(picture):
        return False
    return picture.format != "PNG" or all(kind in _HARMLESS_ENDS for kind, _ in _chunks_from_pixels(picture))


def alone_if_large(picture: Image.Image, whole_pixels: int = WHOLE_PIXELS) -> AbstractContextManager[object]:
    """The right to decode as a whole: large pictures wait for each other, whatever the number of threads.

    Raises:
        RefusedPictureError: too large even so.
    """
    pixels = picture.size[0] * picture.size[1]
    if picture.format == "JPEG" and not picture.info.get("progressive"):
        return nullcontext()
    if pixels > MOST_WHOLE_PIXELS:
        kind = "interlaced PNG" if picture.format == "PNG" else picture.format
        limit = f"{MOST_WHOLE_PIXELS / 1e6:.0f} megapixels for {kind}, which is decoded as a whole"
        raise RefusedPictureError(f"too many pixels: {pixels / 1e6:.0f}, more than {limit}; save it as a plain PNG")
    return ONE_AT_A_TIME if pixels > whole_pixels else nullcontext()


def shrink_stream(picture: Image.Image, resized: Size, crop: Box) -> Shrunk:
    """Decodes an opened PNG or BMP strip by strip, to at least twice `resized` in both directions (or its own size).

    Args:
        picture: one for which `can_stream` holds; nothing of it is decoded yet.
        resized: the size wanted, upright, in pixels.
        crop: the part of that which is wanted; of a small one only what `pixels_needed` names is kept.

    Raises:
        One of DECODE_ERRORS: the file is damaged.
    """
    is_png = picture.format == "PNG"
    orientation = orientation_of(_with_trailing_exif(picture)) if is_png else 1
    mirrored, upside_down, transposed = _TURNS[orientation]
    flipped = upside_down or (not is_png and _bmp_layout(picture)[2] < 0)
    width, height = picture.size
    wanted = Size(resized.height, resized.width) if transposed else resized
    across, down = _shrinking(width, wanted.width), _shrinking(height, wanted.height)
    size, box = Size(-(-width // across), -(-height // down)), (0.0, 0.0, width / across, height / down)
    needed = pixels_needed(size, box, wanted, _exchanged(crop) if transposed else crop)
    strips = (_png_strips if is_png else _bmp_strips)(picture, height % down if flipped else 0, down)
    if mirrored:
        strips = (strip.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for strip in strips)
    left, top, right, bottom = needed
    stored = (left, size.height - bottom, right, size.height - top) if flipped else needed
    kept = _keep(strips, (across, down), stored)
    if flipped:
        kept = kept.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    box = (-left, -top, box[2] - left, box[3] - top)
    if transposed:
        kept, box = kept.transpose(Image.Transpose.TRANSPOSE), (box[1], box[0], box[3], box[2])
    kept.info = {key: picture.info[key] for key in ("icc_profile",) if key in picture.info}
    return Shrunk(kept, box)


def _keep(strips: Iterator[Image.Image], factors: tuple[int, int], needed: Box) -> Image.Image:
    """Shrinks strips by whole factors and puts together the part of them that is needed, counted in shrunk pixels."""
    left, top, right, bottom = needed
    across, down = factors
    kept: Image.Image | None = None
    row = 0
    for strip in strips:  # to the last one, which shows whether the file is whole
        if kept is None:
            kept = Image.new(strip.mode, (right - left, bottom - top))
        rows = -(-strip.height // down)
        if row < bottom and row + rows > top:
            part = strip.crop((left * across, 0, min(right * across, strip.width), strip.height))
            small = part.reduce(factors) if factors != (1, 1) else part
            kept.paste(small, (0, row - top))
        row += rows
    if kept is None:
        raise OSError("the picture has no rows")
    return kept


def _exchanged(box: Box) -> Box:
    """A box with rows and columns exchanged."""
    return (box[1], box[0], box[3], box[2])


def _shrinking(length: int, wanted: int) -> int:
    return min(max(1, length // (2 * wanted)), _MOST_SHRUNK)


def check_stream(picture: Image.Image) -> dict[Any, Any]:
    """Reads an opened PNG or BMP to its end within little memory: PNG rows are unpacked, counted, and let go.

    Returns:
        The picture's metadata, with those that follow its pixels.

    Raises:
        One of DECODE_ERRORS: the file is damaged.
    """
    if picture.format == "PNG":
        count = max(1, _STRIP_PIXELS // picture.size[0])
        for rows in _png_rows(picture, 0, count):
            if rows[:, 0].max() > _LAST_FILTER:
                raise zlib.error("a row has an unknown filter")
        return _with_trailing_exif(picture)
    _, stride, _, offset = _bmp_layout(picture)
    file = _file_of(picture)
    if file.seek(0, io.SEEK_END) < offset + stride * picture.size[1]:
        raise OSError("image file is truncated")
    return picture.info


def _tile_of(picture: Image.Image) -> Any:
    """Where and how Pillow found the pixels of an opened picture to be stored."""
    tiles: list[Any] = picture.tile  # type: ignore[attr-defined]
    return tiles[0]


def _file_of(picture: Image.Image) -> IO[bytes]:
    file: IO[bytes] = picture.fp  # type: ignore[attr-defined]
    return file


def _png_row_bytes(picture: Image.Image) -> int:
    return (picture.size[0] * _png_pixel_bits(picture) + 7) // 8


def _png_pixel_bits(picture: Image.Image) -> int:
    kind = png_sample_kind(picture)
    if kind in _DEEP:
        return 16 * len(_DEEP[kind])
    _, _, depth = kind.partition(";")
    return int(depth) if depth else 1 if kind == "1" else 8 * (1 if kind == "P" else len(kind))


def _png_data(picture: Image.Image) -> Iterator[bytes]:
    """The compressed pixels of a PNG, in pieces."""
    file = _file_of(picture)
    file.seek(_tile_of(picture).offset - 8)
    while len(head := file.read(8)) == 8 and head[4:] == b"IDAT":
        length = int.from_bytes(head[:4], "big")
        while length:
            piece = file.read(min(length, _READ_AT_ONCE))
            if not piece:
                return
            length -= len(piece)
            yield piece
        file.seek(4, io.SEEK_CUR)  # the check sum; the pixels have one of their own


def _png_rows(picture: Image.Image, first: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Filtered rows, as uint8 (n, 1 + bytes of a row): `first` of them where not 0, then `count` at a time."""
    row_bytes = 1 + _png_row_bytes(picture)
    left = picture.size[1]
    pieces, unpacker, feed, held = _png_data(picture), zlib.decompressobj(), b"", bytearray()
    wanted = first or min(count, left)
    while left:
        got = unpacker.decompress(feed, wanted * row_bytes - len(held))
        feed = unpacker.unconsumed_tail
        held += got
        if len(held) == wanted * row_bytes:
            yield np.frombuffer(held, dtype=np.uint8).reshape(wanted, row_bytes)
            left -= wanted
            wanted, held = min(count, left), bytearray()
        elif not got and not feed:
            feed = b"" if unpacker.eof else next(pieces, b"")
            if not feed:
                raise OSError("image file is truncated")
    while not unpacker.eof and (feed := feed or next(pieces, b"")):  # to the check sum at the very end
        unpacker.decompress(feed, _READ_AT_ONCE)
        feed = unpacker.unconsumed_tail


def _png_strips(picture: Image.Image, first: int, step: int) -> Iterator[Image.Image]:
    """Strips of `first` rows where not 0, then of multiples of `step` rows, in a mode that can be shrunk."""
    width = picture.size[0]
    kind = png_sample_kind(picture)
    row_bytes, is_deep = _png_row_bytes(picture), kind in _DEEP
    mode, kind = (_DEEP[kind], _DEEP[kind]) if is_deep else (picture.mode, kind)
    # The filters work on each byte of a pixel by itself, so the high bytes of 16-bit samples alone are a valid picture.
    row_bytes = row_bytes // 2 if is_deep else row_bytes
    lane_bytes = max(1, row_bytes // width) if ";" not in kind and kind != "1" else 1
    lane = _LANES[lane_bytes]
    info = _strip_info(picture, is_deep)
    above = bytes(1 + row_bytes)
    count = max(1, _STRIP_PIXELS // (step * width)) * step
    for rows in _png_rows(picture, first, count):
        if is_deep:
            rows = np.concatenate([rows[:, :1], rows[:, 1::2]], axis=1)
        stored = zlib.compress(above + rows.tobytes(), 0)
        size = (row_bytes // lane_bytes, len(rows) + 1)
        raw = Image.frombytes(lane, size, stored, "zip", lane, 0).crop((0, 1, *size)).tobytes()
        above = b"\0" + raw[-row_bytes:]
        strip = Image.frombytes(mode, (width, len(rows)), raw, "raw", kind)
        yield _plain_strip(strip, picture, info)


def _bmp_layout(picture: Image.Image) -> tuple[str, int, int, int]:
    """Pillow's name of the pixels, bytes of a row, direction (-1: the last row comes first), where the rows begin."""
    tile = _tile_of(picture)
    kind, stride, direction = tile.args
    return kind, stride, direction, tile.offset


def _bmp_strips(picture: Image.Image, first: int, step: int) -> Iterator[Image.Image]:
    """As `_png_strips`; rows come in the order of the file."""
    kind, stride, _, offset = _bmp_layout(picture)
    width, left = picture.size
    file = _file_of(picture)
    file.seek(offset)
    count = max(1, _STRIP_PIXELS // (step * width)) * step
    wanted = first or min(count, left)
    while left:
        rows = file.read(wanted * stride)
        if len(rows) < wanted * stride:
            raise OSError("image file is truncated")
        strip = Image.frombytes(picture.mode, (width, wanted), rows, "raw", kind, stride, 1)
        yield _plain_strip(strip, picture, {})
        left -= wanted
        wanted = min(count, left)


def _strip_info(picture: Image.Image, is_deep: bool) -> dict[str, Any]:
    key = picture.info.get("transparency")
    if key is None:
        return {}
    return {"transparency": key >> 8 if is_deep and isinstance(key, int) else key}


def _plain_strip(strip: Image.Image, picture: Image.Image, info: dict[str, Any]) -> Image.Image:
    if strip.mode == "P" and picture.palette is not None:
        strip.putpalette(bytes(picture.palette.palette), picture.palette.rawmode or "RGB")
    strip.info.update(info)
    strip = plain(strip)
    return strip if not has_alpha(strip) or strip.mode in ("LA", "RGBA") else strip.convert("RGBA")


def _chunks_from_pixels(picture: Image.Image) -> Iterator[tuple[bytes, int]]:
    """Kind and length of the chunks of a PNG from its first pixels on; the file stands at the content of each."""
    file = _file_of(picture)
    at = _tile_of(picture).offset - 8
    while True:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:], length
        at += 12 + length


def _with_trailing_exif(picture: Image.Image) -> dict[Any, Any]:
    """The metadata of an opened PNG, with the EXIF that may stand behind its pixels."""
    if "exif" not in picture.info:
        for kind, length in _chunks_from_pixels(picture):
            if kind == b"eXIf":
                return {**picture.info, "exif": _file_of(picture).read(min(length, _MOST_EXIF))}
    return picture.info
