"""The sheet of small pictures: rows grow, a resumed run goes on with it, and it stays within bounds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.core.sizes import Size
from library.preview.contact_sheet import LONGEST_SIDE, MOST_ROWS, add_row
from library.preview.prompts import SamplePrompt

PROMPTS = (SamplePrompt("a cat", size=Size(64, 64)), SamplePrompt("猫 on a wall", size=Size(1024, 512), seed=3))
LEFT, TOP = 96, 34


def plain(prompt: SamplePrompt, shade: int) -> NDArray[np.uint8]:
    return np.full((prompt.size.height, prompt.size.width, 3), shade, np.uint8)


def add(path: Path, step: int, shade: int, goes_on: bool = True) -> None:
    add_row(path, PROMPTS, step, [plain(prompt, shade) for prompt in PROMPTS], goes_on)


def sheet_of(path: Path) -> tuple[list[int], NDArray[np.uint8]]:
    """The steps of its rows, and its pixels."""
    with Image.open(path) as picture:
        return json.loads(str(picture.info["rows"]))["steps"], np.asarray(picture.convert("RGB"))


def shades(pixels: NDArray[np.uint8], rows: int) -> list[tuple[int, int]]:
    """The middle of both pictures of each row."""
    height = LONGEST_SIDE // 2 + 6
    middles = [TOP + row * height + 30 for row in range(rows)]
    return [(int(pixels[y, LEFT + 30, 0]), int(pixels[y, LEFT + 64 + 6 + 128, 0])) for y in middles]


def test_rows_are_added_below_with_small_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sample" / "sheet.png"
    add(path, 0, 10, goes_on=False)
    first = sheet_of(path)[1]
    assert first.shape == (TOP + 128 + 6, LEFT + 64 + 6 + 256 + 6, 3)  # never enlarged, at most 256 pixels
    assert (first[:TOP, LEFT:] < 128).any() and (first[TOP:, :LEFT] < 128).any()  # headings of columns and rows
    add(path, 10, 20)
    add(path, 20, 30)
    steps, pixels = sheet_of(path)
    assert steps == [0, 10, 20] and shades(pixels, 3) == [(10, 10), (20, 20), (30, 30)]
    assert np.array_equal(pixels[: len(first)], first)  # what stands there is not touched


def test_a_picture_that_could_not_be_made_leaves_a_gap(tmp_path: Path) -> None:
    add_row(tmp_path / "sheet.png", PROMPTS, 1, [None, plain(PROMPTS[1], 40)], goes_on=False)
    assert shades(sheet_of(tmp_path / "sheet.png")[1], 1) == [(255, 40)]


def test_rows_of_steps_that_come_again_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    for step in (10, 20, 30):
        add(path, step, step)
    add(path, 20, 99)
    steps, pixels = sheet_of(path)
    assert steps == [10, 20] and shades(pixels, 2) == [(10, 10), (99, 99)]


def test_a_new_run_other_prompts_and_a_broken_sheet_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    add(path, 10, 10)
    add(path, 20, 20, goes_on=False)
    assert sheet_of(path)[0] == [20]
    changed = (PROMPTS[0], SamplePrompt("a dog", size=Size(1024, 512)))
    add_row(path, changed, 30, [plain(prompt, 5) for prompt in changed], goes_on=True)
    assert sheet_of(path)[0] == [30]
    path.write_bytes(path.read_bytes()[:200])
    add(path, 40, 40)
    assert sheet_of(path)[0] == [40]


def test_its_height_is_bounded_and_first_and_last_stay(tmp_path: Path) -> None:
    path, small = tmp_path / "sheet.png", (SamplePrompt("a", size=Size(64, 64)),)
    last = MOST_ROWS + 15
    for step in range(last + 1):
        add_row(path, small, step, [plain(small[0], step)], goes_on=step > 0)
    steps, pixels = sheet_of(path)
    assert len(steps) == MOST_ROWS and steps[0] == 0 and steps[-1] == last and steps == sorted(steps)
    assert max(after - before for before, after in pairwise(steps)) <= 8  # of less than two on average
    assert [int(pixels[TOP + row * 70 + 30, LEFT + 30, 0]) for row in range(MOST_ROWS)] == steps


def test_many_prompts_make_a_sheet_that_can_be_opened(tmp_path: Path) -> None:
    many = tuple(SamplePrompt(str(number), size=Size(512, 512)) for number in range(200))
    add_row(tmp_path / "sheet.png", many, 1, [plain(many[0], 7)] * 200, goes_on=False)
    assert sheet_of(tmp_path / "sheet.png")[1].shape[1] < 10_000
