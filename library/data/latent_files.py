"""Latents in `.npz` files: the fields that others read, and a fingerprint that says what they were made of.

Layout (that of the field's public tools): `latents` (4, h, w) float32, unscaled; `original_size` [w, h] of the picture
as seen; `crop_ltrb`, the part of the scaled picture that is trained. Our own field `sd_atelier_fingerprint` is JSON
text; other programs pass over it. Files are never unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.core.atomic_io import write_whole
from library.core.errors import UserError
from library.core.sizes import Size
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT

FORMAT = 1  # of the fingerprint; to be raised when pixels are made from pictures in another way
FINGERPRINT = "sd_atelier_fingerprint"
DIGEST_BYTES = 16

_LATENTS, _OLDER_LATENTS = "latents", "arr_0"
_SHARED_FIELDS = frozenset({_LATENTS, "original_size", "crop_ltrb", "latents_flipped", "alpha_mask"})
_LARGEST = 1 << 28  # bytes; the latents of 8192 x 8192 pixels take 16 MiB
_READ_AT_ONCE = 1 << 20

_ZIP_MEMBER = b"PK\x03\x04"
_NAME_LENGTH_AT, _NAME_AT = 26, 30  # in a zip member's header
_HEAD = 128  # bytes that show the name of a zip file's first member
# What zipfile and NumPy raise on damaged content.
_CONTENT_ERRORS = (
    ValueError,
    KeyError,
    EOFError,
    OSError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


class State(IntEnum):
    """Whether an entry can be used, or why the picture has to be encoded (again)."""

    FITS = 0
    MISSING = 1
    PICTURE = 2
    VAE = 3
    SIZE = 4
    SEED = 5
    PLACE = 6
    FORMAT = 7
    FOREIGN = 8
    DAMAGED = 9


REASONS: Mapping[State, str] = {
    State.MISSING: "not there yet",
    State.PICTURE: "picture changed",
    State.VAE: "other VAE",
    State.SIZE: "other size or crop",
    State.SEED: "other seed",
    State.PLACE: "other name or place in the dataset",
    State.FORMAT: "written by another version",
    State.FOREIGN: "written by another program, with unknown VAE",
    State.DAMAGED: "file damaged",
}


@dataclass(frozen=True)
class Fingerprint:
    """All that decides the bits of a picture's latents.

    Attributes:
        picture: digest of the file's bytes.
        vae: digest of the weights that encode.
        resized: size that the picture is scaled to; `crop`: left, top, right, bottom of what is cut out of it.
        seed: the run's seed, and `draw` the picture's name in random draws: latents are one draw of many from the VAE.
    """

    picture: str
    vae: str
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    seed: int
    draw: str
    format: int = FORMAT

    def compare(self, stored: Mapping[str, Any]) -> State:
        """What differs first in the fingerprint of a file."""
        own: dict[str, Any] = json.loads(self.as_text())
        if stored.get("format") != FORMAT:
            return State.FORMAT
        parts = (
            (State.PICTURE, ("picture",)),
            (State.VAE, ("vae",)),
            (State.SIZE, ("resized", "crop")),
            (State.SEED, ("seed",)),
            (State.PLACE, ("draw",)),
        )
        return next(
            (state for state, keys in parts if any(stored.get(key) != own[key] for key in keys)),
            State.FITS,
        )

    def as_text(self) -> str:
        return json.dumps(asdict(self))  # ASCII: names of files may be any bytes


@dataclass(frozen=True)
class Entry:
    """What a cache file holds. `latents` are there only where `state` is `FITS`."""

    state: State
    latents: NDArray[np.float32] | None = None  # (4, h, w)


def picture_digest(path: Path) -> str:
    """BLAKE2b digest (hex) of a file's bytes.

    Sizes and times of files are not looked at: a program can change a picture and keep both.

    Raises:
        UserError: when the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with path.open("rb") as file:
            while part := file.read(_READ_AT_ONCE):
                digest.update(part)
    except OSError as error:
        what = f"the picture cannot be read: {error.strerror}"
        raise UserError.of(what, str(path), "put it back, or start again without it") from error
    return digest.hexdigest()


def write_entry(path: Path, latents: NDArray[np.float32], original_size: Size, fingerprint: Fingerprint) -> None:
    """Writes the latents (4, h, w) of one picture, whole or not at all.

    Raises:
        UserError: when the file cannot be written (no room, no right); it is named, and nothing is left of it.
    """
    fields: dict[str, Any] = {
        FINGERPRINT: np.array(fingerprint.as_text()),  # first: the first bytes of the file tell that it is ours
        _LATENTS: latents,
        "original_size": np.array(original_size, dtype=np.int64),
        "crop_ltrb": np.array(fingerprint.crop, dtype=np.int64),
    }
    try:
        write_whole(path, lambda temporary: np.savez(temporary, **fields), lambda t: _check(t, fingerprint))
    except OSError as error:
        what = f"the latents cannot be written: {error.strerror or error}"
        fix = "make room or give the right to write there, or use --cache_latents, which keeps them in memory"
        raise UserError.of(what, str(path), fix) from error


def read_entry(path: Path, expected: Fingerprint) -> Entry:
    """The latents of a file if they are those that are expected, or why they are not.

    Raises:
        UserError: when a file of that name is plainly no cache of latents, or cannot be read; it must not be replaced.
    """
    content = _read_content(path)
    if content is None:
        return Entry(State.MISSING)
    fields = _read_fields(content)
    if fields is None:
        if not _may_be_torn(content):
            raise _not_ours(path)
        return Entry(State.DAMAGED)
    if FINGERPRINT not in fields:
        if not _is_cache_of_others(fields):
            raise _not_ours(path)
        return Entry(State.FOREIGN)
    stored = _parse(fields[FINGERPRINT])
    if stored is None:
        return Entry(State.DAMAGED)
    state = expected.compare(stored)
    if state is not State.FITS:
        return Entry(state)
    latents = fields.get(_LATENTS)
    return Entry(State.FITS, latents) if _is_whole(latents, expected) else Entry(State.DAMAGED)


def refuse_unknown(path: Path) -> None:
    """Looks at a file that has the name of an entry; of one that we wrote, at its first bytes only.

    Raises:
        UserError: when it is plainly no cache of latents, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise _unreadable(path, error) from error
    if _first_member(head) != FINGERPRINT:
        nothing = Fingerprint("", "", (0, 0), (0, 0, 0, 0), 0, "")
        read_entry(path, nothing)


def _check(path: Path, fingerprint: Fingerprint) -> None:
    if read_entry(path, fingerprint).state is not State.FITS:
        raise OSError(f"{path.name} does not hold what was written")


def _read_content(path: Path) -> bytes | None:
    try:
        if path.is_file() and path.stat().st_size > _LARGEST:
            raise _not_ours(path)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_fields(content: bytes) -> dict[str, NDArray[Any]] | None:
    """Every array of an archive, checked against its checksums; None when it is damaged or no archive."""
    if not content.startswith(_ZIP_MEMBER):
        return None  # NumPy would go on to try other kinds of files
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST:
                return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except _CONTENT_ERRORS:
        return None


def _may_be_torn(content: bytes) -> bool:
    """Was this a cache before it was damaged? Its beginning says so; after a power failure it may be empty or zeros."""
    if (_ZIP_MEMBER.startswith(content[:4]) and len(content) < _HEAD) or not content.strip(b"\0"):
        return True
    known = {FINGERPRINT, _OLDER_LATENTS, *_SHARED_FIELDS}
    return _first_member(content[:_HEAD]) in known


def _first_member(head: bytes) -> str | None:
    """The array that an `.npz` file begins with, from the header of its first member."""
    if not head.startswith(_ZIP_MEMBER) or len(head) < _NAME_AT:
        return None
    (length,) = struct.unpack_from("<H", head, _NAME_LENGTH_AT)
    return head[_NAME_AT : _NAME_AT + length].decode("ascii", "replace").removesuffix(".npy")


def _is_cache_of_others(fields: Mapping[str, NDArray[Any]]) -> bool:
    """`arr_0` is what NumPy calls any array without a name, so the shape has to speak as well."""
    names = set(fields)
    if names != {_OLDER_LATENTS} and not (_LATENTS in names and names <= _SHARED_FIELDS):
        return False
    latents = fields[_LATENTS if _LATENTS in names else _OLDER_LATENTS]
    return latents.ndim == 3 and latents.shape[0] == LATENT_CHANNELS and latents.dtype.kind == "f"


def _parse(text: NDArray[Any]) -> Mapping[str, Any] | None:
    try:
        stored = json.loads(str(text[()]))
    except ValueError:
        return None
    return stored if isinstance(stored, dict) else None


def _is_whole(latents: NDArray[Any] | None, expected: Fingerprint) -> bool:
    left, top, right, bottom = expected.crop
    shape = (LATENT_CHANNELS, (bottom - top) // PIXELS_PER_LATENT, (right - left) // PIXELS_PER_LATENT)
    if latents is None or latents.dtype != np.float32 or latents.shape != shape:
        return False
    return bool(np.isfinite(latents).all())


def _not_ours(path: Path) -> UserError:
    what = "this file has the name of a picture's cached latents, but holds something else"
    return UserError.of(what, str(path), "move or rename it, or leave out --cache_latents_to_disk")


def _unreadable(path: Path, error: OSError) -> UserError:
    what = f"the cached latents cannot be read: {error.strerror}"
    return UserError.of(what, str(path), "give the right to read it, or move it away")
