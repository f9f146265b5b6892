"""Small pictures for the report page, as the bytes of image files."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.augment import View
from library.data.pictures.images import load_picture
from library.data.views import Views

LONGEST_SIDE = 160

_JPEG_QUALITY = 78

Pixels = NDArray[np.uint8]


def fitted(size: Size, longest: int = LONGEST_SIDE) -> Size:
    """The same shape with sides of at most `longest` pixels; never larger than it is."""
    scale = min(1.0, longest / max(size))
    return Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))


def whole_picture(views: Views, record: int) -> tuple[bytes, bytes | None] | None:
    """The whole upright picture as JPEG, and its opacity as PNG where it has any; None when it cannot be read."""
    size = fitted(views.placements.resized_size(record))
    try:
        picture = load_picture(views.index.path(record), size, (0, 0, size.width, size.height))
    except UserError:
        return None
    return jpeg_of(picture.pixels), None if picture.alpha is None else png_of(picture.alpha)


def training_pixels(views: Views, record: int, view: View) -> Pixels | None:
    """The pixels (H, W, 3) that one use trains on, the weight of the loss as brightness beside it: (H, 2 W, 3).

    Without a mask (H, W, 3); None when the picture cannot be read.
    """
    try:
        seen = views.read(record, view)
    except UserError:
        return None
    pixels = np.round((seen.pixels.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
    if seen.mask is None:
        return pixels
    height, width, _ = pixels.shape
    grey = np.round(seen.mask[0].numpy() * 255).astype(np.uint8)
    mask = np.asarray(cv2.resize(grey, (width, height), interpolation=cv2.INTER_NEAREST))
    return np.concatenate([pixels, np.repeat(mask[..., None], 3, axis=2)], axis=1)


def one_use(views: Views, record: int, view: View, longest: int = LONGEST_SIDE) -> bytes | None:
    """What one use trains on, small, as JPEG; its mask beside it. None when the picture cannot be read."""
    pixels = training_pixels(views, record, view)
    if pixels is None:
        return None
    size = fitted(
        Size(pixels.shape[1], pixels.shape[0]),
        longest if pixels.shape[1] == view.crop[2] - view.crop[0] else 2 * longest,
    )
    return jpeg_of(shrunk(pixels, size))


def shrunk(pixels: Pixels, size: Size) -> Pixels:
    """The pixels in a smaller size."""
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def jpeg_of(pixels: Pixels) -> bytes:
    """The bytes of a JPEG file with these pixels, of the quality of small pictures."""
    return _encoded(pixels, "JPEG", quality=_JPEG_QUALITY, optimize=True)


def png_of(pixels: Pixels) -> bytes:
    """The bytes of a PNG file with these pixels."""
    return _encoded(pixels, "PNG")


def _encoded(pixels: Pixels, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, **settings)
    return buffer.getvalue()
