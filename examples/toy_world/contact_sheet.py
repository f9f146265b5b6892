"""Draws the contact sheet of the toy world: shapes down, backgrounds across, all colours and places among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from examples.toy_world.captions import UNSAID, sentence, tags
from examples.toy_world.drawing import Way, draw
from examples.toy_world.world import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene
from library.core.atomic_io import write_whole
from library.models.stable_diffusion import StableDiffusion

_SEED = 7
_ENLARGED = 112 / 64
_GAP, _LEFT, _TOP, _MARGIN = 6, 84, 34, 18  # pixels
_PAPER, _INK, _PALE = (250, 249, 246), (40, 40, 44), (120, 120, 126)
_FONT, _SMALL_FONT = 15, 13
_SHADES = 256  # of the PNG's palette
_OTHERS = (
    (Scene("heart", "red", "sky", "left", UNSAID), (128, 64)),
    (Scene("star", "yellow", "night", "right", UNSAID), (96, 64)),
    (Scene("ring", "purple", "desert", "centre", UNSAID), (96, 96)),
    (Scene("cross", "blue", "meadow", UNSAID, UNSAID), (64, 96)),
)


def write_sheet(model: StableDiffusion, way: Way, path: Path) -> None:
    """Draws the pictures and writes the sheet, a PNG file of at most 300 kB.

    Args:
        way: how to draw, but for the size.
    """
    scenes = sheet_scenes()
    prompts = [sentence(scene) for scene in scenes]
    pictures = draw(
        model, prompts, [_SEED + number for number in range(len(scenes))], replace(way, width=64, height=64)
    )
    others = [
        draw(model, [tags(scene)], [_SEED], replace(way, width=width, height=height))[0]
        for scene, (width, height) in _OTHERS
    ]
    sheet = lay_out(pictures, others, [tags(scene) for scene, _ in _OTHERS])
    small = sheet.quantize(_SHADES, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    write_whole(path, lambda temporary: small.save(temporary, "PNG", optimize=True))


def sheet_scenes() -> list[Scene]:
    """A scene for each shape and background, row by row."""
    colours, places, sizes = list(COLOURS), list(PLACES), list(SIZES)
    return [
        Scene(
            shape,
            colours[(row * 3 + column) % len(colours)],
            ground,
            places[(row + 2 * column) % len(places)],
            sizes[(row + column + 1) % len(sizes)],
        )
        for row, shape in enumerate(SHAPES)
        for column, ground in enumerate(BACKGROUNDS)
    ]


def lay_out(pictures: NDArray[np.uint8], others: Sequence[NDArray[np.uint8]], titles: Sequence[str]) -> Image.Image:
    """The sheet of the pictures of `sheet_scenes` and, below them, pictures of other sizes with their prompts."""
    side = round(64 * _ENLARGED)
    width = _LEFT + len(BACKGROUNDS) * (side + _GAP) + _MARGIN
    grid = _TOP + len(SHAPES) * (side + _GAP)
    below = max(round(len(other) * _ENLARGED) for other in others)
    sheet = Image.new("RGB", (width, grid + 2 * _GAP + below + 2 * _SMALL_FONT + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(_FONT), ImageFont.load_default(_SMALL_FONT)
    for column, ground in enumerate(BACKGROUNDS):
        pen.text((_LEFT + column * (side + _GAP) + side / 2, _TOP - 8), ground, _INK, large, "ms")
    for row, shape in enumerate(SHAPES):
        pen.text((_LEFT - 10, _TOP + row * (side + _GAP) + side / 2), shape, _INK, large, "rm")
        for column in range(len(BACKGROUNDS)):
            picture = _enlarged(pictures[row * len(BACKGROUNDS) + column])
            sheet.paste(picture, (_LEFT + column * (side + _GAP), _TOP + row * (side + _GAP)))
    left = float(_LEFT)
    gap = (width - _LEFT - _MARGIN - _GAP - sum(other.shape[1] * _ENLARGED for other in others)) / (len(others) - 1)
    for other, title in zip(others, titles, strict=True):
        picture = _enlarged(other)
        sheet.paste(picture, (round(left), grid + 2 * _GAP))
        pen.text((left, grid + 2 * _GAP + picture.height + 6), title, _PALE, small)
        left += picture.width + gap
    return sheet


def _enlarged(picture: NDArray[np.uint8]) -> Image.Image:
    height, width = picture.shape[:2]
    size = round(width * _ENLARGED), round(height * _ENLARGED)
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
