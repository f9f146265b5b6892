"""Draws the small world: one coloured shape on a background.

Everything random comes from the generator that is handed in; same generator state, same picture. Distances are in
pixels whatever the picture's size, so that a larger picture shows more of the same background, not a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Floats = NDArray[np.float32]

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring")
COLOURS: dict[str, Rgb] = {
    "red": (214, 32, 38),
    "orange": (242, 130, 16),
    "yellow": (246, 216, 20),
    "green": (28, 160, 50),
    "blue": (30, 72, 220),
    "purple": (130, 36, 190),
    "pink": (246, 92, 176),
    "black": (22, 22, 26),
}
BACKGROUNDS = ("paper", "sky", "meadow", "desert", "night", "tiles", "stripes")
PLACES = {"left": 0.28, "centre": 0.5, "right": 0.72}  # the middle of the shape, as a share of the picture's width
SIZES = {"small": 0.42, "large": 0.56}  # the shape's side, as a share of the picture's shorter side
PICTURE_SIZES = ((64, 64), (96, 64), (64, 96), (128, 64), (64, 128), (96, 96), (128, 128))  # width, height

_OVERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """What one picture shows; each field is a word of the lists above."""

    shape: str
    colour: str
    background: str
    place: str
    size: str


def random_scene(draw: np.random.Generator) -> Scene:
    """A scene in which every word is equally likely."""

    def one(words: object) -> str:
        return str(draw.choice(list(words)))  # type: ignore[call-overload]

    return Scene(one(SHAPES), one(COLOURS), one(BACKGROUNDS), one(PLACES), one(SIZES))


def draw_scene(
    scene: Scene, width: int, height: int, draw: np.random.Generator, sizes: Mapping[str, float] = SIZES
) -> NDArray[np.uint8]:
    """The picture of a scene: (height, width, 3), 0 to 255.

    Args:
        sizes: what "small" and "large" mean; the world's own by default.
    """
    canvas = background(scene.background, width, height, draw)
    stamp(canvas, shape_mask(scene.shape), COLOURS[scene.colour], scene.place, sizes[scene.size], draw)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def stamp(
    canvas: Floats, outline: Image.Image, colour: Rgb, place: str, size: float, draw: np.random.Generator
) -> None:
    """Draws a shape onto a canvas of (height, width, 3), at a place and in a size that vary a little.

    Args:
        outline: the shape in white on black, in mode "L", as `shape_mask` gives it.
        size: one of the values of `SIZES`.
    """
    cover, rows, columns = placed(canvas.shape[1], canvas.shape[0], outline, place, size, draw)
    shade = np.asarray(colour, np.float32) + draw.uniform(-6, 6, 3).astype(np.float32)
    canvas[rows, columns] += cover[..., None] * (shade - canvas[rows, columns])


def placed(
    width: int, height: int, outline: Image.Image, place: str, size: float, draw: np.random.Generator
) -> tuple[Floats, slice, slice]:
    """Where a shape lies: how much of each pixel it covers (0 to 1), and the rows and columns of those pixels."""
    side = round(size * min(width, height) * draw.uniform(0.94, 1.06))
    middle = width * (PLACES[place] + draw.uniform(-0.03, 0.03)), height * (0.5 + draw.uniform(-0.08, 0.08))
    left = round(float(np.clip(middle[0] - side / 2, 1, width - side - 1)))
    top = round(float(np.clip(middle[1] - side / 2, 1, height - side - 1)))
    cover = np.asarray(outline.resize((side, side), Image.Resampling.BOX), np.float32) / np.float32(255)
    return cover, slice(top, top + side), slice(left, left + side)


def shape_mask(shape: str, side: int = 64 * _OVERSAMPLING) -> Image.Image:
    """One of `SHAPES` in white on black, filling a square of `side` pixels."""
    picture = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(picture)
    full = side - 1
    if shape == "circle":
        pen.ellipse((0, 0, full, full), fill=255)
    elif shape == "square":
        rim = side * 0.06
        pen.rectangle((rim, rim, full - rim, full - rim), fill=255)
    elif shape == "triangle":
        pen.polygon([(side * 0.5, side * 0.03), (side * 0.99, side * 0.93), (side * 0.01, side * 0.93)], fill=255)
    elif shape == "star":
        pen.polygon(_star(side), fill=255)
    elif shape == "heart":
        pen.polygon(_heart(side), fill=255)
    elif shape == "cross":
        pen.rectangle((side * 0.32, 0, side * 0.68, side), fill=255)
        pen.rectangle((0, side * 0.32, side, side * 0.68), fill=255)
    elif shape == "ring":
        pen.ellipse((0, 0, full, full), fill=255)
        hole = side * 0.26
        pen.ellipse((hole, hole, full - hole, full - hole), fill=0)
    else:
        raise KeyError(shape)
    return picture


def _star(side: int) -> list[tuple[float, float]]:
    turns = -np.pi / 2 + np.arange(10) * np.pi / 5
    radii = side / 2 * np.where(np.arange(10) % 2 == 0, 1.04, 0.42)
    return [(side / 2 + r * np.cos(turn), side * 0.53 + r * np.sin(turn)) for r, turn in zip(radii, turns, strict=True)]


def _heart(side: int) -> list[tuple[float, float]]:
    """The curve x = 16 sin³ t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, which is 32 wide and 29 high."""
    t = np.linspace(0, 2 * np.pi, 120)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(side / 2 + a * side / 33, side * 0.47 - b * side / 33) for a, b in zip(x, y, strict=True)]


def background(kind: str, width: int, height: int, draw: np.random.Generator) -> Floats:
    """One of `BACKGROUNDS`: (height, width, 3), 0 to 255. All are pale or dull, so that every shape stands out."""
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    canvas = np.zeros((height, width, 3), np.float32)
    if kind == "paper":
        canvas += _rgb(244, 242, 236)
    elif kind == "sky":
        canvas += _rgb(140, 188, 230) * (1 - down) + _rgb(206, 228, 244) * down
        for _ in range(round(width * height / 1400)):
            x, y, radius = draw.uniform(0, width), draw.uniform(0, height), draw.uniform(6, 9)
            cloud = np.clip(1.6 - np.hypot((columns - x) / 2, rows - y) / radius, 0, 1)[..., None]
            canvas += cloud * (_rgb(252, 253, 254) - canvas)
    elif kind == "meadow":
        canvas += _rgb(172, 202, 146) * (1 - down) + _rgb(140, 176, 112) * down
        for _ in range(round(width * height / 600)):
            x, y = draw.uniform(0, width), draw.uniform(0, height)
            tuft = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)[..., None]
            canvas -= tuft * _rgb(34, 26, 34)
    elif kind == "desert":
        canvas += _rgb(226, 204, 160)
        bend = rows + 2.5 * np.sin(columns / 9 + draw.uniform(0, 2 * np.pi))
        canvas += 13 * np.sin(bend * 2 * np.pi / 12)[..., None]
    elif kind == "night":
        canvas += _rgb(56, 62, 90) * (1 - down) + _rgb(84, 88, 116) * down
        for _ in range(round(width * height / 400)):
            x, y = draw.uniform(0, width), draw.uniform(0, height)
            light = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 1.6)[..., None]
            canvas += light * (_rgb(236, 236, 214) - canvas)
    elif kind == "tiles":
        canvas += np.where((rows // 8 + columns // 8) % 2 == 0, 192, 236)[..., None]
    elif kind == "stripes":
        canvas += np.where((columns // 8 % 2 == 0)[..., None], _rgb(240, 200, 200), _rgb(250, 240, 236))
    else:
        raise KeyError(kind)
    return canvas


def _rgb(red: int, green: int, blue: int) -> Floats:
    return np.array((red, green, blue), np.float32)
