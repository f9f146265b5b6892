"""Generated pictures as PNG files that say how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from library.core.atomic_io import write_whole


def write_png(path: Path, pixels: NDArray[np.uint8], texts: Mapping[str, str]) -> None:
    """Writes a picture, whole or not at all; equal arguments give equal bytes.

    Args:
        path: ends in .png.
        pixels: (H, W, 3), sRGB.
        texts: kept in the file under these names.

    Raises:
        OSError: the file cannot be written.
    """
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)  # UTF-8; the older kind of text knows Latin-1 only
    write_whole(path, partial(_save, pixels, info), _check)


def _save(pixels: NDArray[np.uint8], info: PngInfo, path: Path) -> None:
    Image.fromarray(pixels).save(path, format="PNG", pnginfo=info)


def _check(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()
