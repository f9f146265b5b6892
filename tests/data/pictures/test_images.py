"""Pictures: listing, checking, and pixels that do not depend on how the file stores them."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.colour_profiles import plain
from library.data.pictures.images import (
    IMAGE_EXTENSIONS,
    check_image,
    examine,
    list_images,
    load_picture,
    load_pixels,
    other_pictures,
    read_size,
    to_tensor,
    why_not_read,
)
from library.data.pictures.picture_files import orientation_of
from library.data.pictures.picture_kinds import prefixed
from tests.data.data_helpers import save_picture
from tests.data.pictures.raw_files import chunk, exif, raw_png

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
    for name in ("b.PNG", "a.jpg", "c.JPEG", "d.webp", "e.bmp", "._a.jpg", "notes.txt", "f.gif", "g.TIF", ".h.gif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.gif").mkdir()
    assert list_images(tmp_path) == ["a.jpg", "b.PNG", "c.JPEG", "d.webp", "e.bmp"]
    assert other_pictures(tmp_path) == ["f.gif", "g.TIF"]


def test_kinds_that_need_a_package_are_read_or_named_with_it(tmp_path: Path) -> None:
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a")
    (tmp_path / "a.avif").write_bytes(b"x")
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp"} <= set(IMAGE_EXTENSIONS)
    for name in ("a.jxl", "a.avif"):
        assert (name in list_images(tmp_path)) == (name[1:] in IMAGE_EXTENSIONS) != (name in other_pictures(tmp_path))
    assert "pip install pillow-jxl-plugin" in why_not_read("a.jxl")


@pytest.mark.parametrize("ending", [ending[1:] for ending in IMAGE_EXTENSIONS if ending != ".jxl"])
def test_every_accepted_type_reads(tmp_path: Path, ending: str) -> None:
    path = save_picture(tmp_path / f"a.{ending}", (60, 40))
    assert check_image(path) is None
    assert read_size(path) == Size(60, 40)
    assert whole(path).shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", UNDO)
@pytest.mark.parametrize("ending", ["png", "webp"])
def test_orientation_mark_changes_no_bit(tmp_path: Path, orientation: int, ending: str) -> None:
    """The eight ways to store the same picture give the same pixels and the same alpha, whole and scaled and cut."""
    clear = np.random.default_rng(3).integers(0, 256, (32, 48, 4), dtype=np.uint8)
    upright = Image.fromarray(clear)
    turn = UNDO[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    upright.save(tmp_path / f"plain.{ending}", lossless=True, exact=True)
    path = tmp_path / f"marked.{ending}"
    stored.save(path, exif=exif(orientation), lossless=True, exact=True)
    assert read_size(path) == Size(48, 32) and examine(path).size == Size(48, 32)
    for resized, crop in (
        (Size(48, 32), (0, 0, 48, 32)),
        (Size(29, 21), (3, 2, 27, 18)),
        (Size(90, 70), (1, 5, 81, 69)),
    ):
        plain, marked = (load_picture(file, resized, crop) for file in (tmp_path / f"plain.{ending}", path))
        assert (plain.pixels == marked.pixels).all()
        assert plain.alpha is not None and marked.alpha is not None and (plain.alpha == marked.alpha).all()


@pytest.mark.parametrize("orientation", UNDO)
def test_jpeg_is_decoded_and_then_turned(tmp_path: Path, orientation: int) -> None:
    stored = Image.fromarray(np.random.default_rng(4).integers(0, 256, (33, 50, 3), dtype=np.uint8))
    path = tmp_path / "a.jpg"
    stored.save(path, exif=b"Exif\0\0" + exif(orientation))
    by_hand = Image.open(path).convert("RGB")
    undo = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(orientation, UNDO[orientation])
    upright = by_hand if undo is None else by_hand.transpose(undo)
    assert (whole(path) == np.asarray(upright)).all()


def test_orientation_is_found_wherever_programs_put_it(tmp_path: Path) -> None:
    rows = np.zeros((4, 18), dtype=np.uint8)
    hexadecimal = b"Raw profile type exif\0\nexif\n      26\n" + (b"Exif\0\0" + exif(6)).hex().encode() + b"\n"
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="6"/>'
    in_front, behind = (chunk(b"eXIf", exif(6, order)) for order in "<>")
    for before, after in (
        (in_front, b""),
        (b"", behind),
        (chunk(b"tEXt", hexadecimal), b""),
        (chunk(b"iTXt", xmp), b""),
        (chunk(b"eXIf", exif(6)) + chunk(b"iTXt", xmp.replace(b"6", b"1")), b""),
    ):
        path = tmp_path / "a.png"
        path.write_bytes(raw_png(rows, 6, 8, 2, before, after))
        assert read_size(path) == examine(path).size == Size(4, 6), (before, after)


@pytest.mark.parametrize(
    "damaged", [b"", b"MM\0*", exif(6)[:14], exif(0), exif(9), b"\xff" * 40, b"II*\0" + b"\xff" * 8]
)
def test_nonsense_for_an_orientation_is_upright(damaged: bytes) -> None:
    assert orientation_of({"exif": damaged}) == 1


def test_broken_files_are_told_with_their_reason(tmp_path: Path) -> None:
    png, jpg = save_picture(tmp_path / "a.png", (300, 300)), save_picture(tmp_path / "a.jpg", (300, 300))
    for path in (png, jpg):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        assert "ends before the picture does" in (check_image(path) or "")
    (tmp_path / "empty.png").touch()
    assert "the file is empty" in (check_image(tmp_path / "empty.png") or "")
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    assert "not a picture but text" in (check_image(tmp_path / "text.jpg") or "")
    assert check_image(tmp_path / "none.jpg") == "the file does not exist"
    assert check_image(tmp_path) == "it is a folder, not a file"
    assert "longer than the system allows" in (check_image(tmp_path / f"{'x' * 300}.png") or "")


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "1", "animated", "text", "WEBP", "BMP"])
def test_examination_and_loading_agree_on_damaged_files(tmp_path: Path, kind: str) -> None:
    """What the examination lets pass loads, and what it refuses does not: cut off or with a wrong byte anywhere."""
    rng = np.random.default_rng(11)
    image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    image = image.convert(kind) if kind in Image.MODES else image
    text = PngInfo()
    if kind == "text":
        text.add(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100)), after_idat=True)
    more = {"save_all": True, "append_images": [image.rotate(90)]} if kind == "animated" else {}
    form = kind if kind in ("WEBP", "BMP") else "PNG"
    image.save(tmp_path / "whole", form, pnginfo=text, **more)
    content = (tmp_path / "whole").read_bytes()
    path = tmp_path / f"a.{form.lower()}"
    verdicts = set()
    for number in range(60):
        at = int(rng.integers(8, len(content)))
        path.write_bytes(content[:at] if number % 2 else content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        is_good = examine(path).problem is None
        verdicts.add(is_good)
        try:
            load_picture(path, Size(8, 8), (0, 0, 8, 8))
            assert is_good, (number, at)
        except UserError as error:
            assert not is_good, (number, at, str(error))
    assert False in verdicts


def test_zeros_behind_the_end_of_a_jpeg_are_harmless(tmp_path: Path) -> None:
    content = save_picture(tmp_path / "a.jpg", (300, 300)).read_bytes()
    for filling in (5, 100, 70_000):
        (tmp_path / "a.jpg").write_bytes(content + bytes(filling))
        assert check_image(tmp_path / "a.jpg") is None
        (tmp_path / "a.jpg").write_bytes(content[:-200] + bytes(filling + 200))
        assert f"last {filling + 200} bytes" in (check_image(tmp_path / "a.jpg") or "")


@pytest.mark.skipif(os.name == "nt", reason="rights work otherwise there")
def test_file_without_right_to_read_is_told() -> None:
    """Also when the tests run as the administrator, who may read everything: for a moment they run as nobody."""
    with tempfile.TemporaryDirectory() as folder:
        path = save_picture(Path(folder) / "a.png")
        Path(folder).chmod(0o755)
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            found = examine(path)
        finally:
            os.seteuid(user)
    assert found.problem is not None and "no right to read" in found.problem


def test_long_paths_and_odd_names_read(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(12):
        folder = folder / ("long" * 40)
    path = save_picture(folder / "犬 é 🐶.png")
    assert len(str(path)) > 1900 and list_images(folder) == [path.name]
    assert examine(path).size == Size(64, 64)


def test_windows_paths_get_their_prefix_only_when_long() -> None:
    name = "\\x" * 130
    assert prefixed("C:\\a.png") == "C:\\a.png"
    assert prefixed("C:" + name) == "\\\\?\\C:" + name
    assert prefixed("\\\\server" + name) == "\\\\?\\UNC\\server" + name


def test_first_frame_of_an_animation_is_trained_and_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0))]
    for ending in ("webp", "png"):
        path = tmp_path / f"a.{ending}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert (whole(path) == (200, 0, 0)).all()
        assert "animated" in (examine(path).note or "")


def test_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    save_picture(tmp_path / "b.jpg").rename(tmp_path / "b.webp")
    for name, kind in (("a.jpg", "PNG"), ("b.webp", "JPEG")):
        found = examine(tmp_path / name)
        assert found.problem is None and f"content is {kind}" in (found.note or "")
        assert whole(tmp_path / name).shape == (64, 64, 3)
    assert examine(save_picture(tmp_path / "c.JPG")).note is None


def test_global_limit_of_pillow_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for ending in ("png", "jpg", "bmp"):
        assert check_image(save_picture(tmp_path / f"a.{ending}")) is None


def test_want_of_memory_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    path = save_picture(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.core, "new", exhausted)
    monkeypatch.setattr(Image.core, "fill", exhausted)
    assert "not enough memory" in (check_image(path) or "")


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


def test_alpha_is_kept_beside_the_pixels(tmp_path: Path) -> None:
    values = np.zeros((4, 6, 4), dtype=np.uint8)
    values[..., 0], values[..., 3] = 255, np.arange(24).reshape(4, 6) * 10
    Image.fromarray(values).save(tmp_path / "a.png")
    picture = load_picture(tmp_path / "a.png", Size(6, 4), (1, 1, 6, 4))
    alpha = values[1:, 1:, 3]
    assert picture.alpha is not None and (picture.alpha == alpha).all()
    assert np.abs(picture.pixels[..., 1].astype(int) - (255 - alpha)).max() <= 1  # red on white
    assert (picture.pixels[..., 0] == 255).all() and examine(tmp_path / "a.png").has_alpha


def test_opaque_files_have_no_alpha(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "webp", "bmp"):
        path = save_picture(tmp_path / f"a.{ending}")
        assert load_picture(path, Size(8, 8), (0, 0, 8, 8)).alpha is None and not examine(path).has_alpha


@pytest.mark.parametrize(
    ("bits", "colour", "stored", "key"),
    [
        (1, 0, bytes([0b01000000]), 1),
        (2, 0, bytes([0b00100000]), 2),
        (4, 0, bytes([0x05, 0x00]), 5),
        (8, 0, bytes([7, 9, 7]), 9),
        (16, 0, bytes([1, 2, 1, 3, 1, 2]), 0x0103),
        (8, 2, bytes([1, 2, 3, 4, 5, 6, 1, 2, 3]), (4, 5, 6)),
        (16, 2, bytes([1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0, 1, 0, 2, 0, 3, 0]), (0x400, 0x500, 0x600)),
        (8, 3, bytes([0, 1, 0]), b"\xff\x00"),
    ],
)
def test_transparent_colour_of_a_png(
    tmp_path: Path, bits: int, colour: int, stored: bytes, key: int | tuple[int, ...] | bytes
) -> None:
    """Three pixels, of which the middle one is transparent; the key is given in the depth of the file."""
    content = (
        key if isinstance(key, bytes) else struct.pack(f">{1 if isinstance(key, int) else 3}H", *np.atleast_1d(key))
    )
    before = (chunk(b"PLTE", bytes(6)) if colour == 3 else b"") + chunk(b"tRNS", content)
    path = tmp_path / "a.png"
    path.write_bytes(raw_png(np.frombuffer(stored, dtype=np.uint8)[None], 3, bits, colour, before))
    picture = load_picture(path, Size(3, 1), (0, 0, 3, 1))
    assert picture.alpha is not None and picture.alpha.tolist() == [[255, 0, 255]]
    assert (picture.pixels[0, 1] == 255).all() and (picture.pixels[0, 0] < 200).all()
    assert examine(path).has_alpha


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert (whole(tmp_path / "grey.png") == 128).all()


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bit_grey_in_either_order_of_bytes(order: str) -> None:
    levels = np.array([[0, 257, 32768, 65535]], dtype=order)
    mode = "I;16" if order == "<u2" else "I;16B"
    image = Image.frombytes(mode, (4, 1), levels.tobytes())
    assert np.asarray(plain(image)).tolist() == [[0, 1, 128, 255]]


def test_sixteen_bit_colour_keeps_its_high_bits(tmp_path: Path) -> None:
    samples = np.array([[0x00FF, 0x8000, 0xFFFF]], dtype=">u2")
    (tmp_path / "a.png").write_bytes(raw_png(samples.view(np.uint8), 1, 16, 2))
    assert np.abs(whole(tmp_path / "a.png")[0, 0].astype(int) - [0, 128, 255]).max() <= 1


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
