"""Whether one of two pictures that look alike was edited: a face, an arm or a word is other where all else agrees.

Thumbnails are too small for that. Both pictures are laid over each other at up to 512 pixels, and what is left in a
small part is compared with what either picture shows there. Compression, resizing and sharpening change a part by less
than what is drawn in it; an edit puts something else there.

On the photographs of tests/fixtures and on drawn faces, icons and lines the ratio was 0.3 at most for copies (halved,
30 % of the size, JPEG quality 20, brighter, darker, cropped), 0.7 for sharpened ones, and 1.8 at least for other eyes,
arms, mouths, words and numbers, and for signatures that were added.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from library.core.sizes import Size
from library.preparation.fingerprints import THUMBNAIL, Floats, Pixels, brightness
from library.preparation.likeness import EDGE, Place, fitted, warped

_MOST = 512  # pixels of a side: what is drawn for a face must still be several pixels wide
_PARTS = 32  # of a side: how small a part is looked at by itself
_BLUR = 1.0  # pixels: evens out what resizing and compression do to details
_NOISE = 400.0  # of 255 squared: what compression does even where nothing is shown
_MOST_LEFT = 1.0  # of what is shown in the part
_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-4)
_ECC_BLUR = 5
_ALIGNED = 256  # pixels of a side, to which a place is found exactly enough


def side_of_details(first: Size, second: Size) -> int:
    """The side in pixels of the squares as which two pictures are compared: neither has to be enlarged for it."""
    return max(THUMBNAIL, min(_MOST, *first, *second))


def is_edited(first: Pixels, second: Pixels, place: Place) -> bool:
    """Whether a part of one picture shows something else than the other does.

    Args:
        first: uint8 (side, side, 3), the whole picture.
        second: the same.
        place: how their thumbnails lie on each other, which is made more exact here where that helps.
    """
    is_reversed, rough = place
    larger, smaller = (second, first) if is_reversed else (first, second)
    if _most_left(larger, smaller, _scaled(rough, len(first) / THUMBNAIL)) <= _MOST_LEFT:
        return False
    better = _refined(larger, smaller, rough)
    return better is None or _most_left(larger, smaller, _scaled(better, len(first) / THUMBNAIL)) > _MOST_LEFT


def _refined(larger: Pixels, smaller: Pixels, place: Floats) -> Floats | None:
    """The place of thumbnails, found more exactly in larger pictures; None when no place is better than others."""
    side = min(_ALIGNED, len(larger))
    shrunk = (cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA) for one in (smaller, larger))
    grey = [brightness(np.asarray(one, dtype=np.uint8)) for one in shrunk]
    factor = side / THUMBNAIL
    try:
        _, found = cv2.findTransformECC(  # type: ignore[call-overload]
            *grey, _scaled(place, factor), cv2.MOTION_AFFINE, _CRITERIA, None, _ECC_BLUR
        )
    except cv2.error:  # it does not converge
        return None
    return _scaled(found, 1 / factor) if np.isfinite(found).all() else None


def _scaled(place: Floats, factor: float) -> Floats:
    """The place in pictures that are `factor` times as large; centres of pixels lie at halves."""
    linear, half = place[:, :2], np.full(2, 0.5)
    shift = factor * (place[:, 2] + half) + linear @ (half - factor * half) - half
    return np.column_stack([linear, shift]).astype(np.float32)


def _most_left(larger: Pixels, smaller: Pixels, place: Floats) -> float:
    """The largest share of what a small part shows in which the two differ, 0 or more."""
    side = len(smaller)
    shown, seen = warped(_smooth(larger), place), _smooth(smaller)
    common = _common(side, place)
    if not common.any():
        return 0.0
    adapted = fitted(shown, seen, common)
    if adapted is None:  # pictures of nearly one colour
        adapted = shown + (seen[common].mean(axis=0) - shown[common].mean(axis=0))
    part = max(3, side // _PARTS | 1)
    left = _mean((adapted - seen) ** 2, part)
    there = np.maximum(_variance(adapted, part), _variance(seen, part))
    return float((left / (there + _NOISE))[common].max())


def _smooth(picture: Pixels) -> Floats:
    return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), _BLUR))


def _common(side: int, place: Floats) -> NDArray[np.bool_]:
    """(side, side): which pixels both pictures show, without the rim of either."""
    rim = max(EDGE, EDGE * side // THUMBNAIL)
    inner = np.zeros((side, side), dtype=np.float32)
    inner[rim:-rim, rim:-rim] = 1
    return (warped(inner, place) > 0.99) & (inner > 0)


def _mean(values: Floats, part: int) -> Floats:
    """Means of parts of `part` pixels a side, over the colours as well: (H, W)."""
    return np.asarray(cv2.blur(values, (part, part))).mean(axis=2)


def _variance(picture: Floats, part: int) -> Floats:
    means = np.asarray(cv2.blur(picture, (part, part)))
    return np.maximum(_mean(picture**2, part) - (means**2).mean(axis=2), 0)
