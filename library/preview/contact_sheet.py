"""A sheet of small pictures that grows with a training: a row for each time, a column for each prompt.

The sheet itself tells what is on it, so that a run that is resumed goes on with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from library.core.sizes import Size
from library.preview.png_files import write_png
from library.preview.prompts import SamplePrompt

MOST_ROWS = 24
LONGEST_SIDE = 256  # of a small picture
_WIDEST = 8192  # of the sheet without its margin: with many prompts the pictures become smaller
_MARGIN, _HEAD, _GAP = 96, 34, 6  # pixels: left of the rows, above the columns, between pictures
_PAPER, _INK = (255, 255, 255), (0, 0, 0)
_FONT_SIZE = 13
_TEXT_NAME = "rows"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class _Sheet:
    """A sheet in memory: the steps of its rows, rising, and the pixels of each row."""

    steps: tuple[int, ...]
    rows: tuple[Image.Image, ...]


def add_row(
    path: Path, prompts: Sequence[SamplePrompt], step: int, pictures: Sequence[Pixels | None], goes_on: bool
) -> None:
    """Adds a row below the others; of too many rows one goes where they stand closest, never the first or the last.

    Args:
        path: the sheet, a PNG file.
        prompts: of the columns.
        step: updates done; rows of this one and of later ones are of a run that was left, and go.
        pictures: (H, W, 3) sRGB for each prompt, None where there is none.
        goes_on: whether what stands at `path` belongs to this run; a sheet of other prompts never does.

    Raises:
        OSError: the sheet cannot be written.
    """
    before = _read(path, prompts) if goes_on else _Sheet((), ())
    kept = [(at, row) for at, row in zip(before.steps, before.rows, strict=True) if at < step]
    kept.append((step, _draw_row(prompts, step, pictures)))
    if len(kept) > MOST_ROWS:
        del kept[_most_crowded([at for at, _ in kept])]
    sheet = _Sheet(tuple(at for at, _ in kept), tuple(row for _, row in kept))
    write_png(path, np.asarray(_draw(prompts, sheet)), {_TEXT_NAME: json.dumps(_told(prompts, sheet.steps))})


def _most_crowded(steps: Sequence[int]) -> int:
    """The row that is missed least: its neighbours are nearest to each other."""
    return min(range(1, len(steps) - 1), key=lambda row: steps[row + 1] - steps[row - 1])


def _told(prompts: Sequence[SamplePrompt], steps: Sequence[int]) -> dict[str, Any]:
    columns = [[p.prompt, p.negative_prompt, str(p.size), p.seed, p.scale, p.steps, p.sampler] for p in prompts]
    return {"steps": list(steps), "columns": columns}


def _read(path: Path, prompts: Sequence[SamplePrompt]) -> _Sheet:
    """The sheet of earlier times; empty where there is none, or none of these prompts that can be read."""
    try:
        with Image.open(path) as picture:
            sheet = picture.convert("RGB")
            told = json.loads(str(picture.info[_TEXT_NAME]))
        steps = tuple(int(step) for step in told["steps"])
        width, height = _extent(prompts, len(steps))
        if told != _told(prompts, steps) or sheet.size != (width, height):
            return _Sheet((), ())
    except (OSError, ValueError, KeyError, TypeError):
        return _Sheet((), ())
    tops = [_HEAD + number * (_row_height(prompts) + _GAP) for number in range(len(steps))]
    return _Sheet(steps, tuple(sheet.crop((0, top, width, top + _row_height(prompts))) for top in tops))


def _extent(prompts: Sequence[SamplePrompt], rows: int) -> tuple[int, int]:
    """Width and height of a sheet of so many rows."""
    width = _MARGIN + sum(_small(prompt.size, prompts).width + _GAP for prompt in prompts)
    return width, _HEAD + rows * (_row_height(prompts) + _GAP)


def _row_height(prompts: Sequence[SamplePrompt]) -> int:
    return max(_small(prompt.size, prompts).height for prompt in prompts)


def _small(size: Size, prompts: Sequence[SamplePrompt]) -> Size:
    """The size of a picture on the sheet; pictures are never enlarged."""
    longest = min(LONGEST_SIDE, max(1, _WIDEST // len(prompts)))
    scale = min(1.0, longest / max(size))
    return Size(max(1, round(size.width * scale)), max(1, round(size.height * scale)))


def _draw_row(prompts: Sequence[SamplePrompt], step: int, pictures: Sequence[Pixels | None]) -> Image.Image:
    row = Image.new("RGB", (_extent(prompts, 1)[0], _row_height(prompts)), _PAPER)
    ImageDraw.Draw(row).text((_GAP, _GAP), f"step\n{step}", fill=_INK, font=_font())
    left = _MARGIN
    for prompt, pixels in zip(prompts, pictures, strict=True):
        small = _small(prompt.size, prompts)
        if pixels is not None:
            row.paste(Image.fromarray(pixels).resize(small, Image.Resampling.LANCZOS), (left, 0))
        left += small.width + _GAP
    return row


def _draw(prompts: Sequence[SamplePrompt], sheet: _Sheet) -> Image.Image:
    page = Image.new("RGB", _extent(prompts, len(sheet.rows)), _PAPER)
    pen, left = ImageDraw.Draw(page), _MARGIN
    for number, prompt in enumerate(prompts, 1):
        width = _small(prompt.size, prompts).width
        pen.text((left, _GAP), _shortened(f"{number:02d} {prompt.prompt}", width, pen), fill=_INK, font=_font())
        left += width + _GAP
    for number, row in enumerate(sheet.rows):
        page.paste(row, (0, _HEAD + number * (row.height + _GAP)))
    return page


def _shortened(text: str, width: int, pen: ImageDraw.ImageDraw) -> str:
    """As much of a text as fits into one line of a width in pixels."""
    text = " ".join(text.split())[:width]  # no character is narrower than a pixel
    while text and pen.textlength(text, font=_font()) > width:
        text = text[:-1]
    return text


def _font() -> Any:
    """Pillow's own; characters that it lacks become boxes."""
    return ImageFont.load_default(_FONT_SIZE)
