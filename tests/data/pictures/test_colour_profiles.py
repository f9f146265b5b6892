"""Colours as they are meant to be seen: profiles to sRGB, print, and what is left alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from library.core.sizes import Size
from library.data.pictures.images import examine, load_picture
from tests.data.pictures.raw_files import DISPLAY_P3, SRGB, grey_profile, print_profile, screen_profile

COLOURS = np.random.default_rng(8).integers(40, 216, (12, 16, 3), dtype=np.uint8)


def pixels_of(path: Path) -> NDArray[np.int64]:
    size = examine(path).size
    assert size is not None
    return load_picture(path, size, (0, 0, *size)).pixels.astype(np.int64)


def save(path: Path, image: Image.Image, profile: bytes | None) -> Path:
    image.save(path, icc_profile=profile, quality=100, lossless=True)
    return path


def to_screen(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear light to sRGB. Source: IEC 61966-2-1."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_wide_colours_are_converted(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"a.{ending}", Image.fromarray(COLOURS), screen_profile(DISPLAY_P3))
    stored = np.asarray(Image.open(path).convert("RGB")) / 255
    linear = stored**2.2 @ np.array(DISPLAY_P3) @ np.linalg.inv(np.array(SRGB))
    expected = to_screen(linear)
    assert np.abs(expected - 255 * stored).max() > 20
    assert np.abs(pixels_of(path) - expected).max() <= 2
    assert examine(path).note is None


def test_profiles_of_srgb_change_no_bit(tmp_path: Path) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode in ("RGB", "RGBA", "L", "P"):
        image = Image.fromarray(COLOURS).convert(mode)
        with_profile = save(tmp_path / "a.png", image, own)
        without = save(tmp_path / "b.png", image, None)
        assert (pixels_of(with_profile) == pixels_of(without)).all()


def test_grey_with_a_profile(tmp_path: Path) -> None:
    """Grey is converted by a profile of grey, and by one of a screen, which many programs give it."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = Image.fromarray(levels)
    linear = save(tmp_path / "linear.png", grey, grey_profile(1.0))
    assert np.abs(pixels_of(linear)[..., 0] - to_screen(levels / 255)).max() <= 1
    screen = save(tmp_path / "screen.png", grey, screen_profile(SRGB, gamma=1.0))
    assert np.abs(pixels_of(screen)[..., 1] - to_screen(levels / 255)).max() <= 2
    assert examine(linear).note is None and examine(screen).note is None


def test_transparent_parts_are_white_after_the_conversion(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (12, 8))))
    found = pixels_of(save(tmp_path / "a.png", image, screen_profile(DISPLAY_P3)))
    assert (found[:, ::2] == 255).all()
    opaque = pixels_of(save(tmp_path / "b.png", image.convert("RGB"), screen_profile(DISPLAY_P3)))
    assert (found[:, 1::2] == opaque[:, 1::2]).all()


def test_print_is_converted_by_its_profile(tmp_path: Path) -> None:
    """Cyan is a grey of L* 50 in this profile, black ink is black: nothing like Pillow's own conversion."""
    profile = print_profile({(0, 0, 0, 0): 100, (1, 0, 0, 0): 50})
    for ink, grey in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 118), ((0, 0, 0, 255), 0)):
        path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), ink), profile)
        assert np.abs(pixels_of(path) - grey).max() <= 2
        assert examine(path).note is None


def test_print_without_profile_is_pillows_conversion_and_told(tmp_path: Path) -> None:
    for profile in (None, b"nonsense", screen_profile()):
        path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 0)), profile)
        assert (pixels_of(path) == (0, 255, 255)).all()
        assert "approximate" in (examine(path).note or "")


def test_ycck_is_read_with_adobes_inversion(tmp_path: Path) -> None:
    """A CMYK file whose mark says luma, chroma and black. Source: Adobe Technical Note 5116, 18; BT.601."""
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), (90, 150, 120, 60)).save(file, "JPEG", quality=100)
    content = file.getvalue()
    transform = content.index(b"Adobe") + 11
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:transform] + b"\x02" + content[transform + 1 :])
    luma, blue, red = 255 - 90, 255 - 150 - 128, 255 - 120 - 128  # inks are stored inverted
    inks = np.array([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue])
    expected = (255 - inks) * (255 - 60) / 255
    assert np.abs(pixels_of(path) - expected).max() <= 2


@pytest.mark.parametrize("profile", [b"nonsense", b"\0" * 200, screen_profile()[:150], screen_profile()[:300]])
def test_broken_profile_is_ignored_and_told(tmp_path: Path, profile: bytes) -> None:
    for ending in ("png", "webp"):
        path = save(tmp_path / f"a.{ending}", Image.fromarray(COLOURS), profile)
        assert "profile is broken" in (examine(path).note or "")
        assert (pixels_of(path) == COLOURS).all()


def test_profile_of_another_kind_is_ignored_and_told(tmp_path: Path) -> None:
    for profile in (grey_profile(), print_profile({})):
        path = save(tmp_path / "a.png", Image.fromarray(COLOURS), profile)
        assert "another kind" in (examine(path).note or "")
        assert (pixels_of(path) == COLOURS).all()


def test_scaling_and_cutting_come_after_the_conversion(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (40, 40), (200, 100, 50)), screen_profile())
    whole = pixels_of(path)[0, 0]
    cut = load_picture(path, Size(20, 20), (4, 4, 12, 20)).pixels
    assert cut.shape == (16, 8, 3) and (cut == whole).all()
