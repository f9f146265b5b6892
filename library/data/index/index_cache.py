"""What the index knows of a folder, kept in a file there: the next start opens only what changed (--cache_info).

The file is an .npz of plain columns, a row for each usable picture: names and texts as bytes with their ends, file
sizes, file times in nanoseconds, sizes in pixels. A row counts for a file of the same name, size and time.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from library.core.atomic_io import why_not_writable, write_whole
from library.core.errors import Problems
from library.core.sizes import Size
from library.data.captions.caption_files import DEFAULT_CAPTION_EXTENSIONS
from library.data.description.config import SubsetConfig
from library.data.index.listing import Stamp
from library.data.index.texts import Texts, TextsBuilder

FORMAT = "sd-atelier index 1"
FILE_STEM = "sd_atelier_index"

_DIGEST_BYTES = 4
_RUN = 4096  # rows turned into Python's numbers at once
_TEXTS = ("names", "notes", "caption_names", "captions")
_NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        "size": "q",
        "mtime": "q",
        "width": "i",
        "height": "i",
        "has_alpha": "b",
        "caption_size": "q",
        "caption_mtime": "q",
    }
)
# What numpy and zipfile raise on files that are no such archive; absurd shapes ask for more memory than there is.
_READ_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


class PictureInfo(NamedTuple):
    """What is known of a picture that could be read. Texts are empty where there is none.

    Attributes:
        name: its path from the root of the subset, with forward slashes.
        stamp: of the picture file.
        size: as seen, pixels.
        note: what is odd about it.
        caption_name: of the caption file that was read, without its folder.
        caption_stamp: of that file.
        caption: the text in it.
    """

    name: str
    stamp: Stamp
    size: Size
    has_alpha: bool
    note: str
    caption_name: str
    caption_stamp: Stamp
    caption: str


@dataclass(frozen=True)
class KeptInfo:
    """The rows of a file, by number, sorted by name; `settings` tells how the captions were read."""

    settings: str
    texts: Mapping[str, Texts]
    numbers: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.texts["names"])

    def __iter__(self) -> Iterator[PictureInfo]:
        texts = zip(*(self.texts[name] for name in _TEXTS), strict=True)
        numbers = zip(*(_walk(self.numbers[name]) for name in _NUMBERS), strict=True)
        for (name, note, caption_name, caption), (size, mtime, width, height, alpha, *of_caption) in zip(
            texts, numbers, strict=True
        ):
            of_picture, shape = Stamp(size, mtime), Size(width, height)
            yield PictureInfo(name, of_picture, shape, bool(alpha), note, caption_name, Stamp(*of_caption), caption)


class InfoWalk:
    """Finds the rows of names that are asked for in rising order, without a table of all names."""

    def __init__(self, kept: KeptInfo) -> None:
        self._rows = iter(kept)
        self._next = next(self._rows, None)
        self.row = 0  # number of the next row

    def find(self, name: str) -> PictureInfo | None:
        """The row of a name, or None."""
        while self._next is not None and self._next.name < name:
            self._advance()
        if self._next is None or self._next.name != name:
            return None
        found = self._next
        self._advance()
        return found

    def _advance(self) -> None:
        self._next = next(self._rows, None)
        self.row += 1


def _walk(column: NDArray[Any]) -> Iterator[int]:
    """The numbers of a column as Python's own, which are made many at once."""
    for first in range(0, len(column), _RUN):
        yield from column[first : first + _RUN].tolist()


class InfoBuilder:
    """Takes the rows of a new file in the order of their names."""

    def __init__(self, first_rows: Iterable[PictureInfo] = ()) -> None:
        self._texts = {name: TextsBuilder() for name in _TEXTS}
        self._numbers = {name: array(kind) for name, kind in _NUMBERS.items()}
        for info in first_rows:
            self.add(info)

    def add(self, info: PictureInfo) -> None:
        for column, text in zip(_TEXTS, (info.name, info.note, info.caption_name, info.caption), strict=True):
            self._texts[column].add(text)
        numbers = (*info.stamp, *info.size, int(info.has_alpha), *info.caption_stamp)
        for column, number in zip(_NUMBERS, numbers, strict=True):
            self._numbers[column].append(number)

    def write(self, path: Path, settings: str) -> None:
        """Writes the file, whole or not at all; nothing can be added any more. Raises OSError when it cannot."""
        columns: dict[str, NDArray[Any]] = {"format": np.array(FORMAT), "settings": np.array(settings)}
        for name, builder in self._texts.items():
            columns[f"{name}_ends"], columns[f"{name}_bytes"] = builder.columns()
        for name, kind in _NUMBERS.items():
            columns[name] = np.frombuffer(self._numbers[name], dtype=np.dtype(kind))
        write_whole(path, lambda temporary: np.savez(temporary, **columns), _check)  # type: ignore[arg-type]


def info_path(subset: SubsetConfig) -> Path:
    """Where the file of a subset lies: in its image folder, or beside a metadata file that goes without one.

    Subsets that share the folder and read other captions have files of their own: all but the default ones carry a
    short digest in their names.
    """
    home = common_path(subset)
    own = caption_settings(subset)
    if subset.metadata_file is not None:
        place = _from_folder(subset.metadata_file, home.parent)
        if place == f"{subset.metadata_file.stem}.json":
            return home
        own = place
    elif subset.caption_extensions == DEFAULT_CAPTION_EXTENSIONS and not subset.caption_changes.wildcard:
        return home
    digest = hashlib.blake2b(own.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES).hexdigest()
    return home.with_name(f"{home.stem}-{digest}.npz")


def common_path(subset: SubsetConfig) -> Path:
    """The file of the subset that reads the same pictures in the default way; what it knows of them counts as well."""
    if subset.metadata_file is None:
        return subset.home / f"{FILE_STEM}.npz"
    return (subset.image_dir or subset.metadata_file.parent) / f"{FILE_STEM}-{subset.metadata_file.stem}.npz"


def _from_folder(path: Path, folder: Path) -> str:
    """A path as seen from a folder, so that both can move together; whole where they lie on different drives."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def caption_settings(subset: SubsetConfig) -> str:
    """All that decides what is read of a picture's caption files; captions kept under other settings do not count."""
    reads_files = subset.metadata_file is None
    settings = {"files": reads_files, "extensions": subset.caption_extensions, "whole": subset.caption_changes.wildcard}
    return json.dumps(settings if reads_files else {"files": False})


def read_info(subset: SubsetConfig, notes: list[str]) -> KeptInfo | None:
    """What was kept of a subset, or None; `notes` receives why a file that is there does not count."""
    path, common = info_path(subset), common_path(subset)
    try:
        return _read(path)
    except FileNotFoundError:
        return _read_common(common) if common != path else None
    except _READ_ERRORS as error:
        reason = str(error).partition("\n")[0]
        notes.append(f"{path}: no index that can be used ({reason}); all pictures are opened and it is replaced")
        return None


def _read_common(path: Path) -> KeptInfo | None:
    """What another subset's file says of the pictures; its captions were read otherwise."""
    try:
        return replace(_read(path), settings="")
    except _READ_ERRORS:
        return None


def check_writable(path: Path, problems: Problems) -> None:
    """Complains where the file could not be written."""
    error = why_not_writable(path.parent)
    if error is not None:
        report_unwritable(path, error, problems)


def report_unwritable(path: Path, error: OSError, problems: Problems) -> None:
    what = f"the index of the pictures cannot be kept there: {error.strerror or error}"
    problems.add(what, str(path), "give the right to write there, or leave cache_info out")


def _read(path: Path) -> KeptInfo:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
        if isinstance(columns, np.ndarray) or "format" not in columns:
            raise ValueError("it is another kind of file")
        if (found := str(columns["format"])) != FORMAT:
            raise ValueError(f"its format is {found[:40]!r}, not {FORMAT!r}")
        texts = {name: Texts.from_columns(columns[f"{name}_ends"], columns[f"{name}_bytes"]) for name in _TEXTS}
        numbers = {name: columns[name] for name in _NUMBERS}
        kept = KeptInfo(str(columns["settings"]), texts, numbers)
    shapes = {(len(column),) for column in texts.values()} | {column.shape for column in numbers.values()}
    kinds = {name: np.dtype(kind) for name, kind in _NUMBERS.items()}
    if len(shapes) > 1 or any(column.dtype != kinds[name] for name, column in numbers.items()):
        raise ValueError("its columns do not fit each other")
    if np.any(numbers["width"] < 1) or np.any(numbers["height"] < 1):
        raise ValueError("it holds pictures without a size")
    return kept


def _check(path: Path) -> None:
    """Reads it once more, piece by piece; raises OSError where the bytes are not those that were written."""
    with zipfile.ZipFile(path) as columns:
        if (torn := columns.testzip()) is not None:
            raise OSError(f"{torn} in it is not what was written")
