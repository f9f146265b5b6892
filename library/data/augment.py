"""How one use sees a picture: mirrored, cut elsewhere, in slightly other colours. Pure functions of drawn numbers.

Without `variants` each use draws its own crop and colours. With them a picture has that many fixed ones and each use
draws one: those can be encoded once and kept, and the training is the same with and without the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from library.core.randomness import NO_EPOCH, generator
from library.core.sizes import Size, Span

_COLOUR_SHARE = 1 / 3  # of the uses change their colours
_LARGEST_HUE_SHIFT = 8  # of the 180 steps of a full turn
_GAMMA = Span(0.95, 1.05)
_HUES = 180  # OpenCV keeps half degrees in a byte
_FACE = re.compile(r"_(\d+)_(\d+)_(\d+)_(\d+)$")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentations:
    """What may differ between two uses of a picture. Without arguments: nothing.

    Attributes:
        flip: half of the uses are mirrored, left and right.
        colour: a third of the uses have another hue or gamma.
        random_crop: what sticks out of the bucket is cut off at random places.
        face_crop_range: the crop's shorter side is so many times the size of the face that the file name tells of.
    """

    flip: bool = False
    colour: bool = False
    random_crop: bool = False
    face_crop_range: Span | None = None

    @property
    def has_variants(self) -> bool:
        """Whether crops or colours are drawn; mirroring alone has two fixed outcomes."""
        return self.colour or self.random_crop or self.face_crop_range is not None


NO_AUGMENTATION = Augmentations()


class Choice(NamedTuple):
    """Which of the fixed looks of a picture a use has; `variant` is 0 where crops and colours are drawn anew."""

    variant: int = 0
    flipped: bool = False


class ColourShift(NamedTuple):
    """A turn of the hue in steps of two degrees, and a gamma; (0, 1) changes nothing."""

    hue: int = 0
    gamma: float = 1.0


_AS_IT_IS = ColourShift()


class Face(NamedTuple):
    """Centre and size of a face in the upright picture, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """How one use sees a picture: scaled to `resized`, `crop` (left, top, right, bottom) cut out, then the rest."""

    resized: Size
    crop: tuple[int, int, int, int]
    flipped: bool = False
    colour: ColourShift = _AS_IT_IS


@dataclass(frozen=True)
class Frame:
    """A picture before any draw: its size as seen, its place in its bucket, and the face its name tells of."""

    size: Size
    resized: Size
    bucket: Size
    crop: tuple[int, int]  # left, top of the even crop
    face: Face | None = None


def face_of(name: str) -> Face | None:
    """The face that the end of a file name describes: `…_X_Y_WIDTH_HEIGHT.png`, as tools of this field write it."""
    found = _FACE.search(PurePath(name).stem)
    return Face(*map(int, found.groups())) if found else None


def choose(augmentations: Augmentations, variants: int | None, seed: int, epoch: int, use: str) -> Choice:
    """The look of one use. `use` names it within the epoch; each kind of draw has its own numbers."""
    variant = 0
    if variants is not None and augmentations.has_variants:
        variant = int(generator(seed, epoch, use, "variant").integers(variants))
    flipped = augmentations.flip and generator(seed, epoch, use, "flip").random() < 0.5
    return Choice(variant, bool(flipped))


def choices_of(augmentations: Augmentations, variants: int | None) -> list[Choice]:
    """Every look that uses of a picture can have, for caches. Needs `variants` where crops or colours are drawn."""
    count = (variants or 1) if augmentations.has_variants else 1
    flips = (False, True) if augmentations.flip else (False,)
    return [Choice(variant, flipped) for variant in range(count) for flipped in flips]


def fixed_view(frame: Frame, augmentations: Augmentations, choice: Choice, seed: int, picture: str) -> View:
    """The look `choice` of a picture that has fixed ones; `picture` names it in random draws."""
    return draw_view(
        frame, augmentations, choice, lambda purpose: generator(seed, NO_EPOCH, f"{picture}|{choice.variant}", purpose)
    )


def draw_view(
    frame: Frame, augmentations: Augmentations, choice: Choice, draws: Callable[[str], np.random.Generator]
) -> View:
    """A view whose crop and colours come from `draws`, which makes the generator of a purpose."""
    face = frame.face if augmentations.face_crop_range is not None else None
    resized, (left, top) = frame.resized, frame.crop
    if face is not None and augmentations.face_crop_range is not None:
        resized, left, top = _around_face(frame, face, augmentations, draws)
    elif augmentations.random_crop:
        places = draws("crop")
        left = int(places.integers(resized.width - frame.bucket.width + 1))
        top = int(places.integers(resized.height - frame.bucket.height + 1))
    colour = _draw_colour(draws("colour")) if augmentations.colour else _AS_IT_IS
    crop = (left, top, left + frame.bucket.width, top + frame.bucket.height)
    return View(resized, crop, choice.flipped, colour)


def _around_face(
    frame: Frame, face: Face, augmentations: Augmentations, draws: Callable[[str], np.random.Generator]
) -> tuple[Size, int, int]:
    """Scale and crop around a face: as large in the picture as drawn, but neither enlarged nor beyond the picture."""
    low, high = augmentations.face_crop_range or Span(1.0, 1.0)
    size, bucket = frame.size, frame.bucket
    face_size = max(face.width, face.height, 1)
    covers = max(bucket.width / size.width, bucket.height / size.height)  # the smallest scale that fills the bucket
    wanted = [min(bucket) / (face_size * multiple) for multiple in (high, low)]
    smallest, largest = (max(covers, min(1.0, scale)) for scale in wanted)
    scale = smallest + (largest - smallest) * draws("face").random()
    width, height = max(bucket.width, round(size.width * scale)), max(bucket.height, round(size.height * scale))
    places = draws("crop")
    left = _along(face.x * scale, face.width * scale, bucket.width, width, augmentations.random_crop, places)
    top = _along(face.y * scale, face.height * scale, bucket.height, height, augmentations.random_crop, places)
    return Size(width, height), left, top


def _along(centre: float, extent: float, cut: int, whole: int, moves: bool, places: np.random.Generator) -> int:
    """Where a cut of a side begins: the face in its middle, or anywhere such that it stays inside."""
    leeway = max(0.0, (cut - extent) / 2) * (2 * places.random() - 1) if moves else 0.0
    return int(np.clip(round(centre - cut / 2 + leeway), 0, whole - cut))


def _draw_colour(draws: np.random.Generator) -> ColourShift:
    changes, turns, hue, gamma = draws.random(), draws.random(), draws.random(), draws.random()
    if changes >= _COLOUR_SHARE:
        return _AS_IT_IS
    if turns < 0.5:
        return ColourShift(hue=round(_LARGEST_HUE_SHIFT * (2 * hue - 1)))
    return ColourShift(gamma=_GAMMA.low + (_GAMMA.high - _GAMMA.low) * gamma)


def apply_view(pixels: Pixels, view: View) -> Pixels:
    """Colours and mirroring of a view on pixels (H, W, 3) that are scaled and cut already."""
    if view.colour.hue:
        hues, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
        turned = ((hues.astype(np.int16) + view.colour.hue) % _HUES).astype(np.uint8)
        pixels = np.asarray(cv2.cvtColor(cv2.merge([turned, saturation, value]), cv2.COLOR_HSV2RGB), dtype=np.uint8)
    if view.colour.gamma != 1.0:
        levels = np.round(255 * (np.arange(256) / 255) ** view.colour.gamma).astype(np.uint8)
        pixels = levels[pixels]
    return mirror(pixels) if view.flipped else pixels


def mirror(pixels: Pixels) -> Pixels:
    """Left and right exchanged; (H, W) or (H, W, 3)."""
    return np.ascontiguousarray(pixels[:, ::-1])


def latent_mask(alpha: Pixels, cell: int) -> NDArray[np.float32]:
    """Opacity (H, W) as a weight of each latent cell (H / cell, W / cell): its mean from 0 to 1."""
    height, width = alpha.shape
    cells = alpha.reshape(height // cell, cell, width // cell, cell).astype(np.float32)
    return np.asarray(cells.mean(axis=(1, 3)) / 255, dtype=np.float32)
