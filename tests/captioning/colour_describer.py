"""A small describer that really looks: it names the mean colour of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from library.captioning.describer import Decoded
from library.core.sizes import Size
from library.data.pictures.images import load_pixels

SIDE = 8


class ColourDescriber:
    """Says "colour R G B" of a picture, in eighths; `batches` has the names of the pictures that came together."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def read(self, path: Path) -> Decoded:
        return load_pixels(path, Size(SIDE, SIDE), (0, 0, SIDE, SIDE))

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        self.batches.append([path.name for path in paths])
        means = [np.asarray(picture, np.float64).mean((0, 1)) // 32 for picture in pictures]
        return [f"colour {red:.0f} {green:.0f} {blue:.0f}" for red, green, blue in means]

    def why_empty(self) -> tuple[str, str]:
        return "nothing is to be said of it", "look at it"

    def joined(self, old: str, new: str) -> str:
        parts = old.split(", ")
        return old if new in parts else ", ".join([*parts, new])


def make_pictures(folder: Path, names: Sequence[str]) -> None:
    """Small pictures, each of a colour of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        colour = (number * 53 % 256, number * 101 % 256, number * 29 % 256)
        Image.new("RGB", (12, 10), colour).save(folder / name)
