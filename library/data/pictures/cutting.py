"""Scaling a picture and cutting a part out of it, with no more work and memory than the part is worth.

A picture of 2 x 20,000 pixels covers a square of 512 at a size of 512 x 5,120,000, and a face is cut out of a picture
that is not scaled at all. In such cases only the part is scaled, from the pixels that the filter needs for it. It
reads its neighbours outside the part as well, so that the result is that of scaling everything first, at most one
level away where Pillow rounds its weights otherwise.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.core.sizes import Size

Box = tuple[int, int, int, int]
FloatBox = tuple[float, float, float, float]

_SMALL_PART = 8  # times that the scaled picture must be larger; ordinary crops stay as they always were
_REACH = 3  # of Lanczos, in pixels of the smaller of its two pictures
_SPARE = 2  # pixels, for the rounding of places


def is_small_part(resized: Size, crop: Box) -> bool:
    """Whether a crop is so much smaller than the scaled picture that it is scaled alone."""
    left, top, right, bottom = crop
    is_within = 0 <= left < right <= resized.width and 0 <= top < bottom <= resized.height
    return is_within and resized.area > _SMALL_PART * (right - left) * (bottom - top)


def pixels_needed(size: Size, box: FloatBox, resized: Size, crop: Box) -> Box:
    """The part of a picture that a crop of its scaled self is made of, the filter's reach included.

    Args:
        size: of the picture as decoded.
        box: the part of it, in its pixels, that is scaled to `resized`.
        resized: size of the whole scaled picture.
        crop: what is cut out of that.
    """
    if not is_small_part(resized, crop):
        return (0, 0, *size)
    left, right = _span_needed(size.width, box[0], box[2], resized.width, (crop[0], crop[2]))
    top, bottom = _span_needed(size.height, box[1], box[3], resized.height, (crop[1], crop[3]))
    return (left, top, right, bottom)


def scaled_crop(
    image: Image.Image, box: FloatBox, resized: Size, crop: Box, filter: Image.Resampling = Image.Resampling.LANCZOS
) -> NDArray[np.uint8]:
    """Scales the part `box` of an image to `resized` and cuts `crop` out of it.

    The image may lack what `pixels_needed` does not name; `box` then reaches beyond it. `filter` reaches no farther
    than Lanczos.
    """
    if not is_small_part(resized, crop):
        return np.array(image.resize(resized, filter, box=box).crop(crop), dtype=np.uint8)
    across, down = (box[2] - box[0]) / resized.width, (box[3] - box[1]) / resized.height
    part = (
        max(0.0, box[0] + crop[0] * across),
        max(0.0, box[1] + crop[1] * down),
        min(float(image.width), box[0] + crop[2] * across),
        min(float(image.height), box[1] + crop[3] * down),
    )
    size = (crop[2] - crop[0], crop[3] - crop[1])
    return np.array(image.resize(size, filter, box=part), dtype=np.uint8)


def _span_needed(length: int, start: float, end: float, scaled: int, cut: tuple[int, int]) -> tuple[int, int]:
    """First and end of the pixels needed in one direction."""
    scale = (end - start) / scaled
    reach = _REACH * max(1.0, scale) + _SPARE
    first, last = start + cut[0] * scale - reach, start + cut[1] * scale + reach
    return max(0, math.floor(first)), min(length, math.ceil(last))
