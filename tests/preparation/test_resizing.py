"""library/preparation/resizing.py, copies_plan.py: sizes, what is kept of a picture, restarts, what is told early."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.images import load_picture, load_pixels
from library.options.preparation import INTERPOLATIONS, ResizeOptions, parse_resolutions
from library.preparation.copies_plan import plan_copies
from library.preparation.resizing import (
    BESIDE,
    BESIDE_DIFFERS,
    BESIDE_STAYED,
    OWN_SIZE,
    STAYED,
    WHITENED,
    WRITTEN,
    Copied,
    Resizing,
    cut_to_steps,
    make_copies,
    size_within,
)
from tests.data.data_helpers import save_picture

SMALL = (Size(96, 96),)


def copy(source: Path, target: Path, how: Resizing, recursive: bool = False, beside: bool = False) -> Copied:
    options = ResizeOptions(str(source), str(target), recursive=recursive, copy_associated_files=beside)
    return make_copies(plan_copies(options), how, threads=2)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told_of(source: Path, target: Path, recursive: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        plan_copies(ResizeOptions(str(source), str(target), recursive=recursive))
    return str(caught.value)


def test_sizes_keep_their_area_and_proportions() -> None:
    rng = np.random.default_rng(3)
    for _ in range(2000):
        size = Size(*(int(side) for side in rng.integers(1, 9000, 2)))
        resolution = Size(*(int(side) for side in rng.integers(32, 2000, 2)))
        found = size_within(size, resolution)
        assert found.area <= max(resolution.area, max(found)) and found.width <= size.width
        if size.area <= resolution.area:
            assert found == size
        elif min(found) > 1:
            scale = math.sqrt(resolution.area / size.area)
            assert 0 <= size.width * scale - found.width < 1.001 and 0 <= size.height * scale - found.height < 1.001
    assert size_within(Size(2000, 2000), Size(512, 512)) == (512, 512)
    assert size_within(Size(1, 9_000_000), Size(512, 512)).width == 1


def test_steps_cut_the_centre() -> None:
    assert cut_to_steps(Size(101, 64), 8) == (2, 0, 98, 64)
    assert cut_to_steps(Size(7, 64), 8)[2] == 3 and cut_to_steps(Size(55, 33), 1) == (0, 0, 55, 33)


def test_resolutions_are_read_as_guides_write_them() -> None:
    assert parse_resolutions("512x512, 384X256") == (Size(512, 512), Size(384, 256))
    for wrong in ("512", "512x", "512x0", "512x512,", "512x512x512", "-1x5", "64x64,64x64", "６４x64"):
        with pytest.raises(ValueError):
            parse_resolutions(wrong)


def test_photographs_in_two_resolutions(photos: Path, tmp_path: Path) -> None:
    found = copy(photos, tmp_path / "out", Resizing((Size(128, 128), Size(64, 96)), divisible_by=8))
    names = [path for path in photos.iterdir() if path.suffix in (".jpg", ".png", ".webp")]
    assert found.counts[WRITTEN] == 2 * len(names) and not found.failed
    expected = {f"{path.stem}+{size}.jpg" for path in names for size in ("128x128", "64x96")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    for path in names:
        own = Image.open(path).size
        for area, size in ((128 * 128, "128x128"), (64 * 96, "64x96")):
            with Image.open(tmp_path / "out" / f"{path.stem}+{size}.jpg") as made:
                assert made.width * made.height <= area and made.width % 8 == made.height % 8 == 0
                assert made.width * made.height > 0.8 * area
                assert abs(made.width / made.height / (own[0] / own[1]) - 1) < 0.2
                assert {(across, down) for _, across, down, _ in made.layer} == {(1, 1)}  # 4:4:4
                assert max(made.quantization[0]) == 1  # quality 100
                seen = np.asarray(made.convert("RGB"), dtype=float)
            scaled = size_within(Size(*own), parse_resolutions(size)[0])
            expected_pixels = load_pixels(path, scaled, cut_to_steps(scaled, 8))
            assert seen.shape == expected_pixels.shape and np.abs(seen - expected_pixels).mean() < 6


def test_small_pictures_are_not_enlarged(tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "small.png", (80, 60), 1)
    save_picture(tmp_path / "in" / "large.png", (300, 200), 2)
    found = copy(tmp_path / "in", tmp_path / "out", Resizing(SMALL, as_png=True))
    assert found.counts[OWN_SIZE] == 1 and found.counts[WRITTEN] == 2
    made = Image.open(tmp_path / "out" / "small+96x96.png")
    assert made.size == (80, 60)
    assert np.array_equal(np.asarray(made), np.asarray(Image.open(tmp_path / "in" / "small.png")))
    assert Image.open(tmp_path / "out" / "large+96x96.png").size == (117, 78)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_shows_the_picture(photos: Path, tmp_path: Path, interpolation: str) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "in")
    copy(tmp_path / "in", tmp_path / "out", Resizing(SMALL, interpolation=interpolation, as_png=True))
    made = np.asarray(Image.open(tmp_path / "out" / "cat+96x96.png"), dtype=float)
    expected = load_pixels(photos / "cat.jpg", Size(117, 78), (0, 0, 117, 78)).astype(float)
    assert made.shape == expected.shape
    assert np.abs(made - expected).mean() < (12 if interpolation == "nearest" else 5)
    if interpolation == "nearest":
        colours = {tuple(pixel) for pixel in np.asarray(Image.open(photos / "cat.jpg")).reshape(-1, 3)}
        assert {tuple(pixel) for pixel in made.astype(np.uint8).reshape(-1, 3)} <= colours


def test_the_cut_is_that_of_the_whole_copy(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "in")
    copy(tmp_path / "in", tmp_path / "whole", Resizing(SMALL, as_png=True))
    copy(tmp_path / "in", tmp_path / "cut", Resizing(SMALL, divisible_by=32, as_png=True))
    whole, cut = (np.asarray(Image.open(tmp_path / name / "cat+96x96.png")) for name in ("whole", "cut"))
    assert whole.shape == (78, 117, 3) and cut.shape == (64, 96, 3)
    assert np.array_equal(cut, whole[7:71, 10:106])


def test_a_turned_photograph_gives_the_copy_of_the_upright_one(photos: Path, tmp_path: Path) -> None:
    picture = Image.open(photos / "astronaut.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen turned clockwise
    for folder in ("turned", "upright"):
        (tmp_path / folder).mkdir()
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned" / "a.png", exif=exif)
    picture.save(tmp_path / "upright" / "a.png")
    how = Resizing((Size(96, 96), Size(64, 64)), divisible_by=4)
    copy(tmp_path / "turned", tmp_path / "out1", how)
    copy(tmp_path / "upright", tmp_path / "out2", how)
    assert files_in(tmp_path / "out1") == files_in(tmp_path / "out2") and len(files_in(tmp_path / "out1")) == 2


@pytest.mark.parametrize("as_png", [False, True])
def test_metadata_tell_who_but_not_where(tmp_path: Path, as_png: bool) -> None:
    exif = Image.Exif()
    exif[0x013B] = "Mira 猫".encode()
    exif[0x010F] = "Camera & Sons"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 59.123)
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0at home"
    path = save_picture(tmp_path / "in" / "a.jpg", (200, 200))
    Image.open(path).save(path, exif=exif, comment=b"at home")
    assert 0x8825 in Image.open(path).getexif()
    copy(tmp_path / "in", tmp_path / "out", Resizing(SMALL, as_png=as_png))
    made = next((tmp_path / "out").iterdir())
    kept = Image.open(made).getexif()
    assert dict(kept) == {0x013B: "Mira 猫".encode().decode("latin-1"), 0x010F: "Camera & Sons"}
    assert b"at home" not in made.read_bytes()


def test_transparency_stays_in_png_and_is_white_in_jpeg(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    corners = Image.fromarray(rng.integers(0, 256, (4, 4, 4), dtype=np.uint8), "RGBA")
    (tmp_path / "in").mkdir()
    corners.resize((150, 140), Image.Resampling.BILINEAR).save(tmp_path / "in" / "a.png")
    size = size_within(Size(150, 140), SMALL[0])
    expected = load_picture(tmp_path / "in" / "a.png", size, (0, 0, *size))
    assert expected.alpha is not None
    found = copy(tmp_path / "in", tmp_path / "png", Resizing(SMALL, as_png=True))
    assert found.counts[WHITENED] == 0
    made = load_picture(tmp_path / "png" / "a+96x96.png", size, (0, 0, *size))
    assert made.alpha is not None and np.abs(made.alpha.astype(int) - expected.alpha).max() <= 4
    assert np.abs(made.pixels.astype(int) - expected.pixels).max() <= 6
    found = copy(tmp_path / "in", tmp_path / "jpg", Resizing(SMALL))
    assert found.counts[WHITENED] == 1
    white = np.asarray(Image.open(tmp_path / "jpg" / "a+96x96.jpg"), dtype=int)
    assert np.abs(white - expected.pixels).mean() < 2


def test_folders_below_japanese_names_and_captions(tmp_path: Path) -> None:
    source = tmp_path / "絵"
    save_picture(source / "10_猫" / "写真 一.png", (200, 120), 1)
    save_picture(source / "上.WEBP", (200, 120), 2)
    for name, text in (("写真 一.txt", "猫"), ("写真 一.caption", "cat"), ("写真 一.npz", "x"), ("写真 二.txt", "x")):
        (source / "10_猫" / name).write_text(text, encoding="utf-8")
    found = copy(source, tmp_path / "out", Resizing(SMALL), recursive=True, beside=True)
    made = files_in(tmp_path / "out")
    stem = "10_猫/写真 一+96x96"
    assert set(made) == {"上+96x96.jpg", f"{stem}.jpg", f"{stem}.txt", f"{stem}.caption"}
    assert made[f"{stem}.txt"].decode() == "猫" and found.counts[BESIDE] == 2
    (tmp_path / "out" / "10_猫" / "写真 一+96x96.txt").write_text("my own words", encoding="utf-8")
    again = copy(source, tmp_path / "out", Resizing(SMALL), recursive=True, beside=True)
    assert (again.counts[BESIDE_DIFFERS], again.counts[BESIDE_STAYED], again.counts[STAYED]) == (1, 1, 2)
    assert files_in(tmp_path / "out")[f"{stem}.txt"] == b"my own words"
    copy(source, tmp_path / "out", Resizing(SMALL, overwrite=True), recursive=True, beside=True)
    assert files_in(tmp_path / "out") == made


def test_a_second_run_keeps_whole_copies_and_mends_others(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    how = Resizing((Size(96, 96), Size(64, 64)))
    copy(photos, out, how)
    clean = files_in(out)
    victim, gone, kept = (out / f"{stem}+96x96.jpg" for stem in ("cat", "coffee", "rocket"))
    victim.write_bytes(victim.read_bytes()[:500])
    gone.unlink()
    os.utime(kept, ns=(1, 1))
    found = copy(photos, out, how)
    assert (found.counts[WRITTEN], found.counts[STAYED]) == (2, len(clean) - 2)
    assert files_in(out) == clean and kept.stat().st_mtime_ns == 1
    found = copy(photos, out, Resizing(how.resolutions, divisible_by=16))
    told = [problem for problem in found.failed if problem.where == str(victim)]
    assert len(told) == 1 and "112x64" in told[0].what and "--overwrite" in told[0].fix
    assert files_in(out) == clean
    assert not copy(photos, out, Resizing(how.resolutions, divisible_by=16, overwrite=True)).failed


def test_one_bad_picture_stops_nothing(tmp_path: Path) -> None:
    for number in range(6):
        save_picture(tmp_path / "in" / f"{number}.png", (200, 150), number)
    (tmp_path / "in" / "2.png").write_bytes((tmp_path / "in" / "2.png").read_bytes()[:400])
    (tmp_path / "in" / "4.png").write_bytes(b"<!doctype html>")
    save_picture(tmp_path / "in" / "thin.png", (4, 900), 1)
    (tmp_path / "in" / "2.txt").write_text("no picture, no caption", encoding="utf-8")
    found = copy(tmp_path / "in", tmp_path / "out", Resizing(SMALL, divisible_by=8), beside=True)
    assert [Path(problem.where).name for problem in found.failed] == ["2.png", "4.png", "thin.png"]
    assert "--divisible_by" in found.failed[2].fix
    assert set(files_in(tmp_path / "out")) == {f"{number}+96x96.jpg" for number in (0, 1, 3, 5)}


def test_a_side_that_jpeg_cannot_hold_is_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "long.png", (70_000, 2), 1)
    found = copy(tmp_path / "in", tmp_path / "out", Resizing((Size(512, 512),)))
    assert len(found.failed) == 1 and "--save_as_png" in found.failed[0].fix
    assert not copy(tmp_path / "in", tmp_path / "out", Resizing((Size(512, 512),), as_png=True)).failed


def test_huge_pictures_are_read_within_bounds(tmp_path: Path) -> None:
    picture = np.zeros((4500, 5000), dtype=np.uint8)
    picture[:2250, 2500:] = 200
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in" / "a.png", compress_level=1)
    copy(tmp_path / "in", tmp_path / "out", Resizing((Size(100, 90),), as_png=True))
    made = np.asarray(Image.open(tmp_path / "out" / "a+100x90.png"))[..., 0]
    assert made.shape == (90, 100) and made[20, 80] == 200 and made[70, 80] == made[20, 20] == 0


def test_what_is_wrong_is_told_before_anything_is_written(tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png")
    save_picture(tmp_path / "in" / "A.jpg")
    save_picture(tmp_path / "in" / "below" / "b.png")
    told = told_of(tmp_path / "in", tmp_path / "in" / ".." / "in")
    assert "SRC and DST are one folder" in told and "A.jpg and a.png would have the same name" in told
    (tmp_path / "in" / "A.jpg").unlink()
    assert "DST lies in SRC" in told_of(tmp_path / "in", tmp_path / "in" / "out", recursive=True)
    assert "SRC lies in DST" in told_of(tmp_path / "in", tmp_path, recursive=True)
    assert "does not exist" in told_of(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "file").write_text("")
    assert "this is a file" in told_of(tmp_path / "in", tmp_path / "file")
    assert "a file; a folder of pictures" in told_of(tmp_path / "file", tmp_path / "out")
    (tmp_path / "above" / "in").mkdir(parents=True)
    assert "give --recursive" in told_of(tmp_path / "above", tmp_path / "out")
    assert "accepted are .png" in told_of(tmp_path / "above" / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert copy(tmp_path / "in", tmp_path / "in" / "out", Resizing(SMALL)).counts[WRITTEN] == 1  # nothing is read there


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png", (200, 200))
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in", target_is_directory=True)
    assert copy(tmp_path / "in", tmp_path / "out", Resizing(SMALL), recursive=True).counts[WRITTEN] == 1


def test_a_place_that_cannot_be_written_to_ends_the_run(tmp_path: Path) -> None:
    save_picture(tmp_path / "in" / "a.png", (200, 200))
    (tmp_path / "out" / "a+96x96.jpg").mkdir(parents=True)
    with pytest.raises(UserError, match="no copy can be written") as caught:
        copy(tmp_path / "in", tmp_path / "out", Resizing(SMALL))
    assert caught.value.had_begun and not [path for path in (tmp_path / "out").iterdir() if path.is_file()]
