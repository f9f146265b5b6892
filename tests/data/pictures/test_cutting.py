"""Small parts of large scaled pictures: the same pixels as cut out of the whole, for the price of the part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.core.sizes import Size
from library.data.pictures.cutting import Box, is_small_part, pixels_needed
from library.data.pictures.images import load_picture
from tests.data.data_helpers import save_picture
from tests.data.pictures.raw_files import chunk, exif, raw_png
from tests.data.pictures.test_huge_pictures import write_png

MEASURE = """
import json, resource, sys
from pathlib import Path
from library.core.sizes import Size
from library.data.pictures.images import load_picture
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
path, resized, crop, limit = Path(sys.argv[1]), *json.loads(sys.argv[2])
base = peak()
pixels = load_picture(path, Size(*resized), tuple(crop), limit).pixels
print(json.dumps([peak() - base, pixels.shape, pixels[0, 0].tolist(), pixels[-1, -1].tolist()]))
"""


def crops_of(resized: Size) -> list[Box]:
    """Small parts in the corners, at an edge and in the middle."""
    width, height = min(16, resized.width), min(16, resized.height)
    right, bottom = resized.width - width, resized.height - height
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2), (right // 3, 0)]
    return [(left, top, left + width, top + height) for left, top in places]


def assert_same_as_cut_from_the_whole(path: Path, resized: Size, limit: int) -> None:
    whole = load_picture(path, resized, (0, 0, *resized), limit)
    for crop in crops_of(resized):
        assert is_small_part(resized, crop)
        part, (left, top, right, bottom) = load_picture(path, resized, crop, limit), crop
        difference = whole.pixels[top:bottom, left:right].astype(int) - part.pixels
        assert np.abs(difference).max() <= 1 and np.count_nonzero(difference) <= difference.size // 100
        assert (part.alpha is None) == (whole.alpha is None)
        if part.alpha is not None and whole.alpha is not None:
            assert np.abs(whole.alpha[top:bottom, left:right].astype(int) - part.alpha).max() <= 1


@pytest.mark.parametrize("limit", [10**9, 1])
@pytest.mark.parametrize(
    "resized", [Size(241, 163), Size(120, 80), Size(97, 66), Size(500, 311), Size(40, 900)], ids=str
)
@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.jpg", "a.webp"])
def test_a_part_is_that_of_the_whole(tmp_path: Path, name: str, resized: Size, limit: int) -> None:
    assert_same_as_cut_from_the_whole(save_picture(tmp_path / name, (241, 163), seed=3), resized, limit)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("limit", [10**9, 1])
def test_a_part_of_a_turned_and_transparent_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int, limit: int
) -> None:
    monkeypatch.setattr("library.data.pictures.huge_pictures._STRIP_PIXELS", 1000)
    stored = np.random.default_rng(5).integers(0, 256, (201, 167, 4), dtype=np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(stored.reshape(201, -1), 167, 8, 6, chunk(b"eXIf", exif(orientation))))
    upright = Size(167, 201) if orientation < 5 else Size(201, 167)
    for resized in (upright, Size(71, 67)):
        assert_same_as_cut_from_the_whole(path, resized, limit)


def test_of_an_ordinary_crop_everything_is_scaled_as_ever(tmp_path: Path) -> None:
    path, resized, crop = save_picture(tmp_path / "a.png", (300, 200), seed=4), Size(96, 64), (16, 0, 80, 64)
    assert not is_small_part(resized, crop)
    assert pixels_needed(Size(300, 200), (0, 0, 300, 200), resized, crop) == (0, 0, 300, 200)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB").resize(resized, Image.Resampling.LANCZOS).crop(crop))
    assert np.array_equal(load_picture(path, resized, crop).pixels, expected)


def measured(
    path: Path, resized: tuple[int, int], crop: Box, limit: int
) -> tuple[int, list[int], list[int], list[int]]:
    words = [sys.executable, "-c", MEASURE, str(path), json.dumps([resized, crop, limit])]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    peak, shape, first, last = json.loads(run.stdout)
    return peak, shape, first, last


@pytest.mark.skipif(os.name == "nt", reason="the system does not tell the peak this way")
def test_an_extreme_shape_takes_little_memory(tmp_path: Path) -> None:
    """2 x 20,000 scaled to cover 256 pixels is 256 x 2,560,000: two gigabytes."""
    shades = np.repeat(np.linspace(0, 255, 20_000).astype(np.uint8)[:, None], 2, axis=1)
    Image.fromarray(shades).convert("RGB").save(tmp_path / "a.png")
    middle = (0, 1_279_488, 256, 1_280_512)
    peak, shape, first, last = measured(tmp_path / "a.png", (256, 2_560_000), middle, 1 << 24)
    assert peak < 32 << 20 and shape == [1024, 256, 3]
    assert first in ([127] * 3, [128] * 3) and last in ([127] * 3, [128] * 3)


@pytest.mark.skipif(os.name == "nt", reason="the system does not tell the peak this way")
def test_a_face_in_a_huge_picture_takes_little_memory(tmp_path: Path) -> None:
    """36 megapixels, of which 256 x 256 are wanted as they are: 144 MiB as Pillow holds the whole."""
    write_png(tmp_path / "a.png", 6000)
    peak, shape, first, last = measured(tmp_path / "a.png", (6000, 6000), (3000, 5000, 3256, 5256), 1 << 20)
    assert peak < 32 << 20 and shape == [256, 256, 3]
    assert first == [5000 * 255 // 5999, 0, 0] and last == [5255 * 255 // 5999, 0, 0]
