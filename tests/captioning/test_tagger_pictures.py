"""Pictures as taggers take them, against an independent way to make them with OpenCV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from library.captioning import tagger_pictures
from library.captioning.tagger_pictures import Upright, fitting_size, load_upright, on_white_square, with_repeated_edges
from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.cutting import scaled_crop
from library.data.pictures.images import load_pixels, read_size
from tests.data.pictures.odd_pictures import write_odd_folder

Picture = NDArray[np.uint8]


def white_square(path: Path, side: int) -> Picture:
    """As public WD scripts do: first the square, then its size."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    height, width = picture.shape[:2]
    longest = max(height, width)
    top, left = (longest - height) // 2, (longest - width) // 2
    square = cv2.copyMakeBorder(
        picture, top, longest - height - top, left, longest - width - left, cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    method = cv2.INTER_AREA if longest > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(square, (side, side), interpolation=method), np.uint8)


def repeated_edges(path: Path, side: int) -> Picture:
    """As DeepDanbooru does: scaled by areas, moved to the middle (by half pixels, too), edges repeated."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    scale = side / max(picture.shape[:2])
    height, width = (round(length * scale) for length in picture.shape[:2])
    scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    move = np.array([[1, 0, (side - width) / 2], [0, 1, (side - height) / 2]], np.float32)
    moved = cv2.warpAffine(scaled, move, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


WAYS = [(on_white_square, white_square), (with_repeated_edges, repeated_edges)]


@pytest.mark.parametrize(("fill", "public"), WAYS)
def test_photographs_look_as_public_code_makes_them(
    photos: Path, fill: Callable[[Picture, int], Picture], public: Callable[[Path, int], Picture]
) -> None:
    for name in ("astronaut.jpg", "cat.jpg", "gravel.jpg", "coins.png", "galaxies.webp"):
        for side in (96, 448):
            ours, theirs = fill(load_upright(photos / name, side), side), public(photos / name, side)
            assert ours.shape == (side, side, 3) and ours.dtype == np.uint8
            apart = np.abs(ours.astype(int) - theirs.astype(int))
            shifted = np.abs(np.roll(ours, 1, axis=(0, 1)).astype(int) - theirs.astype(int))
            swapped = np.abs(ours[..., ::-1].astype(int) - theirs.astype(int))
            # of 255; the filters differ, which shows in gravel, and nothing else does
            assert apart.mean() < (4.2 if name == "gravel.jpg" else 2.4), (name, side)
            assert shifted.mean() > 1.5 * apart.mean()
            if name in ("astronaut.jpg", "cat.jpg"):  # coloured
                assert swapped.mean() > 2 * apart.mean()


def drawn(pixels: Picture) -> Upright:
    return Upright(Image.fromarray(pixels), (0, 0, pixels.shape[1], pixels.shape[0]), Size(*pixels.shape[1::-1]))


def test_borders() -> None:
    pixels = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(2, 6, 3)
    white, edges = on_white_square(drawn(pixels), 6), with_repeated_edges(drawn(pixels), 6)
    assert np.array_equal(white[2:4], pixels) and np.array_equal(edges[2:4], pixels)
    assert (white[[0, 1, 4, 5]] == 255).all()
    assert (edges[:2] == pixels[0]).all() and (edges[4:] == pixels[1]).all()


def test_edges_between_pixels() -> None:
    black = drawn(np.zeros((50, 100, 3), np.uint8))
    column = on_white_square(black, 10)[:, 5, 0]  # rows 2.5 to 7.5
    assert column.tolist() == [255, 255, 128, 0, 0, 0, 0, 128, 255, 255]
    sides = on_white_square(drawn(np.zeros((100, 50, 3), np.uint8)), 10)[5, :, 0]
    assert sides.tolist() == column.tolist()
    ramp = np.repeat(np.arange(0, 100, 20, dtype=np.uint8), 3).reshape(5, 1, 3)
    moved = with_repeated_edges(drawn(ramp), 5)[:, 2, 0]  # the scaled picture is one wide, so that nothing else moves
    assert moved.tolist() == [0, 20, 40, 60, 80]
    two_of_three = with_repeated_edges(drawn(np.array([[[0] * 3] * 3, [[100] * 3] * 3], np.uint8)), 3)
    assert two_of_three[:, 1, 0].tolist() == [0, 50, 100]


@pytest.mark.parametrize("size", [(5000, 2), (2, 5000), (1, 1), (3, 96), (96, 95), (97, 3)])
def test_odd_shapes_fill_the_square(size: tuple[int, int]) -> None:
    dark = drawn(np.full((size[1], size[0], 3), 20, np.uint8))
    white, edges = on_white_square(dark, 96), with_repeated_edges(dark, 96)
    assert white.shape == edges.shape == (96, 96, 3)
    assert (edges == 20).all()
    covered = (255 - white[..., 0].astype(float)).sum() / 235
    assert covered == pytest.approx(96 * 96 * min(size) / max(size), rel=0.15)


def test_pictures_are_those_that_training_reads(photos: Path, tmp_path: Path) -> None:
    odd = [tmp_path / name for name in write_odd_folder(tmp_path)]
    paths = [path for path in (*photos.iterdir(), *odd) if path.suffix not in (".txt", ".md")]
    read = 0
    for path in paths:
        try:
            resized = fitting_size(read_size(path), 40)
            expected = load_pixels(path, resized, (0, 0, *resized))
        except UserError as error:
            with pytest.raises(UserError) as caught:
                load_upright(path, 40)
            assert caught.value.problems == error.problems
            continue
        found = load_upright(path, 40)
        assert found.size == read_size(path)
        assert np.array_equal(scaled_crop(found.image, found.box, resized, (0, 0, *resized)), expected), path.name
        read += 1
    assert 30 < read < len(paths)


def test_orientation_and_transparency(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = (255, 0, 0)  # left half red, right half black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = on_white_square(load_upright(tmp_path / "turned.png", 40), 40)
    assert turned[5, 20].tolist() == [255, 0, 0] and turned[35, 20].tolist() == [0, 0, 0]
    assert (turned[:, [0, 9, 30, 39]] == 255).all()
    hidden = Image.new("RGBA", (30, 30), (0, 0, 255, 0))  # blue, but seen through
    hidden.save(tmp_path / "hidden.png")
    assert (on_white_square(load_upright(tmp_path / "hidden.png", 30), 30) == 255).all()


def test_a_large_jpeg_is_decoded_at_half_size(tmp_path: Path) -> None:
    noise = Image.effect_noise((1500, 2000), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(tmp_path / "large.jpg", exif=exif)
    found = load_upright(tmp_path / "large.jpg", 448)
    assert (found.size, found.image.size) == ((2000, 1500), (1000, 750))


def test_huge_pictures_are_read_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((600, 401), 90).convert("RGB").save(tmp_path / "huge.png")
    small = on_white_square(load_upright(tmp_path / "huge.png", 64), 64)
    monkeypatch.setattr(tagger_pictures, "WHOLE_PIXELS", 1000)
    found = load_upright(tmp_path / "huge.png", 64)
    assert (found.size, found.image.size) == ((600, 401), (150, 101))
    assert np.abs(on_white_square(found, 64).astype(int) - small).mean() < 2


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((4000, 3000), (448, 336)), ((10, 20), (224, 448)), ((5000, 2), (448, 1)), ((448, 448), (448, 448))],
)
def test_fitting_sizes(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fitting_size(Size(*size), 448) == Size(*fitted)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        load_upright(tmp_path / "broken.jpg", 64)
