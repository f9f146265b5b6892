"""Pictures: finding them, telling whether they are whole, and turning them into training pixels."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from library.core.errors import UserError
from library.core.sizes import Size

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

_ORIENTATION_TAG = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PROBE_SIZE = (64, 64)  # a JPEG asked for this small is checked to its last byte but decoded at an eighth of its size
# What Pillow's decoders raise on damaged files; DecompressionBombError derives straight from Exception.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Examination:
    """What one full read of a picture found: its size as seen, or why it cannot be used."""

    size: Size | None
    problem: str | None


def list_images(folder: Path) -> list[str]:
    """The file names of the pictures directly in `folder`, sorted by code point so that every platform agrees.

    Hidden files are left out: macOS leaves `._name.jpg` files on foreign drives that are no pictures.

    Raises:
        OSError: when the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_image(entry.name) and entry.is_file())


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS)


def read_size(path: Path) -> Size:
    """The size in pixels as the picture is seen, after its EXIF orientation.

    Raises:
        UserError: when the file is no readable picture; it is named.
    """
    try:
        with Image.open(path) as image:
            return _seen_size(Size(*image.size), image)
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error


def check_image(path: Path) -> str | None:
    """Why the picture cannot be used, or None when every byte of it decodes."""
    return examine(path).problem


def examine(path: Path) -> Examination:
    """Decodes the whole picture once: its size as seen, or the reason why it is broken. Never raises."""
    try:
        with Image.open(path) as image:
            stored = Size(*image.size)
            image.draft(None, _PROBE_SIZE)
            image.load()
            return Examination(_seen_size(stored, image), None)
    except _DECODE_ERRORS as error:
        return Examination(None, _reason(path, error))


def load_pixels(path: Path, resized: Size, crop: tuple[int, int, int, int]) -> Pixels:
    """Reads a picture as training pixels.

    Args:
        path: the picture.
        resized: size to scale the upright picture to, in pixels.
        crop: left, top, right, bottom of the part to cut out of it, in pixels.

    Returns:
        uint8 (H, W, 3), RGB; transparent parts are white.

    Raises:
        UserError: when the file is no readable picture; it is named.
    """
    try:
        with Image.open(path) as image:
            # A JPEG decoded at half or quarter size costs much less; twice the target leaves Lanczos enough to work on.
            longest = 2 * max(resized)
            image.draft(None, (longest, longest))
            upright = ImageOps.exif_transpose(image)
            scaled = _to_rgb(upright).resize(resized, Image.Resampling.LANCZOS)
            return np.array(scaled.crop(crop), dtype=np.uint8)
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """Turns uint8 (H, W, 3) into float32 (3, H, W) from -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(torch.float32).div_(127.5).sub_(1.0)


def _seen_size(stored: Size, image: Image.Image) -> Size:
    is_sideways = image.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS
    return Size(stored.height, stored.width) if is_sideways else stored


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would cut off at 255 instead of scaling
        grey = np.asarray(image).astype(np.float32) / 257.0
        return Image.fromarray(np.clip(grey + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # convert("RGB") alone would bring out the colours hidden under alpha 0
        see_through = image.convert("RGBA")
        white = Image.new("RGBA", see_through.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, see_through).convert("RGB")
    return image.convert("RGB")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError.of(_reason(path, error), str(path), "replace the file or take it out of the folder")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, PermissionError):
        return "no right to read the file"
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: {error}"
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "the content is not a picture"
    return f"the picture is broken: {error}"
