"""Pictures read as weights: brightness as the numbers say, no ripples, transparent parts black."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.images import load_mask

WHOLE = (0, 0, 64, 64)
GREYS = np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(64, 0)  # 64 x 64


@pytest.mark.parametrize("kind", ["L", "RGB", "P", "LA", "I;16", "webp", "bmp"])
def test_every_kind_of_file_keeps_its_greys(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"m.{kind if kind in ('webp', 'bmp') else 'png'}"
    if kind == "I;16":
        Image.fromarray(GREYS.astype(np.uint16) * 257).save(path)
    else:
        picture = Image.fromarray(GREYS)
        options = {"lossless": True} if kind == "webp" else {}
        (picture if kind in ("webp", "bmp") else picture.convert(kind)).save(path, **options)
    assert np.array_equal(load_mask(path, Size(64, 64), WHOLE), GREYS)


def test_a_colour_profile_does_not_change_a_weight(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    Image.fromarray(GREYS).convert("RGB").save(tmp_path / "m.png", icc_profile=profile)
    assert np.array_equal(load_mask(tmp_path / "m.png", Size(64, 64), WHOLE), GREYS)


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 2), 255, dtype=np.uint8)
    pixels[:, :32, 1] = 0
    Image.fromarray(pixels, "LA").save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png", Size(64, 64), WHOLE)
    assert (mask[:, :32] == 0).all() and (mask[:, 32:] == 255).all()


@pytest.mark.parametrize("side", [16, 40, 64, 100, 333, 1200])
def test_scaling_lets_nothing_through_far_from_an_edge(tmp_path: Path, side: int) -> None:
    """Lanczos would: it answers an edge with ripples."""
    pixels = np.full((side, side), 255, dtype=np.uint8)
    pixels[:, : side // 2] = 0
    Image.fromarray(pixels).save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png", Size(64, 64), WHOLE)
    reach = 2 + 64 // side
    edge = round(64 * (side // 2) / side)
    assert (mask[:, : edge - reach] == 0).all() and (mask[:, edge + reach :] == 255).all()


def test_large_pictures_are_read_in_strips(tmp_path: Path) -> None:
    pixels = np.zeros((600, 600), dtype=np.uint8)
    pixels[300:] = 255
    Image.fromarray(pixels).save(tmp_path / "m.png")
    whole = load_mask(tmp_path / "m.png", Size(64, 64), WHOLE)
    stripped = load_mask(tmp_path / "m.png", Size(64, 64), WHOLE, whole_pixels=1000)
    assert np.abs(whole.astype(int) - stripped).max() <= 2 and (stripped[:28] == 0).all()


def test_the_part_that_is_asked_for_is_cut_out(tmp_path: Path) -> None:
    Image.fromarray(GREYS).save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png", Size(64, 64), (8, 16, 24, 48)), GREYS[16:48, 8:24])


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"m\.png"):
        load_mask(tmp_path / "m.png", Size(64, 64), WHOLE)
