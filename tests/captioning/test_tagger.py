"""A tagger as the runner drives it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from library.captioning.describer import Describer
from library.captioning.tag_list import find_tagger
from library.captioning.tagger import Tagger, open_tagger
from library.core.errors import UserError
from library.options.captioning import TaggerOptions
from tests.captioning.tiny_tagger import WD_TAGS, Shape, make_deepdanbooru, make_wd_tagger, write_lines, write_model

SIDE = 64
NAMES = ("astronaut.jpg", "cat.jpg", "coins.png", "galaxies.webp", "rocket.jpg")


def opened(folder: Path, **options: Any) -> Tagger:
    return open_tagger(find_tagger(folder, "--model_dir", "take another"), TaggerOptions(**options))


def test_pictures_are_read_in_threads(photos: Path, tmp_path: Path) -> None:
    paths = [photos / name for name in NAMES] * 4
    for folder in (make_wd_tagger(tmp_path / "wd", size=SIDE), make_deepdanbooru(tmp_path / "dd", SIDE)):
        tagger: Describer = opened(folder)
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(tagger.read, paths))
        assert all(pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8 for pixels in together)
        assert all(np.array_equal(pixels, tagger.read(path)) for pixels, path in zip(together, paths, strict=True))
        texts = tagger.describe(together, paths)
        assert texts[:5] * 4 == texts and len(set(texts)) == 5


def test_the_two_families_fill_the_square_differently(photos: Path, tmp_path: Path) -> None:
    wd = opened(make_wd_tagger(tmp_path / "wd", size=SIDE)).read(photos / "cat.jpg")
    dd = opened(make_deepdanbooru(tmp_path / "dd", SIDE)).read(photos / "cat.jpg")
    assert (wd[:10] == 255).all() and (dd[:10] != 255).any()
    assert (dd[0] == dd[9]).all()


def test_pictures_without_numbers_are_all_named(tmp_path: Path) -> None:
    folder = make_wd_tagger(tmp_path, size=SIDE)
    shape = replace(Shape("input", "output", SIDE), blind_below=0.3)
    write_model(folder / "model.onnx", shape, len(WD_TAGS), 5)
    tagger = opened(folder)
    light, dark = np.full((SIDE, SIDE, 3), 200, np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
    with pytest.raises(UserError) as caught:
        tagger.describe([dark, light, dark], [Path("a"), Path("b"), Path("c")])
    assert [problem.where for problem in caught.value.problems] == ["a", "c"]
    assert "solo" in tagger.describe([light], [Path("b")])[0]


def test_why_a_text_is_empty(tmp_path: Path) -> None:
    folder = make_wd_tagger(tmp_path, size=SIDE)
    assert opened(folder).why_empty()[0] == "no tag that is wanted reaches the threshold of 0.35"
    found = opened(folder, general_threshold=0.5, character_threshold=0.85, undesired_tags="solo").why_empty()
    assert "0.5 (names of characters: 0.85)" in found[0] and found[1] == "give a lower --general_threshold"


def test_what_is_said_of_tags_that_read_as_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from library.core.log import start_logging

    folder = make_wd_tagger(tmp_path, size=SIDE)
    rows = (folder / "selected_tags.csv").read_text(encoding="utf-8").replace("outdoors", '"out,\x1b[31mdoors"')
    write_lines(folder / "selected_tags.csv", rows.splitlines())
    start_logging()
    opened(folder)
    said = capsys.readouterr().err
    assert "WD tagger with 21 tags" in said
    assert "or what stands between tags, will be read as several: out,\\x1b[31mdoors" in said
