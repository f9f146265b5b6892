"""Huge pictures: read in strips without a difference, shrunk within a set memory, and within limits of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.core.sizes import Size
from library.data.pictures.images import examine, load_picture
from library.data.pictures.picture_files import ONE_AT_A_TIME, WHOLE_PIXELS
from tests.data.data_helpers import save_picture
from tests.data.pictures.raw_files import CHANNELS, chunk, exif, header, raw_png

BOUND = 512 << 20  # bytes above what the process takes before
MEASURE = """
import json, resource, sys
from pathlib import Path
from library.core.sizes import Size
from library.data.pictures.images import examine, load_picture
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
path, limit = Path(sys.argv[1]), int(sys.argv[2])
base = peak()
found = examine(path, limit)
examined = peak() - base
pixels = load_picture(path, Size(512, 384), (0, 0, 512, 384), limit).pixels
corners = [pixels[0, 0].tolist(), pixels[-1, -1].tolist()]
print(json.dumps([found.size, found.problem, examined, peak() - base, corners]))
"""
KINDS = [
    *[(bits, 0) for bits in (1, 2, 4, 8, 16)],
    *[(bits, 2) for bits in (8, 16)],
    *[(bits, 3) for bits in (1, 2, 4, 8)],
    *[(bits, colour) for colour in (4, 6) for bits in (8, 16)],
]


def stored_rows(width: int, height: int, bits: int, colour: int) -> np.ndarray:
    row_bytes = (width * CHANNELS[colour] * bits + 7) // 8
    rows = np.random.default_rng(bits + colour).integers(0, 256, (height, row_bytes), dtype=np.uint8)
    if bits == 16:  # the strips drop the low bytes, grey as a whole is rounded: the same where both bytes are the same
        rows[:, 1::2] = rows[:, ::2]
    return rows


def chunks_before(rows: np.ndarray, bits: int, colour: int, transparent: bool) -> bytes:
    rng = np.random.default_rng(1)
    before = chunk(b"PLTE", rng.integers(0, 256, 3 << bits, dtype=np.uint8).tobytes()) if colour == 3 else b""
    if transparent and colour == 3:
        return before + chunk(b"tRNS", rng.integers(0, 256, 1 << bits, dtype=np.uint8).tobytes())
    if transparent:  # the first pixel's colour
        first = rows[0, : CHANNELS[colour] * bits // 8 or 1]
        key = first.tobytes() if bits == 16 else b"".join(b"\0" + bytes([value >> (8 - bits)]) for value in first)
        return before + chunk(b"tRNS", key)
    return before


@pytest.mark.parametrize(("bits", "colour"), KINDS)
@pytest.mark.parametrize("transparent", [False, True])
def test_strips_are_the_picture_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, colour: int, transparent: bool
) -> None:
    """Every kind of PNG, all row filters, strips of a few rows: the same pixels and alpha as decoded at once."""
    monkeypatch.setattr("library.data.pictures.huge_pictures._STRIP_PIXELS", 100)
    for width, height in ((37, 23), (1, 9), (130, 11)):
        rows = stored_rows(width, height, bits, colour)
        before = chunks_before(rows, bits, colour, transparent and colour in (0, 2, 3))
        path = tmp_path / "a.png"
        path.write_bytes(raw_png(rows, width, bits, colour, before))
        size = Size(width, height)
        whole, strips = (load_picture(path, size, (0, 0, *size), limit) for limit in (10**6, 1))
        assert (whole.pixels == strips.pixels).all()
        assert (whole.alpha is None) == (strips.alpha is None) == (not examine(path, 1).has_alpha)
        assert whole.alpha is None or (whole.alpha == strips.alpha).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_changes_no_bit_while_shrinking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int
) -> None:
    """Sizes that the boxes do not divide: the rest lies on the same side of the seen picture, however it is stored."""
    monkeypatch.setattr("library.data.pictures.huge_pictures._STRIP_PIXELS", 1000)
    upright = np.random.default_rng(5).integers(0, 256, (101, 67, 4), dtype=np.uint8)
    Image.fromarray(upright).save(tmp_path / "plain.png")
    stored = Image.fromarray(upright)
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    assert (stored.size == (101, 67)) == (orientation >= 5)
    rows = np.asarray(stored).reshape(stored.height, -1)
    resized, crop = Size(11, 13), (1, 2, 10, 12)
    plain = load_picture(tmp_path / "plain.png", resized, crop, 1)
    mark = chunk(b"eXIf", exif(orientation))
    for before, after in ((mark, b""), (b"", mark)):
        (tmp_path / "marked.png").write_bytes(raw_png(rows, stored.width, 8, 6, before, after))
        assert examine(tmp_path / "marked.png", 1).size == Size(67, 101)
        marked = load_picture(tmp_path / "marked.png", resized, crop, 1)
        assert (plain.pixels == marked.pixels).all()
        assert plain.alpha is not None and (plain.alpha == marked.alpha).all()


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_shrinking_in_strips_looks_like_shrinking_at_once(tmp_path: Path, name: str) -> None:
    path = save_picture(tmp_path / name, (1603, 1207), seed=6)
    for resized in (Size(100, 75), Size(300, 20)):
        whole, strips = (load_picture(path, resized, (0, 0, *resized), limit).pixels for limit in (10**9, 1))
        assert np.abs(whole.astype(int) - strips.astype(int)).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bitmaps_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr("library.data.pictures.huge_pictures._STRIP_PIXELS", 100)
    noise = np.random.default_rng(7).integers(0, 256, (29, 43, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.bmp")
    size = Size(43, 29)
    whole, strips = (load_picture(tmp_path / "a.bmp", size, (0, 0, *size), limit).pixels for limit in (10**6, 1))
    assert (whole == strips).all()


@pytest.mark.parametrize("at", [0.3, 0.6, 0.99])
def test_damage_is_found_in_strips_too(tmp_path: Path, at: float) -> None:
    rows = stored_rows(60, 50, 8, 2)
    content = raw_png(rows, 60, 8, 2)
    bitmap = save_picture(tmp_path / "a.bmp", (60, 50))
    cut_bitmap = bitmap.read_bytes()
    place = content.index(b"IDAT") + 4 + int(at * 290)
    for name, damaged, reason in (
        ("cut.png", content[: int(len(content) * at)], "ends before"),
        ("cut.bmp", cut_bitmap[: int(len(cut_bitmap) * at)], "ends before"),
        ("wrong.png", content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :], "broken"),
    ):
        (tmp_path / name).write_bytes(damaged)
        found = examine(tmp_path / name, 1)
        assert found.size is None and reason in (found.problem or ""), name


def test_unknown_filter_is_found(tmp_path: Path) -> None:
    packed = zlib.compress((b"\x09" + bytes(30)) * 20)
    (tmp_path / "a.png").write_bytes(header(10, 20) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    assert "broken" in (examine(tmp_path / "a.png", 1).problem or "")
    assert "broken" in (examine(tmp_path / "a.png").problem or "")


def measure(path: Path, limit: int) -> tuple[object, object, int, int, list[list[int]]]:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(limit)], capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0 and run.stderr == "", run.stderr
    size, problem, examined, loaded, corners = json.loads(run.stdout)
    return size, problem, examined, loaded, corners


def write_png(path: Path, side: int) -> None:
    """Black above, red below, without ever holding the picture."""
    packer = zlib.compressobj(1)
    pieces = [packer.compress(b"\0" + bytes([y * 255 // (side - 1), 0, 0]) * side) for y in range(side)]
    data = b"".join(chunk(b"IDAT", piece) for piece in [*pieces, packer.flush()] if piece)
    path.write_bytes(header(side, side) + data + chunk(b"IEND", b""))


def write_jpeg(path: Path, side: int) -> None:
    levels = np.repeat(np.linspace(0, 255, side).astype(np.uint8)[:, None], side, axis=1)
    Image.fromarray(levels).save(path, quality=70)


@pytest.mark.skipif(os.name == "nt", reason="the system does not tell the peak this way")
@pytest.mark.parametrize(("ending", "write"), [("png", write_png), ("jpg", write_jpeg)])
def test_large_picture_takes_little_memory(tmp_path: Path, ending: str, write: Callable[[Path, int], None]) -> None:
    """36 megapixels, 144 MiB as Pillow holds them."""
    write(tmp_path / f"a.{ending}", 6000)
    size, problem, examined, loaded, corners = measure(tmp_path / f"a.{ending}", 1 << 20)
    assert problem is None and size == [6000, 6000]
    assert examined < 64 << 20 and loaded < 64 << 20
    assert corners[0][0] <= 2 and corners[1][0] >= 253


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the system does not tell the peak this way")
@pytest.mark.parametrize(("ending", "write"), [("png", write_png), ("jpg", write_jpeg)])
def test_twenty_thousand_squared_stays_within_the_bound(
    tmp_path: Path, ending: str, write: Callable[[Path, int], None]
) -> None:
    write(tmp_path / f"a.{ending}", 20_000)
    size, problem, examined, loaded, corners = measure(tmp_path / f"a.{ending}", WHOLE_PIXELS)
    assert problem is None and size == [20_000, 20_000]
    assert examined < BOUND and loaded < BOUND
    assert corners[0][0] <= 2 and corners[1][0] >= 253


def test_pictures_decoded_as_a_whole_wait_for_each_other(tmp_path: Path) -> None:
    """While one thread decodes a large WebP, another cannot; a small one is not held up."""
    large, small = save_picture(tmp_path / "large.webp", (300, 200)), save_picture(tmp_path / "small.webp", (20, 20))
    with ThreadPoolExecutor(1) as pool:
        with ONE_AT_A_TIME:
            waiting = pool.submit(examine, large, 20 * 20)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
        assert waiting.result(timeout=30).size == Size(300, 200)
        with ONE_AT_A_TIME:
            assert pool.submit(examine, small, 20 * 20).result(timeout=30).size == Size(20, 20)


def test_limits_are_told(tmp_path: Path) -> None:
    pixels = chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    for head, reason in (
        (header(40_000, 40_000), "more than the 1074 megapixels"),
        (header(200_001, 1), "a side is too long"),
        (header(30_000, 30_000, interlace=1), "interlaced PNG"),
        (header(30_000, 30_000), "ends before"),  # allowed, but nothing is there
    ):
        (tmp_path / "a.png").write_bytes(head + pixels)
        assert reason in (examine(tmp_path / "a.png").problem or "")
