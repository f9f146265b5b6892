"""What two pictures are compared by: a thumbnail, and hashes of it that say which pictures may be alike.

The hash is the DCT hash ("pHash") of Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010,
3.2.1: the signs of the lowest 8 x 8 cosine frequencies of the brightness against their median; the mean brightness is
left out, so 63 bits say something. Ours is taken from several windows of a picture, so that a copy with a little cut
off at any side agrees with one of them.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.images import load_pixels

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Codes = NDArray[np.uint64]
Span = tuple[float, float]

THUMBNAIL = 64  # pixels of both sides: proportions are compared apart from it
FLAT = 1.5  # of 255: a standard deviation below this is no picture of anything
_CELLS, _FREQUENCIES = 32, 8
_WHOLE, _LATER, _SOONER, _INNER, _INMOST = (0.0, 1.0), (0.05, 1.0), (0.0, 0.95), (0.025, 0.975), (0.05, 0.95)
# Parts of a picture, as spans of its width and of its height; the whole comes first.
WINDOWS: tuple[tuple[Span, Span], ...] = (
    *((across, down) for across in (_WHOLE, _LATER, _SOONER) for down in (_WHOLE, _LATER, _SOONER)),
    (_INNER, _INNER),
    (_INMOST, _INMOST),
)


def thumbnail_of(path: Path) -> Pixels:
    """The whole picture as uint8 (64, 64, 3), sRGB, upright, on white, whatever its proportions.

    Raises:
        UserError: it is no readable picture; it is named.
    """
    return load_pixels(path, Size(THUMBNAIL, THUMBNAIL), (0, 0, THUMBNAIL, THUMBNAIL))


def brightness(thumbnail: Pixels) -> Floats:
    """The luma of a thumbnail, float32 (64, 64), 0 to 255. Source: ITU-R BT.601."""
    return thumbnail.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def codes_of(thumbnail: Pixels) -> Codes:
    """The hashes of a thumbnail, one for each of `WINDOWS`; all 0 for a picture of one colour."""
    grey = brightness(thumbnail)
    codes = np.zeros(len(WINDOWS), dtype=np.uint64)
    if grey.std() < FLAT:
        return codes
    for number, (across, down) in enumerate(WINDOWS):
        strengths = (_basis(down) @ grey @ _basis(across).T).ravel()
        bits = strengths > np.median(strengths[1:])
        bits[0] = False
        codes[number] = np.packbits(bits).view(">u8")[0]
    return codes


def mirrored(thumbnail: Pixels) -> Pixels:
    """The thumbnail with left and right exchanged."""
    return np.ascontiguousarray(thumbnail[:, ::-1])


@cache
def _basis(span: Span) -> Floats:
    """(8, 64): from pixels in a row to the strengths of the 8 lowest frequencies of the part `span` of them."""
    edges = np.linspace(span[0], span[1], _CELLS + 1) * THUMBNAIL
    pixels = np.arange(THUMBNAIL)
    shares = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    means = np.clip(shares, 0, None)
    means /= means.sum(axis=1, keepdims=True)
    waves = np.cos(np.pi * (np.arange(_CELLS) + 0.5) * np.arange(_FREQUENCIES)[:, None] / _CELLS)
    return (waves @ means).astype(np.float32)


class Thumbnails:
    """Many thumbnails in a temporary file, so that memory does not grow by 12 kB for each; used as a context."""

    def __init__(self) -> None:
        """Raises UserError when there is no room or no right for the file."""
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by __exit__, and with it gone
        except OSError as error:
            raise _no_room(error) from error
        self._count = 0

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, thumbnail: Pixels) -> int:
        """Keeps a thumbnail; its number.

        Raises:
            UserError: there is no room for it.
        """
        left = memoryview(thumbnail.tobytes())
        try:
            self._file.seek(self._count * len(left))
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _no_room(error) from error
        self._count += 1
        return self._count - 1

    def get(self, number: int) -> Pixels:
        """uint8 (64, 64, 3)."""
        length = THUMBNAIL * THUMBNAIL * 3
        self._file.seek(number * length)
        return np.frombuffer(self._file.read(length), dtype=np.uint8).reshape(THUMBNAIL, THUMBNAIL, 3)


def _no_room(error: OSError) -> UserError:
    what = f"small versions of the pictures cannot be kept there: {error.strerror or error}"
    fix = f"{THUMBNAIL * THUMBNAIL * 3 / 1000:.0f} kB are needed for each picture: make room, or name another in TMPDIR"
    return UserError.of(what, f"the temporary folder {tempfile.tempdir or ''}".rstrip(), fix)
