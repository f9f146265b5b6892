"""Pictures as taggers take them: upright, sRGB, scaled to fit a square, and what fills the square beside them.

WD taggers are shown the picture in the middle of a white square (read in the code of SmilingWolf's own page and of
public tools, which fill the square first and scale it then). DeepDanbooru scales the picture to fit, moves it to the
middle by half pixels too, and repeats its edge pixels (read in KichangKim/DeepDanbooru, `load_image_for_evaluate` and
`transform_and_pad_image`). Every pixel lies where it lies there; those scale by areas, ours by Lanczos as everywhere in
this house.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.colour_profiles import to_srgb
from library.data.pictures.cutting import FloatBox, scaled_crop
from library.data.pictures.huge_pictures import alone_if_large, can_stream, is_sideways, shrink_stream, upright
from library.data.pictures.images import Pixels, read_size
from library.data.pictures.picture_files import (
    DECODE_ERRORS,
    WHOLE_PIXELS,
    RefusedPictureError,
    open_picture,
    orientation_of,
    reason_of,
)

_WHITE = 255
_HAIR = 1e-6  # pixels; what rounding may be off


@dataclass(frozen=True)
class Upright:
    """A decoded picture: RGB, upright, transparent parts on white.

    Attributes:
        image: at the picture's size or smaller.
        box: the part of the image that is the picture.
        size: of the picture as it is seen, in its own pixels.
    """

    image: Image.Image
    box: FloatBox
    size: Size


def load_upright(path: Path, side: int) -> Upright:
    """Reads a picture for a square of `side` pixels.

    A JPEG is decoded at the half, quarter or eighth of its size that still is twice what is wanted.

    Raises:
        UserError: when the file is no readable picture; it is named.
    """
    try:
        with open_picture(path) as picture:
            stored = Size(*picture.size)
            if stored.area <= WHOLE_PIXELS or not can_stream(picture):
                return _load(picture, side)
        seen = read_size(path)
        resized = fitting_size(seen, side)
        with open_picture(path) as picture:
            shrunk = shrink_stream(picture, resized, (0, 0, *resized))
        return Upright(to_srgb(shrunk.image)[0], shrunk.box, seen)
    except (*DECODE_ERRORS, RefusedPictureError) as error:
        raise UserError.of(
            reason_of(path, error), str(path), "replace the file or take it out of the folder"
        ) from error


def _load(picture: Image.Image, side: int) -> Upright:
    stored = Size(*picture.size)
    if picture.format == "JPEG":
        wanted = fitting_size(stored, side)
        picture.draft(None, (2 * wanted.width, 2 * wanted.height))
    with alone_if_large(picture):
        picture.load()
    orientation = orientation_of(picture.info)
    image = to_srgb(upright(picture, orientation))[0]
    seen = Size(stored.height, stored.width) if is_sideways(orientation) else stored
    return Upright(image, (0, 0, *image.size), seen)


def fitting_size(size: Size, side: int) -> Size:
    """The size at which a picture just fits into a square of `side` pixels; smaller pictures grow."""
    longest = max(size)
    return Size(*(max(1, round(length * side / longest)) for length in size))


def on_white_square(picture: Upright, side: int) -> Pixels:
    """The picture in the middle of a white square: uint8 (side, side, 3).

    An edge that falls into the middle of a pixel is mixed with white there.
    """
    across, down = (_Span.of(length, max(picture.size), side) for length in picture.size)
    left, top, right, bottom = picture.box
    width, height = right - left, bottom - top
    box = (
        *(left + across.inner[0] * width, top + down.inner[0] * height),
        *(left + across.inner[1] * width, top + down.inner[1] * height),
    )
    block = Size(across.last - across.first, down.last - down.first)
    pixels = scaled_crop(picture.image, box, block, (0, 0, *block))
    square = np.full((side, side, 3), _WHITE, np.uint8)
    square[down.first : down.last, across.first : across.last] = pixels
    for lines, span in ((square, down), (square.swapaxes(0, 1), across)):
        partly = np.flatnonzero((span.shares > 0) & (span.shares < 1))
        shares = span.shares[partly, None, None]
        lines[partly] = np.rint(lines[np.clip(partly, span.first, span.last - 1)] * shares + _WHITE * (1 - shares))
    return square


@dataclass(frozen=True)
class _Span:
    """Where a picture lies in the square, in one direction.

    Attributes:
        shares: (side,), how much of each pixel it covers.
        first: pixel that it covers first, as a whole where there is one such.
        last: the pixel behind the last of these.
        inner: the part of the picture, from 0 to 1, that those pixels show.
    """

    shares: NDArray[np.float64]
    first: int
    last: int
    inner: tuple[float, float]

    @classmethod
    def of(cls, length: int, longest: int, side: int) -> _Span:
        scale = side / longest
        start = (longest - length) // 2 * scale
        end = start + length * scale
        pixels = np.arange(side)
        shares = np.clip(np.minimum(pixels + 1, end) - np.maximum(pixels, start), 0, 1)
        shares[shares < _HAIR], shares[shares > 1 - _HAIR] = 0, 1
        first, last = math.ceil(start - _HAIR), math.floor(end + _HAIR)
        if last <= first:  # it covers no pixel as a whole
            return cls(shares, int(start), int(start) + 1, (0.0, 1.0))
        inner = (max(0.0, (first - start) / (end - start)), min(1.0, (last - start) / (end - start)))
        return cls(shares, first, last, inner)


def with_repeated_edges(picture: Upright, side: int) -> Pixels:
    """The picture in the middle of a square that its outermost pixels fill: uint8 (side, side, 3)."""
    resized = fitting_size(picture.size, side)
    pixels = scaled_crop(picture.image, picture.box, resized, (0, 0, *resized))
    for axis in (0, 1):
        rest = side - pixels.shape[axis]
        is_half = rest % 2
        widths = [(0, 0), (0, 0), (0, 0)]
        widths[axis] = (rest // 2 + is_half, rest - rest // 2)
        pixels = np.pad(pixels, widths, mode="edge")
        if is_half:
            pairs = pixels.swapaxes(0, axis).astype(np.uint16)
            pixels = ((pairs[:-1] + pairs[1:] + 1) // 2).astype(np.uint8).swapaxes(0, axis)
    return np.ascontiguousarray(pixels)
