"""Text states in `.npz` files: `text_states` (R, D) float32, and a fingerprint that says what they were made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.core.errors import UserError
from library.data.cache.npz_files import (
    first_name,
    may_be_torn,
    read_arrays,
    read_object,
    refuse_dangling_link,
    write_arrays,
)

FORMAT = 1
FINGERPRINT = "sd_atelier_text_fingerprint"

_STATES = "text_states"
_CELLS = 2  # dimensions of the states


class TextState(IntEnum):
    """Whether an entry can be used, or why the caption has to be encoded (again)."""

    FITS = 0
    MISSING = 1
    CAPTION = 2
    ENCODER = 3
    READING = 4
    FORMAT = 5
    DAMAGED = 6


TEXT_REASONS: Mapping[TextState, str] = {
    TextState.MISSING: "not there yet",
    TextState.CAPTION: "caption changed",
    TextState.ENCODER: "other text encoder",
    TextState.READING: "other precision or way to read captions",
    TextState.FORMAT: "written by another version",
    TextState.DAMAGED: "file damaged",
}


@dataclass(frozen=True)
class TextFingerprint:
    """All that decides the bits of a caption's states.

    Attributes:
        caption: digest of the caption's text.
        encoder: digest of the text encoder's weights.
        reading: the options of how captions become states, and the precision.
    """

    caption: str
    encoder: str
    reading: str
    format: int = FORMAT

    def compare(self, stored: Mapping[str, Any]) -> TextState:
        """What differs first in the fingerprint of a file."""
        parts = (
            (TextState.FORMAT, "format"),
            (TextState.CAPTION, "caption"),
            (TextState.ENCODER, "encoder"),
            (TextState.READING, "reading"),
        )
        own = asdict(self)
        return next((state for state, key in parts if stored.get(key) != own[key]), TextState.FITS)


@dataclass(frozen=True)
class TextEntry:
    """What a cache file holds. `states` (R, D) are there only where `state` is `FITS`."""

    state: TextState
    states: NDArray[np.float32] | None = None


def caption_digest(caption: str) -> str:
    """BLAKE2b digest (hex) of a caption."""
    return hashlib.blake2b(caption.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def write_texts(path: Path, states: NDArray[np.float32], fingerprint: TextFingerprint) -> None:
    """Writes the states (R, D) of one caption, whole or not at all.

    Raises:
        UserError: when the file cannot be written (no room, no right); it is named, and nothing is left of it.
    """
    fields = {FINGERPRINT: np.array(json.dumps(asdict(fingerprint))), _STATES: states}
    try:
        write_arrays(path, fields, lambda temporary: _check(temporary, fingerprint))
    except OSError as error:
        what = f"the text states cannot be written: {error.strerror or error}"
        fix = "make room or give the right to write there, or use --cache_text_encoder_outputs, which needs no disk"
        raise UserError.of(what, str(path), fix) from error


def read_texts(path: Path, expected: TextFingerprint) -> TextEntry:
    """The states of a file if they are those that are expected, or why they are not.

    Raises:
        UserError: when a file of that name is plainly no cache of text states, or cannot be read; it must not be
            replaced.
    """
    try:
        content = read_arrays(path, lambda names: names & {FINGERPRINT, _STATES})
        if content.is_damaged and not may_be_torn(path, {FINGERPRINT}):
            raise _not_ours(path)
    except FileNotFoundError:
        refuse_dangling_link(path)
        return TextEntry(TextState.MISSING)
    except OSError as error:
        raise _unreadable(path, error) from error
    if content.is_damaged:
        return TextEntry(TextState.DAMAGED)
    if FINGERPRINT not in content.names:
        raise _not_ours(path)
    stored, states = read_object(content.arrays[FINGERPRINT]), content.arrays.get(_STATES)
    if stored is None:
        return TextEntry(TextState.DAMAGED)
    state = expected.compare(stored)
    if state is not TextState.FITS:
        return TextEntry(state)
    if states is None or states.dtype != np.float32 or states.ndim != _CELLS or not np.isfinite(states).all():
        return TextEntry(TextState.DAMAGED)
    return TextEntry(state, states)


def look_ahead_at_texts(path: Path, caption: str) -> TextState:
    """What `read_texts` will say of a file as far as the digest of a caption alone decides it.

    Raises:
        UserError: as `read_texts`.
    """
    entry = read_texts(path, TextFingerprint(caption, "", ""))
    return TextState.FITS if entry.state in (TextState.ENCODER, TextState.READING) else entry.state


def refuse_unknown_texts(path: Path) -> None:
    """Looks at a file that has the name of an entry; of one that we wrote, at its first bytes only.

    Raises:
        UserError: when it is plainly no cache of text states, or cannot be read.
    """
    try:
        if first_name(path) == FINGERPRINT:
            return
    except FileNotFoundError:
        refuse_dangling_link(path)
        return
    except OSError as error:
        raise _unreadable(path, error) from error
    read_texts(path, TextFingerprint("", "", ""))


def _check(path: Path, fingerprint: TextFingerprint) -> None:
    if read_texts(path, fingerprint).state is not TextState.FITS:
        raise OSError(f"{path.name} does not hold what was written")


def _not_ours(path: Path) -> UserError:
    what = "this file has the name of a caption's cached text states, but holds something else"
    return UserError.of(what, str(path), "move or rename it, or leave out --cache_text_encoder_outputs_to_disk")


def _unreadable(path: Path, error: OSError) -> UserError:
    what = f"the cached text states cannot be read: {error.strerror}"
    return UserError.of(what, str(path), "give the right to read it, or move it away")
