"""Pictures: listing, checking, and pixels that do not depend on how the file stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.images import check_image, list_images, load_pixels, read_size, to_tensor
from tests.data.data_helpers import save_picture

# How a stored picture must be turned to be seen upright, by EXIF orientation.
UNDO = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def whole(path: Path) -> np.ndarray:
    size = read_size(path)
    return load_pixels(path, size, (0, 0, *size))


def test_lists_accepted_types_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.JPEG", "d.webp", "e.bmp", "._a.jpg", "notes.txt", "f.gif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == ["a.jpg", "b.PNG", "c.JPEG", "d.webp", "e.bmp"]


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "bmp"])
def test_every_accepted_type_reads(tmp_path: Path, ending: str) -> None:
    path = save_picture(tmp_path / f"a.{ending}", (60, 40))
    assert check_image(path) is None
    assert read_size(path) == Size(60, 40)
    assert whole(path).shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_orientation_mark_does_not_change_what_is_trained(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = Image.open(save_picture(tmp_path / "plain.png", (48, 32), seed=3))
    turn = UNDO[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"marked.{ending}"
    stored.save(path, exif=exif, quality=100)
    assert check_image(path) is None
    assert read_size(path) == Size(48, 32)
    difference = np.abs(whole(path).astype(int) - np.asarray(upright).astype(int))
    assert difference.mean() < 3  # JPEG and WebP lose a little, a wrong turn far more


def test_broken_files_are_told_with_their_reason(tmp_path: Path) -> None:
    png, jpg = save_picture(tmp_path / "a.png", (300, 300)), save_picture(tmp_path / "a.jpg", (300, 300))
    for path in (png, jpg):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        assert "broken" in (check_image(path) or "")
    (tmp_path / "empty.png").touch()
    assert check_image(tmp_path / "empty.png") == "the file is empty"
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    assert check_image(tmp_path / "text.jpg") == "the content is not a picture"
    assert check_image(tmp_path / "none.jpg") == "the file does not exist"


def test_decompression_bomb_is_told(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20000, 10000)).save(path)
    assert "too many pixels" in (check_image(path) or "")


def test_unreadable_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match=r"text\.jpg"):
        load_pixels(tmp_path / "text.jpg", Size(8, 8), (0, 0, 8, 8))
    with pytest.raises(UserError, match=r"text\.jpg"):
        read_size(tmp_path / "text.jpg")


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "solid.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (whole(tmp_path / "clear.png") == 255).all()
    assert (whole(tmp_path / "palette.png") == 255).all()
    assert (whole(tmp_path / "solid.png") == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGB", "RGBA"])
def test_every_colour_mode_reads(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(path)
    assert check_image(path) is None
    assert (whole(path) >= 250).all() and whole(path).dtype == np.uint8


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert (whole(tmp_path / "grey.png") == 128).all()


def test_crop_takes_the_part_asked_for(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (load_pixels(tmp_path / "a.png", Size(40, 20), (10, 0, 30, 20)) == 200).all()


def test_large_jpeg_keeps_its_content(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "large.jpg", (1600, 1200), seed=5)
    small = load_pixels(path, Size(80, 60), (0, 0, 80, 60))
    reference = np.asarray(Image.open(path).resize((80, 60), Image.Resampling.LANCZOS))
    assert np.abs(small.astype(int) - reference.astype(int)).max() <= 4


def test_tensor_runs_from_minus_one_to_one() -> None:
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    tensor = to_tensor(pixels)
    assert tensor.shape == (3, 4, 6) and tensor.dtype == torch.float32
    assert (tensor[0] == 1).all() and (tensor[1:] == -1).all()
