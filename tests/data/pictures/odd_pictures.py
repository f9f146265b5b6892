"""A folder of odd files, one oddity each, as they turn up in real datasets; for tests of all that reads a dataset."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from tests.data.pictures.raw_files import chunk, exif, header, raw_png, screen_profile

CAPTION = "a dog"


class Verdict(Enum):
    """What is to become of a file in the folder."""

    REFUSED = "the picture is refused, with a reason"
    NOTED = "the picture is trained, with a note"
    FINE = "the picture is trained"
    UNREAD = "a picture of a kind that is not read: not trained, but told"
    SKIPPED = "not looked at"
    CAPTION_REFUSED = "the picture is good, its caption is refused with a reason"
    CAPTION_MISSING = "the picture is good and has no caption"


@dataclass(frozen=True)
class Expected:
    """The verdict, and a piece that the reason or note must contain (empty: there is none)."""

    verdict: Verdict
    word: str = ""


def write_odd_folder(folder: Path) -> dict[str, Expected]:
    """Writes the files; good pictures have a caption file, refused ones none.

    Kinds that this system or this user cannot have (pipes, unreadable files, AVIF) are left out where they cannot.

    Returns:
        What is expected of each file that is a picture by its name, or a folder or link named like one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, Expected] = {}
    contents = {**_broken(), **_foreign(), **_too_large(), **_noted(), **_fine(), **_unread()}
    for name, (content, verdict, word) in contents.items():
        (folder / name).write_bytes(content)
        expected[name] = Expected(verdict, word)
    expected |= _odd_entries(folder)
    for name, entry in expected.items():
        if entry.verdict in (Verdict.NOTED, Verdict.FINE):
            (folder / name).with_suffix(".txt").write_text(CAPTION, encoding="utf-8")
    return expected | _captions(folder)


_Files = dict[str, tuple[bytes, Verdict, str]]


def _picture(size: tuple[int, int] = (64, 48), mode: str = "RGB", noise: bool = False) -> Image.Image:
    rng = np.random.default_rng(size[0])
    small = rng.integers(0, 256, (size[1], size[0], 3) if noise else (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BILINEAR).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _damaged(content: bytes, at: float) -> bytes:
    """One byte turned over."""
    place = int(len(content) * at)
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def _broken() -> _Files:
    noise = _picture(noise=True)
    whole = {kind: encoded(noise, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")}
    jpeg = whole["JPEG"]
    pixels = chunk(b"IDAT", zlib.compress(bytes(10)))
    files = {
        "empty.png": (b"", "empty"),
        "zeros.jpg": (bytes(5000), "zero bytes only"),
        "cut_off.png": (whole["PNG"][: len(whole["PNG"]) // 2], "ends before"),
        "cut_off.jpg": (jpeg[: len(jpeg) // 2], "ends before"),
        "cut_off.webp": (whole["WEBP"][: len(whole["WEBP"]) // 2], "ends before"),
        "cut_off.bmp": (whole["BMP"][: len(whole["BMP"]) // 2], "ends before"),
        "zero_end.jpg": (jpeg[: len(jpeg) // 2] + bytes(len(jpeg) // 2), "are zero"),
        "one_byte_wrong.png": (_damaged(whole["PNG"], 0.5), "pixels are damaged"),
        "wrong_checksum.png": (_damaged(whole["PNG"], 20 / len(whole["PNG"])), "checksum"),
        "header_only.png": (header(64, 48), "ends before"),
        "no_size.png": (header(0, 48) + pixels + chunk(b"IEND", b""), "no width or height"),
        "unknown_depth.bmp": (whole["BMP"][:28] + b"\x07\0" + whole["BMP"][30:], "pixel depth"),
        "no_decoder.webp": (b"RIFF\x44\0\0\0WEBPVP8 " + bytes(60), "decoder"),
    }
    return {name: (content, Verdict.REFUSED, word) for name, (content, word) in files.items()}


def _foreign() -> _Files:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", b"")
    noise = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8).tobytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    files = {
        "web_page.jpg": (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        "pointer.png": (pointer, "git lfs pull"),
        "archive.png": (archive.getvalue(), "zip archive"),
        "answer.jpg": (b'{"error": "rate limit"}', "JSON"),
        "words.jpg": (b"hello\n", "text"),
        "noise.png": (noise, "not a picture"),
        "really_gif.png": (encoded(_picture(), "GIF"), "GIF"),
        "really_tiff.jpg": (encoded(_picture(), "TIFF"), "TIFF"),
        "really_heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80), "HEIC"),
        "really_photoshop.png": (b"8BPS\0\x01" + bytes(80), "Photoshop"),
        "really_pdf.png": (b"%PDF-1.7\n", "PDF"),
        "really_video.jpg": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(80), "video"),
        "really_drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    }
    return {name: (content, Verdict.REFUSED, word) for name, (content, word) in files.items()}


def _too_large() -> _Files:
    pixels = chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20)))
    files = {
        "bomb.png": (header(50_000, 50_000) + pixels, "too many pixels"),
        "long_side.png": (header(300_000, 1) + pixels, "a side is too long"),
        "text_bomb.png": (header(64, 48) + text + pixels, "metadata"),
    }
    return {name: (content, Verdict.REFUSED, word) for name, (content, word) in files.items()}


def _noted() -> _Files:
    frames = [_picture((64, 48), "RGB"), _picture((64, 48), "RGB").transpose(Image.Transpose.ROTATE_180)]
    clear = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    files = {
        "really_png.jpg": (encoded(_picture(), "PNG"), "PNG"),
        "animated.webp": (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated"),
        "animated.png": (encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), "animated"),
        "broken_profile.png": (encoded(_picture(), "PNG", icc_profile=b"no profile"), "profile is broken"),
        "print_without_profile.jpg": (encoded(_picture(mode="CMYK"), "JPEG"), "CMYK"),
        "wholly_clear.png": (encoded(clear, "PNG"), "transparent everywhere"),
    }
    return {name: (content, Verdict.NOTED, word) for name, (content, word) in files.items()}


def _fine() -> _Files:
    picture = _picture()
    grey = np.linspace(0, 65535, 64 * 48).astype(">u2").reshape(48, 64)
    files = {
        "sideways.jpg": encoded(picture, "JPEG", exif=b"Exif\0\0" + exif(6)),
        "nonsense_orientation.jpg": encoded(picture, "JPEG", exif=b"Exif\0\0" + exif(77)),
        "broken_exif.jpg": encoded(picture, "JPEG", exif=b"Exif\0\0" + exif(1)[:12] + b"\xff" * 30),
        "animated_in_name.png": raw_png(np.zeros((48, 192), np.uint8), 64, 8, 2, before=chunk(b"acTL", bytes(8))),
        "alpha.png": encoded(_picture(mode="RGBA"), "PNG"),
        "palette_clear.png": encoded(picture.quantize(16), "PNG", transparency=3),
        "grey.jpg": encoded(_picture(mode="L"), "JPEG"),
        "one_bit.png": encoded(_picture(mode="1"), "PNG"),
        "sixteen_bit.png": raw_png(grey.view(np.uint8).reshape(48, 128), 64, 16, 0),
        "display_p3.png": encoded(picture, "PNG", icc_profile=screen_profile()),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "tiny.png": encoded(_picture((1, 1)), "PNG"),
        "thin.png": encoded(_picture((1, 5000)), "PNG"),
        "犬 é\u0301 🐶.png": encoded(picture, "PNG"),
        f"{'long' * 50}.png": encoded(picture, "PNG"),
        "CAPITALS.PNG": encoded(picture, "PNG"),
    }
    if features.check("avif"):
        files["modern.avif"] = encoded(picture, "AVIF")
    return {name: (content, Verdict.FINE, "") for name, content in files.items()}


def _unread() -> _Files:
    files = {
        "picture.gif": (encoded(_picture(), "GIF"), "convert"),
        "scan.tiff": (encoded(_picture(), "TIFF"), "convert"),
        "phone.HEIC": (b"\0\0\0\x18ftypheic", "convert"),
        "layers.psd": (b"8BPS", "painting program"),
        "camera.nef": (b"II*\0", "raw"),
        "saved.jfif": (encoded(_picture(), "JPEG"), "rename"),
    }
    return {name: (content, Verdict.UNREAD, word) for name, (content, word) in files.items()}


def _odd_entries(folder: Path) -> dict[str, Expected]:
    """Folders, links and other things named like pictures."""
    (folder / "folder.png").mkdir(exist_ok=True)
    (folder / "._fork.jpg").write_bytes(b"\0\x05\x16\x07")
    entries = {"folder.png": Expected(Verdict.SKIPPED), "._fork.jpg": Expected(Verdict.SKIPPED)}
    if os.name != "nt":
        (folder / "link.png").symlink_to("alpha.png")
        (folder / "dangling.png").symlink_to("nowhere.png")
        (folder / "circle.png").symlink_to("circle.png")
        os.mkfifo(folder / "pipe.png")
        entries["link.png"] = Expected(Verdict.FINE)
        entries["dangling.png"] = Expected(Verdict.REFUSED, "link to a file that does not exist")
        entries["circle.png"] = Expected(Verdict.REFUSED, "back to itself")
        entries["pipe.png"] = Expected(Verdict.REFUSED, "no regular file")
    locked = folder / "locked.png"
    locked.write_bytes(encoded(_picture(), "PNG"))
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # the administrator may read everything
        locked.unlink()
    else:
        entries["locked.png"] = Expected(Verdict.REFUSED, "no right")
    return entries


def _captions(folder: Path) -> dict[str, Expected]:
    """Good pictures beside which the caption is odd."""
    refused, missing, fine = Verdict.CAPTION_REFUSED, Verdict.CAPTION_MISSING, Verdict.FINE
    captions: dict[str, tuple[dict[str, bytes], Expected]] = {
        "caption_twice.png": ({".txt": b"tags", ".caption": b"a sentence"}, Expected(refused, "both stand beside")),
        "caption_utf16.png": ({".txt": CAPTION.encode("utf-16")}, Expected(refused, "not UTF-8")),
        "caption_utf16_unmarked.png": ({".txt": CAPTION.encode("utf-16-le")}, Expected(refused, "zero bytes")),
        "caption_latin1.png": ({".txt": b"caf\xe9"}, Expected(refused, "not UTF-8")),
        "caption_zeros.png": ({".txt": bytes(100)}, Expected(refused, "zero bytes")),
        "caption_empty.png": ({".txt": b""}, Expected(missing)),
        "caption_blank.png": ({".txt": b" \r\n"}, Expected(missing)),
        "caption_none.png": ({}, Expected(missing)),
        "caption_other_ending.png": ({".text": CAPTION.encode()}, Expected(missing)),
        "caption_marked.png": ({".txt": b"\xef\xbb\xbf" + CAPTION.encode()}, Expected(fine)),
        "caption_windows.png": ({".txt": CAPTION.encode() + b"\r\nsecond\r\n"}, Expected(fine)),
    }
    for name, (files, _) in captions.items():
        (folder / name).write_bytes(encoded(_picture(), "PNG"))
        for ending, content in files.items():
            (folder / name).with_suffix(ending).write_bytes(content)
    (folder / "caption_orphan.txt").write_text(CAPTION, encoding="utf-8")
    return {name: expected for name, (_, expected) in captions.items()}
