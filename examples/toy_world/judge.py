"""Says what a picture of the small world shows, by plain image processing: no weights, nothing learned.

python examples/toy_world/judge.py picture.png ...

What lies far from every colour of the likeliest background is the shape. Its colour is the nearest of those known, its
name that of the outline that fits best over places and the sizes that the world draws, and the background is told by
colours and edges outside.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, from any folder

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from examples.toy_world.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Floats, Rgb, background, shape_mask
from library.core.errors import UserError, run_script
from library.core.randomness import NO_EPOCH, generator

Mask = NDArray[np.bool_]

_EXAMPLES = 8  # drawn per background
_CELL = 6.0  # Lab units: the grid on which a background's colours are counted
_COMMON = 0.002  # share of a background's pixels that makes a colour one of its own
_OWN, _FOREIGN = 12.0, 14.0  # Lab units to the nearest colour of the background: part of it, not part of it
_NOTHING = 6.0  # Lab units to it that say nothing yet
_SMALLEST_SHAPE = 0.008  # share of the picture's shorter side, squared
_BLURS = (1.0, 2.2)  # pixels: how soft a VAE leaves edges; outlines of rising sides have them in turn
_SCALE = 64  # outlines are fitted in a picture whose shorter side is this many pixels
_SLACK = 1.5  # pixels by which a shape may be smaller or larger than the world draws it
_PATCH = 48  # pixels: side of the part of that picture in which an outline is fitted
_SHIFT = 6  # pixels by which outlines are moved about the middle of what was found
_SMOOTH = 6.0  # pixels over which a background is evened out
_LEFT, _RIGHT = 0.39, 0.61  # share of the picture's width between the places


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
        backgrounds: Mapping[str, Sequence[NDArray[np.uint8]]] | None = None,
    ) -> None:
        self._names, self._sides, self._outlines = _outlines(dict(shapes or {}))
        shades = {**COLOURS, **(colours or {})}
        self._colours = list(shades)
        self._shades = _lab(np.array([list(shades.values())], np.float32))[0]
        known = _known_backgrounds() | {name: _looks_of(pictures) for name, pictures in (backgrounds or {}).items()}
        self._palettes = [looks.palette for looks in known.values()]
        self._spread = np.sqrt(np.mean([looks.features.var(0) for looks in known.values()], 0)) + 2
        self._backgrounds = {name: looks.features / self._spread for name, looks in known.items()}

    def __call__(self, picture: NDArray[np.uint8]) -> Verdict:
        """The verdict on a picture (height, width, 3), 0 to 255."""
        lab = _lab(picture)
        far = self._distance_from_background(lab)
        shape = _largest_part(far > _FOREIGN)
        kind = self._background_of(lab, ~_grown(shape, 2) if shape is not None else np.ones(far.shape, bool))
        if shape is None:
            return Verdict(kind)
        core = cv2.erode(shape.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        inside = np.median(lab[core if core.sum() > 8 else shape], axis=0)
        colour = self._colours[int(np.linalg.norm(self._shades - inside, axis=1).argmin())]
        from_ground, from_shape = np.maximum(far - _NOTHING, 0), np.linalg.norm(lab - inside, axis=-1)
        cover = from_ground / (from_ground + from_shape + 1e-6) * _grown(shape, 3)
        name, side, fit, middle = self._fitted(cover.astype(np.float32))
        place = ("left", "centre", "right")[int(middle > _LEFT) + int(middle > _RIGHT)]
        return Verdict(kind, name, colour, place, middle, side, fit)

    def likeness(self, picture: NDArray[np.uint8], figure: Image.Image) -> float:
        """How well a figure of several colours is found in a picture, 0 to 1, at its best place and size.

        It is the share that the figure explains of how the picture differs from its background (the squared
        correlation, CIE Lab), times how much better it does that than the best shape of a single colour. So a red
        triangle, which has much of a toadstool's cap, is not like a toadstool.

        Args:
            picture: (height, width, 3), 0 to 255.
            figure: in mode "RGBA", a square that is as large as those of the shapes.
        """
        lab = _at_scale(_lab(picture))
        far = self._distance_from_background(lab)
        part = _largest_part(far > _FOREIGN)
        if part is None:
            return 0.0
        differs = far > _OWN
        ground = _ground(lab, ~differs)
        difference = (lab - ground) * differs[..., None]
        whole = float((difference**2).sum())
        of_figure = _explained_by_figure(difference, ground, _figures(figure.tobytes(), figure.size)) / whole
        of_shape = self._explained_by_shape(difference, part) / whole
        rest, rest_of_shape = max(1 - of_figure, 1e-6), max(1 - of_shape, 1e-6)
        return of_figure * rest_of_shape / (rest + rest_of_shape)

    def _distance_from_background(self, lab: Floats) -> Floats:
        """Lab units from each pixel to the nearest colour of the background that explains most pixels."""
        pixels = cv2.GaussianBlur(lab, (3, 3), 0).reshape(-1, 3)
        lengths = (pixels**2).sum(1)
        best, most = lengths, -1.0
        for palette in self._palettes:
            squares = ((palette**2).sum(1) - 2 * pixels @ palette.T).min(1) + lengths
            explained = float((squares < _OWN**2).mean())
            if explained > most:
                best, most = squares, explained
        there: Floats = np.sqrt(np.maximum(best, 0)).reshape(lab.shape[:2])
        return there

    def _background_of(self, lab: Floats, outside: Mask) -> str:
        found = _features(lab, outside if outside.mean() > 0.1 else np.ones_like(outside)) / self._spread
        return min(self._backgrounds, key=lambda name: float(((self._backgrounds[name] - found) ** 2).sum(1).min()))

    def _fitted(self, cover: Floats) -> tuple[str, float, float, float]:
        """The outline that agrees best with how much of each pixel is covered: name, side, fit, middle.

        The fit is 2 AB / (AA + BB), side and middle are shares as in `Verdict`.
        """
        scaled = _at_scale(cover)
        left, top = _middle(scaled)
        windows = _windows(scaled, left, top)
        both = (windows**2).sum(1)[:, None] + (self._outlines**2).sum(1)
        fits = 2 * (windows @ self._outlines.T) / both
        where, which = np.unravel_index(int(fits.argmax()), fits.shape)
        shift = int(where) % (2 * _SHIFT + 1) - _SHIFT
        return self._names[which], self._sides[which] / _SCALE, float(fits.max()), (left + shift) / scaled.shape[1]

    def _explained_by_shape(self, difference: Floats, part: Mask) -> float:
        """The squares of the difference (height, width, 3) that the best outline in its best single colour explains."""
        middle = _middle(part.astype(np.float32))
        outlines = self._outlines[::2]
        alike = [(_windows(difference[..., channel], *middle) @ outlines.T) ** 2 for channel in range(3)]
        return float((np.sum(alike, 0) / (outlines**2).sum(1)).max())


@dataclass(frozen=True)
class _Looks:
    """What a background looks like.

    Attributes:
        palette: its common colours (n, 3), in Lab.
        features: (n, 9) of n examples, as `_features` tells them.
    """

    palette: Floats
    features: Floats


def likeness(picture: NDArray[np.uint8], figure: Image.Image) -> float:
    """`Judge.likeness` of a judge that knows the world alone."""
    return _judge().likeness(picture, figure)


@cache
def _judge() -> Judge:
    return Judge()


def _lab(picture: NDArray[np.generic]) -> Floats:
    """CIE Lab (height, width, 3) of sRGB values from 0 to 255."""
    there = cv2.cvtColor(picture.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
    return np.asarray(there, np.float32)


def _at_scale(values: Floats) -> Floats:
    """Values (height, width, ...) of a picture as if its shorter side were `_SCALE` pixels."""
    height, width = values.shape[:2]
    scale = _SCALE / min(height, width)
    if scale == 1:
        return values
    size = round(width * scale), round(height * scale)
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _blurred(values: Floats, by: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), by), np.float32)


@cache
def _sides() -> tuple[int, ...]:
    """Sides of the shapes, in pixels, in a picture at `_SCALE`."""
    found = set()
    for share in SIZES.values():
        smallest, largest = share * _SCALE * 0.94 - _SLACK, share * _SCALE * 1.06 + _SLACK
        found |= set(range(round(smallest), round(largest) + 1))
    return tuple(sorted(found))


def _outlines(more: dict[str, Image.Image]) -> tuple[list[str], list[int], Floats]:
    """Names, sides and blurred outlines (n, _PATCH ** 2), each in the middle of its patch."""
    masks = {name: shape_mask(name) for name in SHAPES} | more
    names, sides, outlines = [], [], []
    for name, mask in masks.items():
        cover = np.asarray(mask.convert("L"), np.float32) / np.float32(255)
        for number, side in enumerate(_sides()):
            names.append(name)
            sides.append(side)
            outlines.append(_blurred(_in_patch(cover, side), _BLURS[number % 2]).ravel())
    return names, sides, np.stack(outlines)


def _in_patch(cover: Floats, side: int) -> Floats:
    patch = np.zeros((_PATCH, _PATCH), np.float32)
    start = (_PATCH - side) // 2
    patch[start : start + side, start : start + side] = cv2.resize(cover, (side, side), interpolation=cv2.INTER_AREA)
    return patch


@cache
def _figures(content: bytes, size: tuple[int, int]) -> list[tuple[Floats, Floats]]:
    """A figure in every size: how much of each pixel it covers (side, side), and its colours (side, side, 3) in Lab."""
    figure = np.frombuffer(content, np.uint8).reshape(size[1], size[0], 4).astype(np.float32)
    cover = figure[..., 3:] / 255
    found = []
    layers = np.concatenate([figure[..., :3] * cover, cover], -1)
    for side in _sides()[::2]:
        there = cv2.resize(layers, (side, side), interpolation=cv2.INTER_AREA)
        there = _blurred(np.pad(there, ((2, 2), (2, 2), (0, 0))), 0.8)
        colours = there[..., :3] / np.maximum(there[..., 3:], 1e-3)
        found.append((there[..., 3], _lab(colours.clip(0, 255))))
    return found


def _explained_by_figure(difference: Floats, ground: Floats, figures: list[tuple[Floats, Floats]]) -> float:
    """The squares of the difference to the background that the figure on that background explains at its best."""

    def summed(field: Floats, weights: Floats) -> Floats:
        return np.asarray(cv2.matchTemplate(field, weights.astype(np.float32), cv2.TM_CCORR), np.float32)

    best = 0.0
    across, squared = (difference * ground).sum(-1), (ground**2).sum(-1)
    for cover, colours in figures:
        if cover.shape[0] > difference.shape[0] or cover.shape[1] > difference.shape[1]:
            continue
        seen = cover[..., None] * colours
        alike, shared = -summed(across, cover), summed(squared, cover**2)
        for channel in range(3):
            alike += summed(np.ascontiguousarray(difference[..., channel]), seen[..., channel])
            shared -= 2 * summed(np.ascontiguousarray(ground[..., channel]), cover * seen[..., channel])
        own = np.maximum(shared + float((seen**2).sum()), 1)
        best = max(best, float((np.maximum(alike, 0) ** 2 / own).max()))
    return best


def _ground(lab: Floats, clear: Mask) -> Floats:
    """The background (height, width, 3), also behind what stands on it: smoothed over the pixels that are clear."""
    weights = _blurred(clear.astype(np.float32), _SMOOTH) + np.float32(1e-3)
    return _blurred(lab * clear[..., None], _SMOOTH) / weights[..., None]


def _middle(values: Floats) -> tuple[int, int]:
    """The centre of gravity of values (height, width), from the left and from the top: edges between pixels."""
    found = cv2.moments(values)
    return round(found["m10"] / found["m00"] + 0.5), round(found["m01"] / found["m00"] + 0.5)


def _windows(values: Floats, left: int, top: int) -> Floats:
    """Patches (n, _PATCH ** 2) of values (height, width) that lie around a place, row by row of their shifts."""
    reach = _PATCH // 2 + _SHIFT
    field = np.pad(values, reach)[top : top + 2 * reach, left : left + 2 * reach]
    return sliding_window_view(field, (_PATCH, _PATCH)).reshape(-1, _PATCH**2)


@cache
def _known_backgrounds() -> dict[str, _Looks]:
    return {
        name: _looks_of(
            [
                background(name, 64, 64, generator(seed, NO_EPOCH, name, "judge")).clip(0, 255).astype(np.uint8)
                for seed in range(_EXAMPLES)
            ]
        )
        for name in BACKGROUNDS
    }


def _looks_of(pictures: Sequence[NDArray[np.uint8]]) -> _Looks:
    """Of examples as they are and with softer edges, as a VAE leaves them."""
    drawn = [_lab(picture) for picture in pictures]
    drawn += [_blurred(lab, _BLURS[0]) for lab in drawn]
    features = np.stack([_features(lab, np.ones(lab.shape[:2], bool)) for lab in drawn])
    return _Looks(_palette(drawn), features)


def _palette(pictures: list[Floats]) -> Floats:
    """The colours (n, 3) that are common in pictures of Lab values."""
    cells = np.concatenate([np.round(lab / _CELL).astype(np.int64).reshape(-1, 3) for lab in pictures])
    keys, counts = np.unique((cells + 64) @ np.array((1 << 16, 1 << 8, 1), np.int64), return_counts=True)
    common = keys[counts > _COMMON * len(cells)]
    return ((np.stack([common >> 16, common >> 8 & 255, common & 255], -1) - 64) * _CELL).astype(np.float32)


def _features(lab: Floats, seen: Mask) -> Floats:
    """Mean and spread of the colours, edges across and down, and how much lighter it is below than above: (9,)."""
    light = lab[..., 0]
    across = np.abs(np.diff(light, axis=1))[seen[:, 1:] & seen[:, :-1]]
    down = np.abs(np.diff(light, axis=0))[seen[1:] & seen[:-1]]
    edges = [1.5 * float(steps.mean()) if steps.size else 0.0 for steps in (across, down)]
    third = len(lab) // 3
    ends = [
        float(light[rows][seen[rows]].mean()) if seen[rows].any() else float(light[seen].mean())
        for rows in (slice(0, third), slice(len(lab) - third, len(lab)))
    ]
    values = lab[seen]
    return np.concatenate([values.mean(0), values.std(0), edges, [0.5 * (ends[1] - ends[0])]]).astype(np.float32)


def _largest_part(mask: Mask) -> Mask | None:
    """The largest connected part; None where there is none to speak of."""
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    largest = 1 + int(boxes[1:, cv2.CC_STAT_AREA].argmax())
    if boxes[largest, cv2.CC_STAT_AREA] < _SMALLEST_SHAPE * min(mask.shape) ** 2:
        return None
    part: Mask = labels == largest
    return part


def _grown(mask: Mask, by: int) -> Mask:
    grown: Mask = cv2.dilate(mask.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0
    return grown


def main() -> None:
    """Tells the verdict on each picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, help="pictures to look at")
    paths: list[Path] = parser.parse_args().pictures
    judge = Judge()
    for path in paths:
        found = judge(_read(path))
        shape = f"{found.colour} {found.shape}, {found.place}" if found.shape else "no shape"
        print(f"{path}: {shape}, {found.background}")


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise UserError.of("There is no such file.", str(path), "Give the path of a picture.") from None
    except OSError:
        raise UserError.of("This cannot be read as a picture.", str(path), "Give PNG, JPEG or WebP files.") from None


if __name__ == "__main__":
    sys.exit(run_script(main))
