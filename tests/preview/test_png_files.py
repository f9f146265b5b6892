"""Generated pictures on disk: whole, the same bytes for the same picture, and telling how they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.preview.png_files import write_png

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
TEXTS = {"prompt": "катка 猫, a cat", "seed": "7"}


def test_pixels_and_texts_come_back(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", PIXELS, TEXTS)
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), PIXELS)
        assert {name: str(text) for name, text in picture.text.items()} == TEXTS  # type: ignore[attr-defined]
    write_png(tmp_path / "b.png", PIXELS, TEXTS)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    """What stands there stays as it is, and no temporary file is left."""
    write_png(tmp_path / "a.png", PIXELS, TEXTS)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(TypeError):
        write_png(tmp_path / "a.png", PIXELS[..., :2].astype(np.float64), {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before
