"""A page of pictures in rows with few words, as one picture: what was taught, what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

WIDTH = 1200
_PAGE: Colour = (244, 243, 240)
_CARD: Colour = (255, 255, 255)
_LINE: Colour = (224, 221, 214)
_INK: Colour = (34, 33, 31)
_SOFT: Colour = (110, 106, 99)
_ACCENT: Colour = (31, 122, 67)
_MARGIN, _PADDING, _GAP, _ROUND = 28, 24, 12, 14  # pixels
_LABEL = 176  # width of what stands left of a row
_LARGEST_TILE = 144
_TITLE, _LEAD, _HEAD, _TEXT, _SMALL = 36, 20, 24, 20, 16  # font sizes
_COLOURS = 256


@dataclass(frozen=True)
class Row:
    """Pictures beside one another.

    Attributes:
        label, note: what they are, and a word more; a section whose rows have no labels has wider pictures.
        pictures: (height, width, 3) sRGB each, all of one size.
        is_result: marks the row that one should look at.
    """

    label: str
    note: str
    pictures: Sequence[Pixels]
    is_result: bool = False


@dataclass(frozen=True)
class Section:
    """Rows below a heading; a column of pictures has a heading of its own where `columns` are given."""

    title: str
    note: str
    rows: Sequence[Row]
    columns: Sequence[str] = ()

    @property
    def label_width(self) -> int:
        """Pixels left of the pictures."""
        return _LABEL if any(row.label for row in self.rows) else 0

    @property
    def tile(self) -> int:
        """The side of the square that a picture fits into, in pixels."""
        count = max(len(row.pictures) for row in self.rows)
        room = WIDTH - 2 * (_MARGIN + _PADDING) - self.label_width + _GAP
        return min(_LARGEST_TILE, room // count - _GAP)

    @property
    def height(self) -> int:
        """In pixels, without what stands between sections."""
        head = 2 * _PADDING + _HEAD + 10 + (_SMALL + 10 if self.note else 0)
        columns = 2 * (_SMALL + 4) + 6 if self.columns else 0
        return head + columns + len(self.rows) * (self.tile + _GAP) - _GAP


def draw_page(title: str, lead: str, sections: Sequence[Section], closing: str) -> Image.Image:
    """The page, `WIDTH` pixels wide, in few colours so that its file is small.

    Args:
        lead: a sentence below the title.
        closing: a sentence below everything.
    """
    head = _MARGIN + _TITLE + _LEAD + 34
    height = head + sum(section.height + _MARGIN for section in sections) + _TEXT + _MARGIN
    page = Image.new("RGB", (WIDTH, height), _PAGE)
    pen = ImageDraw.Draw(page)
    room = WIDTH - 2 * _MARGIN
    _write(pen, (_MARGIN, _MARGIN, room), title, _TITLE, _INK)
    _write(pen, (_MARGIN, _MARGIN + _TITLE + 12, room), lead, _LEAD, _SOFT)
    top = head
    for section in sections:
        _draw_section(page, section, top)
        top += section.height + _MARGIN
    _write(pen, (_MARGIN, top - 8, room), closing, _TEXT, _ACCENT)
    return page.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _draw_section(page: Image.Image, section: Section, top: int) -> None:
    pen = ImageDraw.Draw(page)
    box = (_MARGIN, top, WIDTH - _MARGIN - 1, top + section.height - 1)
    pen.rounded_rectangle(box, _ROUND, fill=_CARD, outline=_LINE)
    left, top = _MARGIN + _PADDING, top + _PADDING - 4
    room = WIDTH - 2 * left
    _write(pen, (left, top, room), section.title, _HEAD, _INK)
    top += _HEAD + 12
    if section.note:
        _write(pen, (left, top, room), section.note, _SMALL, _SOFT)
        top += _SMALL + 12
    first = left + section.label_width
    if section.columns:
        for number, words in enumerate(section.columns):
            _draw_heading(pen, words, first + number * (section.tile + _GAP), top, section.tile)
        top += 2 * (_SMALL + 4) + 6
    for row in section.rows:
        _draw_row(page, row, (left, first, top), section.tile)
        top += section.tile + _GAP


def _draw_heading(pen: ImageDraw.ImageDraw, words: str, left: int, top: int, width: int) -> None:
    """Up to two lines above a column, the lower one always filled."""
    lines = _broken(pen, words, width, _font(_SMALL))[:2]
    for number, line in enumerate(lines):
        down = top + (number + 2 - len(lines)) * (_SMALL + 4)
        pen.text((left + width / 2, down), line, fill=_SOFT, font=_font(_SMALL), anchor="ma")


def _draw_row(page: Image.Image, row: Row, place: tuple[int, int, int], tile: int) -> None:
    """A row at (left of the label, left of the pictures, top)."""
    left, first, top = place
    pen, room = ImageDraw.Draw(page), first - left - _GAP
    if row.label:
        lines = _broken(pen, row.note, room, _font(_SMALL))
        down = round(top + tile / 2 - (_TEXT + 6 + len(lines) * (_SMALL + 4)) / 2)
        _write(pen, (left, down, room), row.label, _TEXT, _ACCENT if row.is_result else _INK)
        for number, line in enumerate(lines):
            _write(pen, (left, down + _TEXT + 8 + number * (_SMALL + 4), room), line, _SMALL, _SOFT)
    for number, pixels in enumerate(row.pictures):
        picture = enlarged(pixels, tile)
        corner = (first + number * (tile + _GAP), top)
        page.paste(picture, (corner[0] + (tile - picture.width) // 2, corner[1] + (tile - picture.height) // 2))


def enlarged(pixels: Pixels, side: int) -> Image.Image:
    """A picture as large as it fits into a square."""
    picture = Image.fromarray(pixels)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _broken(pen: ImageDraw.ImageDraw, text: str, width: float, font: Any) -> list[str]:
    """The lines of a text that may be so many pixels wide; a single word may be wider."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int, int], text: str, size: int, colour: Colour) -> None:
    """Writes one line at (left, top, width): smaller where it is too long, and cut where that does not do."""
    left, top, width = place
    while size > _SMALL and pen.textlength(text, font=_font(size)) > width:
        size -= 1
    whole = text
    while text and pen.textlength(text, font=_font(size)) > width:
        whole = whole[:-1]
        text = f"{whole.rstrip()}..." if whole else ""
    pen.text((left, top), text, fill=colour, font=_font(size))


def _font(size: int) -> Any:
    """Pillow's own, so that no font file is needed."""
    return ImageFont.load_default(size)
