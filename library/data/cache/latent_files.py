"""Latents in `.npz` files: the fields that others read, and a fingerprint that says what they were made of.

Layout (that of the field's public tools): `latents` (4, h, w) float32, unscaled; `latents_flipped`, those of the
mirrored picture; `alpha_mask` (h, w) float32, the opacity of each cell; `original_size` [w, h] of the picture as seen;
`crop_ltrb`, the part of the scaled picture that is trained. Our own fields are passed over by other programs:
`sd_atelier_fingerprint` is JSON text, and where distributions are kept, `latents` is the mean and
`sd_atelier_deviation` the standard deviation, both (4, h, w).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT
from library.data.cache.foreign_latents import SHARED_FIELDS, Lack, has_foreign_latents, read_foreign
from library.data.cache.npz_files import (
    LARGEST,
    Arrays,
    Content,
    first_name,
    may_be_torn,
    read_arrays,
    read_object,
    refuse_dangling_link,
    write_arrays,
)

FORMAT = 2  # of the fingerprint; to be raised when pixels are made from pictures in another way
FINGERPRINT = "sd_atelier_fingerprint"
DIGEST_BYTES = 16

NO_MASK, UNKNOWN_MASK = "", "unknown"  # in the place of a mask's digest

_LATENTS, _DEVIATION, _MASK = "latents", "sd_atelier_deviation", "alpha_mask"
_FLIPPED = "_flipped"
_READ_AT_ONCE = 1 << 20


class State(IntEnum):
    """Whether an entry can be used, or why the picture has to be encoded (again)."""

    FITS = 0
    MISSING = 1
    PICTURE = 2
    VAE = 3
    SIZE = 4
    NAME = 5
    FORMAT = 6
    FOREIGN = 7
    DAMAGED = 8
    COLOUR = 9
    PRECISION = 10
    DRAW = 11
    MIRRORED = 12
    MASK = 13
    TRUSTED = 14


USABLE = frozenset({State.FITS, State.TRUSTED})
REASONS: Mapping[State, str] = {
    State.MISSING: "not there yet",
    State.PICTURE: "picture changed",
    State.VAE: "other VAE",
    State.SIZE: "other size or crop",
    State.COLOUR: "other colours",
    State.PRECISION: "other precision or batch size of the VAE",
    State.DRAW: "a single draw where distributions are wanted, or the other way round",
    State.NAME: "other name of the picture, or made by an older version",
    State.MIRRORED: "without the mirrored picture",
    State.MASK: "without the picture's mask, or with another one",
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
        name: of the picture's file and of the variant, which alone decide on the VAE's draw: latents are one of many.
            None for distributions, from which each use draws.
        colour: turn of the hue and gamma, see `augment.ColourShift`.
        precision: number format of the VAE's work, `vae_batch` how many pictures it encoded together.
        has_mask: the picture's transparency was looked at. An entry may hold it where it is not asked for.
        mask: digest of the bytes of the picture's mask; `UNKNOWN_MASK` where there is one that is not looked at now.
    """

    picture: str
    vae: str
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    name: str | None
    colour: tuple[int, float] = (0, 1.0)
    precision: str = "float"
    vae_batch: int = 1
    has_mask: bool = False
    mask: str = NO_MASK
    format: int = FORMAT

    @property
    def is_distribution(self) -> bool:
        return self.name is None

    @property
    def needs_mask(self) -> bool:
        """Whether weights of the loss belong to the latents."""
        return self.has_mask or self.mask != NO_MASK

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one array of latents."""
        left, top, right, bottom = self.crop
        return LATENT_CHANNELS, (bottom - top) // PIXELS_PER_LATENT, (right - left) // PIXELS_PER_LATENT

    def compare(self, stored: Mapping[str, Any]) -> State:
        """What differs first in the fingerprint of a file."""
        own: dict[str, Any] = json.loads(self.as_text())
        if stored.get("format") != FORMAT or "name" not in stored:
            return State.FORMAT
        if (stored["name"] is None) != self.is_distribution:
            return State.DRAW
        parts = (
            (State.PICTURE, ("picture",)),
            (State.VAE, ("vae",)),
            (State.SIZE, ("resized", "crop")),
            (State.COLOUR, ("colour",)),
            (State.PRECISION, ("precision", "vae_batch")),
            (State.NAME, ("name",)),
        )
        for state, keys in parts:
            if any(stored.get(key) != own[key] for key in keys):
                return state
        # entries from before masks had files were scaled otherwise; they do not name any
        has_masks = all(stored.get(key) == own[key] for key in ("has_mask", "mask"))
        return State.FITS if has_masks or not self.needs_mask else State.MASK

    def as_text(self) -> str:
        return json.dumps(asdict(self))  # ASCII: names of files may be any bytes


class Look(NamedTuple):
    """A picture encoded, plain or mirrored.

    Attributes:
        latents: (4, h, w) float32; or (8, h, w), mean and deviation.
        mask: (h, w) float32, or None where the whole picture counts.
    """

    latents: NDArray[np.float32]
    mask: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Entry:
    """What a cache file holds. `looks` are there only where `state` is one of `USABLE`.

    `lacks`: why a file of another program cannot be used although it is trusted. It must not be replaced.
    """

    state: State
    looks: tuple[Look, ...] = ()
    lacks: tuple[Lack, ...] = ()


def picture_digest(path: Path) -> str:
    """BLAKE2b digest (hex) of the bytes of a picture or a mask.

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


def write_entry(path: Path, looks: Sequence[Look], original_size: Size, fingerprint: Fingerprint) -> None:
    """Writes the latents of one picture, whole or not at all.

    Args:
        path: the file.
        looks: the plain picture, and where it is wanted the mirrored one.
        original_size: of the picture as seen.
        fingerprint: what they were made of.

    Raises:
        UserError: when the file cannot be written (no room, no right); it is named, and nothing is left of it.
    """
    # the fingerprint comes first: the first bytes of the file tell that it is ours
    fields: dict[str, Any] = {FINGERPRINT: np.array(fingerprint.as_text())}
    for look, addition in zip(looks, ("", _FLIPPED), strict=False):
        fields[f"{_LATENTS}{addition}"] = look.latents[:LATENT_CHANNELS]
        if fingerprint.is_distribution:
            fields[f"{_DEVIATION}{addition}"] = look.latents[LATENT_CHANNELS:]
    fields["original_size"] = np.array(original_size, dtype=np.int64)
    fields["crop_ltrb"] = np.array(fingerprint.crop, dtype=np.int64)
    if looks[0].mask is not None:
        fields[_MASK] = looks[0].mask
    sides = (False, True)[: len(looks)]
    try:
        write_arrays(path, fields, lambda temporary: _check(temporary, fingerprint, sides))
    except OSError as error:
        what = f"the latents cannot be written: {error.strerror or error}"
        fix = "make room or give the right to write there, or use --cache_latents, which keeps them in memory"
        raise UserError.of(what, str(path), fix) from error


def read_entry(
    path: Path, expected: Fingerprint, sides: Sequence[bool] = (False,), trusts_foreign: bool = False
) -> Entry:
    """The latents of a file if they are those that are expected, or why they are not.

    Args:
        path: the file; no more of it is read than is needed.
        expected: what the latents must have been made of.
        sides: which looks are wanted, False for the plain and True for the mirrored one.
        trusts_foreign: take latents of other programs, if they have the right shape, and say what they lack if not.

    Raises:
        UserError: when a file of that name is plainly no cache of latents, or cannot be read; it must not be replaced.
    """
    trusts = trusts_foreign and not expected.is_distribution
    content = _read(path, expected, sides)
    if content is None:
        return Entry(State.MISSING)
    if content.is_damaged:
        # whose an empty file was cannot be known, and nothing is lost with it
        is_foreign = trusts and first_name(path) in SHARED_FIELDS
        return Entry(State.FOREIGN, lacks=(Lack.WHOLE,)) if is_foreign else Entry(State.DAMAGED)
    if FINGERPRINT not in content.names:
        if not trusts:
            return Entry(State.FOREIGN)
        found = read_foreign(path, content.arrays, expected.shape, sides, expected.has_mask)
        if expected.mask != NO_MASK:  # theirs may be of anything
            return Entry(State.FOREIGN, lacks=(*found.lacks, Lack.MASK_FILE))
        if found.lacks:
            return Entry(State.FOREIGN, lacks=found.lacks)
        return Entry(State.TRUSTED, tuple(Look(*look) for look in found.looks))
    stored = read_object(content.arrays[FINGERPRINT])
    if stored is None:
        return Entry(State.DAMAGED)
    state = expected.compare(stored)
    if state is not State.FITS:
        return Entry(state)
    if True in sides and f"{_LATENTS}{_FLIPPED}" not in content.names:
        return Entry(State.MIRRORED)
    looks = [_look(content.arrays, expected, flipped) for flipped in sides]
    whole = tuple(look for look in looks if look is not None)
    return Entry(State.FITS, whole) if len(whole) == len(looks) else Entry(State.DAMAGED)


def look_ahead(path: Path, expected: Fingerprint, sides: Sequence[bool], trusts_foreign: bool = False) -> State:
    """What `read_entry` will say as far as it can be known before a VAE is loaded; no latents of ours are read.

    Args:
        path: the file.
        expected: picture and VAE in it do not count, nor what is in the mask.
        sides: which looks are wanted.
        trusts_foreign: latents of other programs are used.

    Raises:
        UserError: as `read_entry`.
    """
    content = _read(path, expected, ())
    if content is None or content.is_damaged or FINGERPRINT not in content.names:
        return read_entry(path, expected, sides, trusts_foreign).state
    stored = read_object(content.arrays[FINGERPRINT])
    if stored is None:
        return State.DAMAGED
    mask = stored.get("mask") if expected.mask != NO_MASK else None
    known = {"picture": stored.get("picture", ""), "vae": stored.get("vae", ""), "mask": mask or expected.mask}
    state = replace(expected, **known).compare(stored)
    has_sides = True not in sides or f"{_LATENTS}{_FLIPPED}" in content.names
    return State.MIRRORED if state is State.FITS and not has_sides else state


def is_ours(path: Path) -> bool:
    """Whether a file begins as the entries do that we write.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        return first_name(path) == FINGERPRINT
    except FileNotFoundError:
        refuse_dangling_link(path)
        return False
    except OSError as error:
        raise _unreadable(path, error) from error


def refuse_unknown(path: Path) -> None:
    """Looks at a file that has the name of an entry; of one that we wrote, at its first bytes only.

    Raises:
        UserError: when it is plainly no cache of latents, or cannot be read.
    """
    if not is_ours(path):
        read_entry(path, Fingerprint("", "", (0, 0), (0, 0, 0, 0), ""))


def _check(path: Path, fingerprint: Fingerprint, sides: Sequence[bool]) -> None:
    if read_entry(path, fingerprint, sides).state is not State.FITS:
        raise OSError(f"{path.name} does not hold what was written")


def _read(path: Path, expected: Fingerprint, sides: Sequence[bool]) -> Content | None:
    """The arrays that matter; None where no file is."""

    def choose(names: frozenset[str]) -> frozenset[str]:
        return names & _needed(expected, sides) if FINGERPRINT in names else names

    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise _not_ours(path)
        content = read_arrays(path, choose)
        if content.is_damaged and not may_be_torn(path, {FINGERPRINT, *SHARED_FIELDS}):
            raise _not_ours(path)
    except FileNotFoundError:
        refuse_dangling_link(path)
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    if not content.is_damaged and FINGERPRINT not in content.names and not has_foreign_latents(content.arrays):
        raise _not_ours(path)
    return content


def _needed(expected: Fingerprint, sides: Sequence[bool]) -> frozenset[str]:
    additions = [_FLIPPED if flipped else "" for flipped in sides]
    names = {FINGERPRINT, *(f"{_LATENTS}{addition}" for addition in additions)}
    if expected.is_distribution:
        names |= {f"{_DEVIATION}{addition}" for addition in additions}
    return frozenset(names | {_MASK} if expected.needs_mask else names)


def _look(arrays: Arrays, expected: Fingerprint, flipped: bool) -> Look | None:
    """One look; None where it is not what it should be."""
    addition = _FLIPPED if flipped else ""
    parts = [arrays.get(f"{_LATENTS}{addition}")]
    if expected.is_distribution:
        parts.append(arrays.get(f"{_DEVIATION}{addition}"))
    whole = [part for part in parts if part is not None and _is_whole(part, expected.shape)]
    mask = arrays.get(_MASK)
    if len(whole) < len(parts) or (mask is not None and not _is_whole(mask, expected.shape[1:])):
        return None
    latents = np.concatenate(whole) if len(whole) > 1 else whole[0]
    return Look(latents, mask if mask is None or not flipped else np.ascontiguousarray(mask[:, ::-1]))


def _is_whole(array: NDArray[Any], shape: tuple[int, ...]) -> bool:
    return array.dtype == np.float32 and array.shape == shape and bool(np.isfinite(array).all())


def _not_ours(path: Path) -> UserError:
    what = "this file has the name of a picture's cached latents, but holds something else"
    return UserError.of(what, str(path), "move or rename it, or leave out --cache_latents_to_disk")


def _unreadable(path: Path, error: OSError) -> UserError:
    what = f"the cached latents cannot be read: {error.strerror}"
    return UserError.of(what, str(path), "give the right to read it, or move it away")
