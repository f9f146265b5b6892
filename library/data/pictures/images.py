"""Pictures: telling whether they are whole, and turning them into training pixels.

Whatever a file stores becomes 8-bit sRGB as it is meant to be seen: turned by its EXIF orientation, converted by its
colour profile (relative colorimetric with black point compensation), the first frame of an animation.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.colour_profiles import has_alpha, profile_note, to_grey, to_srgb
from library.data.pictures.cutting import Box, pixels_needed, scaled_crop
from library.data.pictures.huge_pictures import (
    Shrunk,
    alone_if_large,
    can_stream,
    check_stream,
    is_sideways,
    needs_no_pixels,
    shrink_stream,
    upright,
)
from library.data.pictures.picture_files import (
    DECODE_ERRORS,
    ONE_AT_A_TIME,
    WHOLE_PIXELS,
    RefusedPictureError,
    open_picture,
    orientation_of,
    reason_of,
)
from library.data.pictures.picture_kinds import (
    IMAGE_EXTENSIONS,
    list_images,
    other_pictures,
    why_not_read,
    wrong_ending,
)

__all__ = [
    "IMAGE_EXTENSIONS",
    "Examination",
    "Picture",
    "Pixels",
    "check_image",
    "examine",
    "list_images",
    "load_mask",
    "load_picture",
    "load_pixels",
    "other_pictures",
    "read_size",
    "to_tensor",
    "why_not_read",
]

Pixels = NDArray[np.uint8]

_PROBE_SIZE = (64, 64)  # a JPEG asked for this small is checked to its last byte but decoded at an eighth of its size
# Lanczos answers an edge with ripples, which would let a little through where a mask lets nothing.
_MASK_FILTER = Image.Resampling.BILINEAR
_REFUSALS = (*DECODE_ERRORS, RefusedPictureError, UserError)


@dataclass(frozen=True)
class Picture:
    """A picture cut to size.

    `pixels` uint8 (H, W, 3), sRGB, transparent parts on white; `alpha` uint8 (H, W), None where the file has no
    transparency.
    """

    pixels: Pixels
    alpha: Pixels | None


@dataclass(frozen=True)
class Examination:
    """What one full read of a picture found: its size as seen, or why it cannot be used.

    A `note` tells what is odd but no hindrance. `has_alpha`: `load_picture` will give it an alpha.
    """

    size: Size | None
    problem: str | None
    note: str | None = None
    has_alpha: bool = False


def read_size(path: Path) -> Size:
    """The size in pixels as the picture is seen, after its EXIF orientation.

    Raises:
        UserError: when the file is no readable picture; it is named.
    """
    try:
        with open_picture(path) as picture:
            stored = Size(*picture.size)
            if picture.format == "PNG" and "exif" not in picture.info:  # it may stand behind the pixels
                return _as_seen(stored, _check(picture, WHOLE_PIXELS))
            return _as_seen(stored, picture.info)
    except _REFUSALS as error:
        raise _unreadable(path, error) from error


def check_image(path: Path) -> str | None:
    """Why the picture cannot be used, or None when every byte of it decodes."""
    return examine(path).problem


def examine(path: Path, whole_pixels: int = WHOLE_PIXELS) -> Examination:
    """Decodes the whole picture once: its size as seen, or the reason why it is broken. Never raises.

    Args:
        path: the picture.
        whole_pixels: larger ones are read in strips where that is possible, else one at a time.
    """
    try:
        with open_picture(path) as picture:
            stored = Size(*picture.size)
            info = _check(picture, whole_pixels)
            notes = _notes(path, picture)
            return Examination(_as_seen(stored, info), None, "; ".join(notes) or None, has_alpha(picture))
    except _REFUSALS as error:
        return Examination(None, reason_of(path, error))


def load_pixels(path: Path, resized: Size, crop: Box) -> Pixels:
    """As `load_picture`, without the alpha: uint8 (H, W, 3), sRGB, transparent parts on white."""
    return load_picture(path, resized, crop).pixels


def load_picture(path: Path, resized: Size, crop: Box, whole_pixels: int = WHOLE_PIXELS) -> Picture:
    """Reads a picture as training pixels.

    Args:
        path: the picture.
        resized: size to scale the upright picture to, in pixels.
        crop: left, top, right, bottom of the part to cut out of it, in pixels.
        whole_pixels: larger ones are read in strips where that is possible, else one at a time.

    Raises:
        UserError: when the file is no readable picture; it is named.
    """
    try:
        with open_picture(path) as picture:
            shrunk = _decode(picture, resized, crop, whole_pixels)
        colours, alpha = to_srgb(shrunk.image)
        pixels = scaled_crop(colours, shrunk.box, resized, crop)
        if alpha is None:
            return Picture(pixels, None)
        return Picture(pixels, scaled_crop(alpha, shrunk.box, resized, crop, _MASK_FILTER))
    except _REFUSALS as error:
        raise _unreadable(path, error) from error


def load_mask(path: Path, resized: Size, crop: Box, whole_pixels: int = WHOLE_PIXELS) -> Pixels:
    """Reads a picture as weights: its brightness, uint8 (H, W), black where it is transparent.

    Arguments and errors are those of `load_picture`; the mask is scaled to `resized` whatever its proportions.
    """
    try:
        with open_picture(path) as picture:
            shrunk = _decode(picture, resized, crop, whole_pixels)
        return scaled_crop(to_grey(shrunk.image), shrunk.box, resized, crop, _MASK_FILTER)
    except _REFUSALS as error:
        raise _unreadable(path, error) from error


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """Turns uint8 (H, W, 3) into float32 (3, H, W) from -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).to(torch.float32).div_(127.5).sub_(1.0)


def _check(picture: Image.Image, whole_pixels: int) -> dict[Any, Any]:
    """Reads every byte of an opened picture; its metadata, with those behind the pixels."""
    pixels = picture.size[0] * picture.size[1]
    if can_stream(picture) and (pixels > whole_pixels or needs_no_pixels(picture)):
        return check_stream(picture)
    with alone_if_large(picture, whole_pixels):
        _draft(picture, _PROBE_SIZE)
        picture.load()
        return picture.info


def _decode(picture: Image.Image, resized: Size, crop: Box, whole_pixels: int) -> Shrunk:
    """The picture upright, at its full size or at least at twice the size wanted; of it what the crop needs."""
    if picture.size[0] * picture.size[1] > whole_pixels and can_stream(picture):
        return shrink_stream(picture, resized, crop)
    with alone_if_large(picture, whole_pixels):
        # A JPEG decoded at half or quarter size costs much less; twice the target leaves Lanczos enough to work on.
        wanted = Size(2 * resized.width, 2 * resized.height)
        _draft(picture, _as_seen(wanted, picture.info))
        with ONE_AT_A_TIME if picture.size[0] * picture.size[1] > whole_pixels else nullcontext():
            picture.load()
    image = upright(picture, orientation_of(picture.info))
    width, height = image.size
    needed = pixels_needed(Size(width, height), (0, 0, width, height), resized, crop)
    if needed == (0, 0, width, height):
        return Shrunk(image, (0, 0, width, height))
    left, top, _, _ = needed
    return Shrunk(image.crop(needed), (-left, -top, width - left, height - top))


def _draft(picture: Image.Image, size: tuple[int, int]) -> None:
    if picture.format == "JPEG":
        picture.draft(None, size)


def _notes(path: Path, picture: Image.Image) -> list[str]:
    notes = [wrong_ending(path, picture.format), profile_note(picture)]
    if getattr(picture, "is_animated", False):
        notes.append("it is animated; only its first frame is used")
    is_decoded = not getattr(picture, "tile", ())
    if is_decoded and picture.mode in ("RGBA", "LA") and picture.getchannel("A").getextrema() == (0, 0):
        notes.append("it is transparent everywhere, which makes it white")
    return [note for note in notes if note is not None]


def _as_seen(stored: Size, info: dict[Any, Any]) -> Size:
    return Size(stored.height, stored.width) if is_sideways(orientation_of(info)) else stored


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError.of(reason_of(path, error), str(path), "replace the file or take it out of the folder")
