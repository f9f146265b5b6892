"""Says what a picture of the small world shows, by plain image processing: no weights, nothing learned.

python examples/toy_world/judge.py picture.png ...

What lies far from every colour of the likeliest background is the shape. Its colour is the nearest of those known, its
name that of the outline that fits best over places and sizes, and the background is told by colours and edges outside.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, from any folder

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.toy_world.world import BACKGROUNDS, COLOURS, SHAPES, Floats, Rgb, background, shape_mask

Background = NDArray[np.float32]  # features (n, 10) of n drawn examples

_EXAMPLES = 24  # drawn per background
_CELL = 6.0  # Lab units: the grid on which a background's colours are counted
_COMMON = 0.002  # share of a background's pixels that makes a colour one of its own
_OWN, _FOREIGN = 12.0, 17.0  # Lab units to the nearest colour of the background: part of it, not part of it
_SMALLEST_SHAPE = 0.01  # share of the picture
_OUTLINE = 64  # side of the outlines that are fitted, in pixels
_STEPS_OF_SIZE = (-2, -1, 0, 1, 2)  # pixels
_RIM = 3  # pixels around an outline in which nothing may be


@dataclass(frozen=True)
class Verdict:
    """What a picture shows.

    Attributes:
        shape, colour: None where nothing stands out from the background.
        place: "left", "centre" or "right"; None likewise.
        middle: of the shape, from the left, as a share of the picture's width.
        side: of the shape, as a share of the picture's shorter side.
        fit: of the best outline, up to 1.
    """

    background: str
    shape: str | None = None
    colour: str | None = None
    place: str | None = None
    middle: float = float("nan")
    side: float = float("nan")
    fit: float = 0.0


class Judge:
    """Knows the shapes, colours and backgrounds of the world, and what it is told beyond them.

    Args:
        shapes: further outlines, white on black, by name.
        colours: further colours, by name.
        backgrounds: further backgrounds: examples (height, width, 3), 0 to 255, by name.
    """

    def __init__(
        self,
        shapes: Mapping[str, Image.Image] | None = None,
        colours: Mapping[str, Rgb] | None = None,
        backgrounds: Mapping[str, list[NDArray[np.uint8]]] | None = None,
    ) -> None:
        outlines = {name: shape_mask(name) for name in SHAPES} | dict(shapes or {})
        self._outlines = {
            name: _scaled(np.asarray(mask, np.float32) / 255, _OUTLINE) for name, mask in outlines.items()
        }
        shades = {**COLOURS, **(colours or {})}
        self._colours = list(shades)
        self._shades = _lab(np.array([list(shades.values())], np.float32))[0]
        examples = {name: _examples(name) for name in BACKGROUNDS} | dict(backgrounds or {})
        self._palettes = {name: _palette(pictures) for name, pictures in examples.items()}
        everything = {
            name: np.stack([_features(_lab(picture), np.ones(picture.shape[:2], bool)) for picture in pictures])
            for name, pictures in examples.items()
        }
        spread = np.sqrt(np.mean([features.var(0) for features in everything.values()], 0)) + 2
        self._spread = spread
        self._backgrounds = {name: features / spread for name, features in everything.items()}

    def __call__(self, picture: NDArray[np.uint8]) -> Verdict:
        """The verdict on a picture (height, width, 3), 0 to 255."""
        lab = _lab(picture)
        far = self._distance_from_background(lab)
        shape, around = _largest_part(far > _FOREIGN)
        outside = ~_grown(shape, 2) if shape is not None else np.ones(far.shape, bool)
        kind = self._background_of(lab, outside)
        if shape is None:
            return Verdict(kind)
        core = cv2.erode(shape.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        inside = np.median(lab[core if core.sum() > 8 else shape], axis=0)
        colour = self._colours[int(np.linalg.norm(self._shades - inside, axis=1).argmin())]
        name, fit = self._fitted(_cover(lab, inside, outside), around)
        left, _, width, height = around
        middle = (left + width / 2) / shape.shape[1]
        place = ("left", "centre", "right")[int(middle > 0.39) + int(middle > 0.61)]
        return Verdict(kind, name, colour, place, middle, max(width, height) / min(shape.shape), fit)

    def _distance_from_background(self, lab: Floats) -> Floats:
        """Lab units from each pixel to the nearest colour of the background that explains most pixels."""
        smooth = cv2.GaussianBlur(lab, (3, 3), 0)
        distances = [
            np.linalg.norm(smooth[:, :, None] - palette, axis=-1).min(-1) for palette in self._palettes.values()
        ]
        best: Floats = max(distances, key=lambda distance: float((distance < _OWN).mean()))
        return best

    def _background_of(self, lab: Floats, outside: NDArray[np.bool_]) -> str:
        found = _features(lab, outside) / self._spread
        return min(self._backgrounds, key=lambda name: float(((self._backgrounds[name] - found) ** 2).sum(1).min()))

    def _fitted(self, cover: Floats, around: tuple[int, int, int, int]) -> tuple[str, float]:
        """The outline that agrees best with how much of each pixel is covered, and how well: 2 |AB| / (|AA| + |BB|)."""
        left, top, width, height = around
        room = _RIM + max(_STEPS_OF_SIZE) + 1
        field = np.pad(cover, room + max(width, height))
        middle = room + max(width, height) + left + width // 2, room + max(width, height) + top + height // 2
        reach = max(width, height) // 2 + room + 2
        window = field[middle[1] - reach : middle[1] + reach, middle[0] - reach : middle[0] + reach]
        best = ("", -1.0)
        for name, outline in self._outlines.items():
            for step in _STEPS_OF_SIZE:
                side = max(4, max(width, height) + step)
                fitted = np.pad(_scaled(outline, side), _RIM)
                if fitted.shape[0] > window.shape[0]:
                    continue
                errors = cv2.matchTemplate(window, fitted, cv2.TM_SQDIFF)
                fit = 1 - float(errors.min()) / float((window**2).sum() + (fitted**2).sum())
                best = max(best, (name, fit), key=lambda found: found[1])
        return best


def _lab(picture: NDArray[np.generic]) -> Floats:
    """CIE Lab (height, width, 3) of sRGB values from 0 to 255."""
    there = cv2.cvtColor(picture.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    return np.asarray(there, np.float32)


def _share(mask: Image.Image) -> Floats:
    return np.asarray(np.asarray(mask) / 255, np.float32)


def _scaled(cover: Floats, side: int) -> Floats:
    return np.asarray(cv2.resize(cover, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _examples(name: str) -> list[NDArray[np.uint8]]:
    return [
        background(name, 64, 64, np.random.default_rng(seed)).clip(0, 255).astype(np.uint8) for seed in range(_EXAMPLES)
    ]


def _palette(pictures: list[NDArray[np.uint8]]) -> Floats:
    """The colours (n, 3) that are common in a background."""
    values = np.concatenate([_lab(picture).reshape(-1, 3) for picture in pictures])
    cells, counts = np.unique(np.round(values / _CELL), axis=0, return_counts=True)
    return (cells[counts > _COMMON * len(values)] * _CELL).astype(np.float32)


def _features(lab: Floats, seen: NDArray[np.bool_]) -> Floats:
    """Mean and spread of the colours, edges across and down, and how the colour changes from top to bottom."""
    light = lab[..., 0]
    across = np.abs(np.diff(light, axis=1))[seen[:, 1:] & seen[:, :-1]].mean()
    down = np.abs(np.diff(light, axis=0))[seen[1:] & seen[:-1]].mean()
    third = len(lab) // 3
    everywhere = lab[seen].mean(0)
    ends = [part[mask].mean(0) if mask.any() else everywhere
            for part, mask in ((lab[:third], seen[:third]), (lab[-third:], seen[-third:]))]  # fmt: skip
    edges = np.array([across, down], np.float32) * 1.5
    return np.concatenate([everywhere, lab[seen].std(0), edges, (ends[1] - ends[0])[:1] * 0.5]).astype(np.float32)


def _largest_part(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_] | None, tuple[int, int, int, int]]:
    """The largest connected part and its box (left, top, width, height); None where there is none to speak of."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None, (0, 0, 0, 0)
    largest = 1 + int(boxes[1:, cv2.CC_STAT_AREA].argmax())
    if boxes[largest, cv2.CC_STAT_AREA] < _SMALLEST_SHAPE * mask.size:
        return None, (0, 0, 0, 0)
    left, top, width, height = (int(value) for value in boxes[largest, :4])
    return labels == largest, (left, top, width, height)


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    grown: NDArray[np.bool_] = cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0
    return grown


def _cover(lab: Floats, inside: Floats, outside: NDArray[np.bool_]) -> Floats:
    """How much of each pixel the shape covers, 0 to 1: where it lies between the background and the shape's colour."""
    around = np.median(lab[outside], axis=0) if outside.any() else inside * 0
    way = inside - around
    share = ((lab - around) @ way) / max(float(way @ way), 1e-6)
    near = ~outside
    there: Floats = (np.clip(share, 0, 1) * near).astype(np.float32)
    return there


def main() -> int:
    """Tells the verdict on each picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, help="pictures to look at")
    judge = Judge()
    for path in parser.parse_args().pictures:
        with Image.open(path) as picture:
            found = judge(np.asarray(picture.convert("RGB")))
        print(
            f"{path}: {found.colour or 'no'} {found.shape or 'shape'}, {found.background}, {found.place or 'nowhere'}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
