"""Arrays in `.npz` files: only those that are asked for are read, checked against their checksums, never unpickled."""

from __future__ import annotations

import io
import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.core.atomic_io import write_whole
from library.core.errors import UserError

LARGEST = 1 << 28  # bytes; the latents of 8192 x 8192 pixels take 16 MiB
_HEAD = 128  # bytes that show the name of a zip file's first member

_ARRAY = ".npy"
_ZIP_MEMBER = b"PK\x03\x04"
_NAME_LENGTH_AT, _NAME_AT = 26, 30  # in a zip member's header
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
    SyntaxError,  # NumPy reads an array's header as Python text
    tokenize.TokenError,
)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Content:
    """What was found in a file: the names of all arrays, and those that were asked for; nothing if `is_damaged`."""

    names: frozenset[str] = frozenset()
    arrays: Arrays = field(default_factory=dict)
    is_damaged: bool = False


def read_arrays(path: Path, choose: Callable[[frozenset[str]], Iterable[str]]) -> Content:
    """Reads some arrays of a file.

    Args:
        path: the file.
        choose: names of the arrays to read, from the names of all.

    Raises:
        OSError: the file cannot be read; `FileNotFoundError` where it is not there.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_MEMBER)) != _ZIP_MEMBER:
            return Content(is_damaged=True)  # zipfile would go on to look for an archive behind other content
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(member.file_size for member in archive.infolist()) > LARGEST:
                    return Content(is_damaged=True)
                names = frozenset(name.removesuffix(_ARRAY) for name in archive.namelist())
                return Content(names, {name: _read(archive, name) for name in choose(names)})
        except _CONTENT_ERRORS:
            return Content(is_damaged=True)


def _read(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    content = io.BytesIO(archive.read(f"{name}{_ARRAY}"))  # which compares the checksum before anything is interpreted
    array: NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
    return array


def write_arrays(path: Path, arrays: Mapping[str, Any], check: Callable[[Path], None]) -> None:
    """Writes arrays in their order, whole or not at all.

    Args:
        path: final name.
        arrays: by name.
        check: raises if the written file, of another name, is not what it should be.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    write_whole(path, lambda temporary: np.savez(temporary, **arrays), check)


def read_object(text: NDArray[Any]) -> Mapping[str, Any] | None:
    """The JSON object in an array of one text; None where it is none."""
    try:
        stored = json.loads(str(text[()]))
    except ValueError:
        return None
    return stored if isinstance(stored, dict) else None


def refuse_dangling_link(path: Path) -> None:
    """To be asked where nothing is found under a name: a link may stand there, and must not be replaced.

    Raises:
        UserError: when there is one.
    """
    if path.is_symlink():
        what = f"a link to {path.readlink()} stands there, and nothing is at that place"
        raise UserError.of(what, str(path), "bring back what it leads to (a disk may be missing), or remove the link")


def first_name(path: Path) -> str | None:
    """The array that a file begins with, from its first bytes; None where it does not begin as such a file does.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return _first_member(file.read(_HEAD))


def may_be_torn(path: Path, known: Iterable[str]) -> bool:
    """Was this a file with one of the `known` arrays before it was damaged? Its beginning says so; after a power
    failure it may be empty or zeros.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if _first_member(head) in set(known) or (_ZIP_MEMBER.startswith(head[:4]) and len(head) < _HEAD):
            return True
        return not head.strip(b"\0") and not file.read(LARGEST).strip(b"\0")


def _first_member(head: bytes) -> str | None:
    if not head.startswith(_ZIP_MEMBER) or len(head) < _NAME_AT:
        return None
    (length,) = struct.unpack_from("<H", head, _NAME_LENGTH_AT)
    return head[_NAME_AT : _NAME_AT + length].decode("ascii", "replace").removesuffix(_ARRAY)
