"""Whether two thumbnails show the same picture: laid over each other as exactly as can be, what is left must be little.

The hashes only propose. Here the two are aligned by the enhanced correlation coefficient (Evangelidis and Psarakis,
Parametric Image Alignment Using Enhanced Correlation Coefficient Maximization, 2008), which finds a small crop again
and does not mind brightness; one line then turns the colours of one into those of the other. The pictures are copies
when they agree as a whole, and when no part of them differs much: the same pose with another face is another picture.

The strict limits were set on the photographs of tests/fixtures and on drawn figures, scribbles and pages of text.
Changed in one way (halved, JPEG quality 30, 10 % brighter or darker, up to 10 % cut off) all 45 were found, changed in
all of these ways together 173 of 180. Of their pairs the most alike were pages of other text, which correlate by 0.97,
figures of the same shape in other colours, which differ by 18 levels where 15 are allowed, and a figure that opens its
mouth, by 50; different photographs correlate by 0.87 at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from library.preparation.fingerprints import FLAT, THUMBNAIL, WINDOWS, Floats, Pixels, brightness

_PART = 5
_SAME_FLAT = 3.0  # of 255
_BLUR = 1.0  # pixels: evens out what resizing and compression do to details
EDGE = 3  # pixels without a meaning at the rim: beyond it one picture shows more than the other
_SATURATED = 250  # a brightened picture is cut off there
_MOST_STRETCH = 0.17  # of the linear part of the alignment
_MOST_SHIFT = 0.1  # of the side
_LEAST_COMMON = 0.6  # of the area
_GAINS = (0.6, 1.6)
_CRITERIA = cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT
# Steps of the alignment and the least correlation after them: most pictures that are none are given up early.
_STAGES = (((_CRITERIA, 6, 1e-5), 0.85), ((_CRITERIA, 50, 1e-5), 0.9))
_ECC_BLUR = 5
_CELLS, _LEAST_COARSE = 12, 0.75
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


@dataclass(frozen=True)
class Limits:
    """What copies may differ by.

    Attributes:
        correlation: least one of all colours.
        difference: most levels of 255, as the mean of a part of 5 x 5 pixels.
        by_contrast: the same for each level of the picture's standard deviation; added.
    """

    correlation: float
    difference: float
    by_contrast: float


STRICT = Limits(0.98, 7.0, 0.12)
LOOSE = Limits(0.9, 21.0, 0.36)  # for two changed copies of a third picture, each changed in another way

Start = tuple[bool, int]  # whether the second picture is the larger view, and the number of its window in the other
Place = tuple[bool, Floats]  # whether the second picture is the larger view; from pixels of the smaller to the larger


def places_of_copies(first: Pixels, second: Pixels, starts: Iterable[Start], limits: Limits) -> Iterator[Place]:
    """The ways in which two thumbnails lie on each other and show the same picture; none where they do not.

    Args:
        first: uint8 (64, 64, 3).
        second: the same.
        starts: guesses of how they lie on each other, the best first: (False, n): the second is what window n of the
            first shows; (True, n): the other way round.
        limits: what they may differ by.
    """
    same = np.eye(2, 3, dtype=np.float32)
    is_flat = [thumbnail.std(axis=(0, 1)).max() < FLAT for thumbnail in (first, second)]
    if any(is_flat):
        means = first.mean(axis=(0, 1)) - second.mean(axis=(0, 1))
        if all(is_flat) and np.abs(means).max() <= _SAME_FLAT:
            yield False, same
        return
    if _agree(first, second, same, limits):
        yield False, same
    for is_reversed, window in starts:
        larger, smaller = (second, first) if is_reversed else (first, second)
        guess = _window(window)
        if _coarse_correlation(larger, smaller, guess) < _LEAST_COARSE:
            continue
        place = _aligned(brightness(larger), brightness(smaller), guess)
        if place is not None and _agree(larger, smaller, place, limits):
            yield is_reversed, place


def _window(number: int) -> Floats:
    """Where the pixels of what a window shows lie in the whole, float32 (2, 3)."""
    (left, right), (top, bottom) = WINDOWS[number]
    rows = [[right - left, 0, left * THUMBNAIL], [0, bottom - top, top * THUMBNAIL]]
    return np.array(rows, dtype=np.float32)


def _coarse_correlation(larger: Pixels, smaller: Pixels, place: Floats) -> float:
    """How well the colours of a few large cells agree, -1 to 1; an alignment costs twenty times as much."""
    shown, seen = warped(larger.astype(np.float32), place), smaller.astype(np.float32)
    cells = [cv2.resize(one, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)[1:-1, 1:-1] for one in (shown, seen)]
    own, others = (np.asarray(one, dtype=np.float64).ravel() for one in cells)
    own, others = own - own.mean(), others - others.mean()
    return float(own @ others / max(np.sqrt(own @ own) * np.sqrt(others @ others), 1.0))


def _aligned(larger: Floats, smaller: Floats, place: Floats) -> Floats | None:
    """Where pixels of the smaller view lie in the larger one, float32 (2, 3); None when no sensible place is found."""
    for stop, least in _STAGES:
        try:
            correlation, place = cv2.findTransformECC(  # type: ignore[call-overload]
                smaller, larger, place, cv2.MOTION_AFFINE, stop, None, _ECC_BLUR
            )
        except cv2.error:  # it does not converge: they are not alike
            return None
        if not correlation >= least:  # nor when it is no number
            return None
    stretch = np.abs(place[:, :2] - np.eye(2)).max()
    centre = np.full(2, THUMBNAIL / 2)
    shift = np.abs(place[:, :2] @ centre + place[:, 2] - centre).max()
    fits = np.isfinite(place).all() and stretch <= _MOST_STRETCH and shift <= _MOST_SHIFT * THUMBNAIL
    return np.asarray(place, dtype=np.float32) if fits else None


def _agree(larger: Pixels, smaller: Pixels, place: Floats, limits: Limits) -> bool:
    """Whether nothing much is left when one is laid over the other at `place`, and its colours are fitted."""
    shown, seen = warped(_smooth(larger), place), _smooth(smaller)
    common = _common(place)
    if common.mean() < _LEAST_COMMON:
        return False
    adapted = fitted(shown, seen, common)
    if adapted is None:
        return False
    own, others = adapted[common].ravel(), seen[common].ravel()
    contrast = float(others.std())
    if min(contrast, float(own.std())) < FLAT:
        return False
    correlation = float(np.corrcoef(own, others)[0, 1])
    left = np.abs(adapted - seen).mean(axis=2)
    left[~common] = 0
    worst = float(cv2.blur(left, (_PART, _PART)).max())
    return correlation >= limits.correlation and worst <= limits.difference + limits.by_contrast * contrast


def _smooth(thumbnail: Pixels) -> Floats:
    return np.asarray(cv2.GaussianBlur(thumbnail.astype(np.float32), (0, 0), _BLUR))


def warped(values: Floats, place: Floats) -> Floats:
    """What `values` (side, side) or (side, side, n) show at `place`, in the same size."""
    return np.asarray(cv2.warpAffine(values, place, values.shape[:2], flags=_WARP))


def _common(place: Floats) -> NDArray[np.bool_]:
    """(64, 64): which pixels both pictures show, without the rim of either."""
    inner = np.zeros((THUMBNAIL, THUMBNAIL), dtype=np.float32)
    inner[EDGE:-EDGE, EDGE:-EDGE] = 1
    both = warped(inner, place) > 0.99
    return both & (inner > 0)


def fitted(shown: Floats, seen: Floats, common: NDArray[np.bool_]) -> Floats | None:
    """`shown` with the one gain and offset that bring it nearest to `seen`; None when these are no change of light."""
    own, others = shown[common].ravel(), seen[common].ravel()
    counts = (own < _SATURATED) & (others < _SATURATED)
    if counts.sum() < 0.05 * own.size:
        counts[:] = True
    own, others = own[counts], others[counts]
    spread = float(own.var())
    if spread < FLAT**2:
        return None
    gain = float(((own - own.mean()) * (others - others.mean())).mean()) / spread
    if not _GAINS[0] <= gain <= _GAINS[1]:
        return None
    return np.clip(shown * gain + (float(others.mean()) - gain * float(own.mean())), 0, 255)
