"""Picture files byte by byte, for what no program at hand writes: every kind of PNG, colour profiles, EXIF."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's number for a kind of colour
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))  # r, g, b in XYZ, D50
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int, bits: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))


def filtered(rows: NDArray[np.uint8], pixel_bytes: int) -> bytes:
    """Rows of a PNG (n, bytes) behind its filters, all five in turn. Source: PNG 3, section 9."""
    out = []
    above = np.zeros(rows.shape[1], dtype=np.int64)
    for number, row in enumerate(rows.astype(np.int64)):
        left = np.concatenate([np.zeros(pixel_bytes, dtype=np.int64), row])[: len(row)]
        corner = np.concatenate([np.zeros(pixel_bytes, dtype=np.int64), above])[: len(row)]
        to_left, to_above = np.abs(above - corner), np.abs(left - corner)
        to_corner = np.abs(left + above - 2 * corner)
        paeth = np.where(
            (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
        )
        guess = (np.zeros_like(row), left, above, (left + above) // 2, paeth)[number % 5]
        out.append(bytes([number % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes())
        above = row
    return b"".join(out)


def raw_png(
    rows: NDArray[np.uint8], width: int, bits: int, colour: int, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of any kind: rows (height, bytes of a row) as stored, further chunks before and after the pixels."""
    packed = zlib.compress(filtered(rows, max(1, CHANNELS[colour] * bits // 8)))
    pieces = b"".join(chunk(b"IDAT", packed[at : at + 300]) for at in range(0, len(packed), 300))
    return header(width, len(rows), bits, colour) + before + pieces + after + chunk(b"IEND", b"")


def exif(orientation: int, order: str = ">") -> bytes:
    """EXIF with an orientation and nothing else."""
    mark = b"MM\0*" if order == ">" else b"II*\0"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return mark + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def screen_profile(primaries: tuple[tuple[float, ...], ...] = DISPLAY_P3, gamma: float = 2.2) -> bytes:
    """A colour profile of a screen: three primaries and a power law. Source: ICC.1:2001-04, 6.3.4.2."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"cprt": b"text" + bytes(8)}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, primaries), strict=True))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float = 1.0) -> bytes:
    """A colour profile of grey with a power law."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": white, b"cprt": b"text" + bytes(8), b"kTRC": curve})


def print_profile(lightness: Mapping[tuple[int, int, int, int], int]) -> bytes:
    """A colour profile of a printer that only knows greys.

    Args:
        lightness: L* in percent for whole amounts (0 or 1) of cyan, magenta, yellow and black; 0 where not given.
    """
    corners = [tuple(int(bit) for bit in f"{number:04b}") for number in range(16)]
    table = b"".join(bytes([round(lightness.get(corner, 0) * 2.55), 128, 128]) for corner in corners)  # type: ignore[call-overload]
    ramp = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    return _profile(
        b"prtr", b"CMYK", b"Lab ", {b"wtpt": white, b"cprt": b"text" + bytes(8), b"A2B0": lut, b"A2B1": lut}
    )


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    size = start + len(body)
    head = struct.pack(">I4xI", size, 0x02400000) + kind + space + connection + struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
