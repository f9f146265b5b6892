"""Files of `torch.save`, read without running anything they name and without reading a weight that nobody asks for.

Two forms exist. Since torch 1.6: a zip archive with one folder, `data.pkl` (the objects), `data/KEY` (the numbers of a
storage, uncompressed) and `byteorder`. Before: four pickles (magic number, protocol, facts on the machine, objects), a
fifth with the list of storage keys, then for each key the number of elements (8 bytes) and the numbers.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from library.core.errors import UserError
from library.core.pickle_machine import Unpickled, read_pickle
from library.core.pickle_names import MalformedPickle, MaliciousPickle, StoredTensor, plain_stride

ZIP_MARK = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
_LEGACY_PROTOCOL = 1001
_OBJECTS = "data.pkl"
_OBJECTS_LIMIT = 64 << 20  # bytes; those of a model with its optimizer take about one MiB
_LOCAL_HEADER = 30  # bytes of a zip entry's header before its name
_STORED = zipfile.ZIP_STORED
_FIX_DAMAGED = "download or copy the file again, and compare its size with the original"
_FIX_MALICIOUS = "do not use this file: delete it, and get the .safetensors version from a source you trust"
_FIX_OTHER = "get the .safetensors version of the model"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a storage lies: bytes `start` to `start + size` of the file, or of the compressed zip entry `packed`."""

    start: int
    size: int
    packed: str | None = None


@dataclass(frozen=True)
class PickledContent:
    """What a file of `torch.save` holds.

    Attributes:
        content: dicts, lists, tuples, sets, texts, numbers, `StoredTensor` for tensors, `INERT` for any other object.
        foreign: the names of classes and functions that were left out, sorted.
    """

    content: Any
    foreign: tuple[str, ...]
    path: Path
    places: Mapping[str, _Place]

    def offset(self, tensor: StoredTensor) -> int | None:
        """Where in the file the values stand one after the other, in bytes; None where they do not."""
        place = self.places[tensor.storage.key]
        if place.packed is not None or tensor.stride != plain_stride(tensor.shape):
            return None
        return place.start + tensor.start

    def read(self, tensor: StoredTensor) -> Tensor:
        """The tensor in its own dtype, contiguous, in memory of its own that may be written to.

        Raises:
            UserError: the file cannot be read (any more), or ends too early.
        """
        place = self.places[tensor.storage.key]
        is_plain = tensor.stride == plain_stride(tensor.shape) or tensor.numel == 0
        shape = tensor.shape if is_plain else (tensor.span,)
        found = torch.empty(shape, dtype=tensor.dtype)
        with explained(self.path), self.path.open("rb") as file:
            is_whole = _fill(found, file, place, tensor.start)
        if not is_whole:
            raise _damaged(self.path, f"it ends inside storage {shown(tensor.storage.key)}")
        if is_plain:
            return found
        return found.as_strided(tensor.shape, tensor.stride).clone(memory_format=torch.contiguous_format)


def read_pickled(path: Path) -> PickledContent:
    """Reads the objects of a file of `torch.save`; of tensors only where their values lie, which is checked.

    Raises:
        UserError: the file is malicious, damaged, of another kind, or was written on a big-endian machine.
    """
    with explained(path), path.open("rb") as file:
        try:
            read = _read_zip if file.read(len(ZIP_MARK)) == ZIP_MARK else _read_legacy
            file.seek(0)
            unpickled, places = read(path, file)
        except MaliciousPickle as found:
            what = f"tries to run {shown(found.args[0])} when it is opened; nothing was run"
            raise UserError.of(what, str(path), _FIX_MALICIOUS) from found
        except MalformedPickle as error:
            raise _damaged(path, f"its list of tensors cannot be read: {error.args[0]}") from error
        size = os.fstat(file.fileno()).st_size
    for tensor in unpickled.tensors:
        _check_place(path, tensor, places, size)
    return PickledContent(unpickled.value, unpickled.foreign, path, places)


def shown(text: str, limit: int = 100) -> str:
    """Text out of a file, made fit to be printed: no control characters, not endless."""
    clean = "".join(character if character.isprintable() else "?" for character in text[: limit + 1])
    return clean if len(clean) <= limit else f"{clean[:limit]}…"


def fill_memory(stream: Any, tensor: Tensor) -> bool:
    """Reads bytes straight into a new contiguous CPU tensor; whether there were enough of them."""
    if tensor.numel() == 0:
        return True
    memory = tensor.reshape(-1).view(torch.uint8).numpy().data
    done = 0
    while done < len(memory):
        count = stream.readinto(memory[done:])
        if not count:
            return False
        done += count
    return True


def _fill(tensor: Tensor, file: BinaryIO, place: _Place, start: int) -> bool:
    if place.packed is None:
        file.seek(place.start + start)
        return fill_memory(file, tensor)
    try:
        with zipfile.ZipFile(file) as archive, archive.open(place.packed) as entry:
            entry.seek(start)
            return fill_memory(entry, tensor)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return False


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what the system says of an unreadable file into a `UserError`."""
    try:
        yield
    except PermissionError as error:
        fix = "give yourself the right to read it, or copy it to a place of yours"
        raise UserError.of("no permission to read the file", str(path), fix) from error
    except FileNotFoundError as error:
        raise UserError.of("no such file", str(path), "check the path") from error
    except OSError as error:
        fix = "check the disk or the network drive it lies on"
        raise UserError.of(f"the file cannot be read: {error.strerror or error}", str(path), fix) from error


# --- the zip form -----------------------------------------------------------------------------------------------------


def _read_zip(path: Path, file: BinaryIO) -> tuple[Unpickled, dict[str, _Place]]:
    try:
        archive = zipfile.ZipFile(file)
        entries = {entry.filename: entry for entry in archive.infolist()}
    except OSError:
        raise
    except Exception as error:  # zipfile fails in many ways on odd bytes
        raise _damaged(path, "it is cut off, or was overwritten: the end of its zip archive is missing") from error
    root = _root(path, list(entries))
    if len(entries) != len(archive.infolist()):
        raise _damaged(path, "its zip archive holds the same name twice")
    objects = _entry_bytes(path, archive, entries[root + _OBJECTS])
    byteorder = entries.get(f"{root}byteorder")
    if byteorder is not None and _entry_bytes(path, archive, byteorder).strip() != b"little":
        raise _big_endian(path)
    unpickled = read_pickle(io.BytesIO(objects))
    places: dict[str, _Place] = {}
    for key in unpickled.storages:
        entry = entries.get(f"{root}data/{key}")
        if entry is not None:
            places[key] = _zip_place(path, file, entry)
    return unpickled, places


def _root(path: Path, names: Iterable[str]) -> str:
    """The folder within the archive, with its slash; none when somebody packed the files anew without it."""
    names = list(names)
    roots = [name.removesuffix(_OBJECTS) for name in names if name.split("/")[-1] == _OBJECTS and name.count("/") < 2]
    if not roots:
        first = shown(names[0]) if names else "nothing"
        fix = "unpack it, and give the model file inside"
        raise UserError.of(f"a zip archive that was not written by torch.save; it holds {first}", str(path), fix)
    if f"{roots[0]}constants.pkl" in names:
        raise UserError.of("a TorchScript program, no file of weights", str(path), _FIX_OTHER)
    return roots[0]


def _entry_bytes(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(entry) as stream:
            content = stream.read(_OBJECTS_LIMIT + 1)
    except Exception as error:  # wrong checksum, unknown compression, a password, …
        raise _damaged(path, f"{shown(entry.filename)} in its zip archive cannot be read") from error
    if len(content) > _OBJECTS_LIMIT:
        raise _damaged(path, f"{shown(entry.filename)} in its zip archive is larger than any model needs")
    return content


def _zip_place(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> _Place:
    if entry.compress_type != _STORED:
        return _Place(0, entry.file_size, entry.filename)
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(ZIP_MARK) or entry.flag_bits & 1:
        raise _damaged(path, f"{shown(entry.filename)} is not where its zip archive says")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    return _Place(entry.header_offset + _LOCAL_HEADER + name_length + extra_length, entry.file_size)


# --- the form without zip ---------------------------------------------------------------------------------------------


def _read_legacy(path: Path, file: BinaryIO) -> tuple[Unpickled, dict[str, _Place]]:
    try:
        magic = read_pickle(file).value
    except MalformedPickle as error:
        raise _not_ours(path) from error
    if type(magic) is not int or magic != LEGACY_MAGIC:
        raise _not_ours(path)
    protocol, machine = read_pickle(file).value, read_pickle(file).value
    if protocol != _LEGACY_PROTOCOL:
        raise MalformedPickle(f"protocol {protocol!r:.20} is unknown")
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise _big_endian(path)
    unpickled = read_pickle(file)
    return unpickled, _legacy_places(path, file, unpickled)


def _legacy_places(path: Path, file: BinaryIO, unpickled: Unpickled) -> dict[str, _Place]:
    keys = read_pickle(file).value
    if not isinstance(keys, list) or any(not isinstance(key, str) or key not in unpickled.storages for key in keys):
        raise MalformedPickle("it lists storages that no tensor uses")
    start, places = file.tell(), {}
    for key in keys:
        storage = unpickled.storages[key]
        places[key] = _Place(start + 8, storage.numel * storage.itemsize)
        start += 8 + places[key].size
    missing = start - os.fstat(file.fileno()).st_size
    if missing > 0:
        raise _damaged(path, f"{missing} of its {start} bytes are missing")
    for key, place in places.items():
        file.seek(place.start - 8)
        if int.from_bytes(file.read(8), "little") != unpickled.storages[key].numel:
            raise _damaged(path, f"storage {shown(key)} has another size than its list of tensors says")
    return places


# --- checks and messages ----------------------------------------------------------------------------------------------


def _check_place(path: Path, tensor: StoredTensor, places: Mapping[str, _Place], file_size: int) -> None:
    """A tensor must lie in its storage, and its storage in the file."""
    key = shown(tensor.storage.key)
    place = places.get(tensor.storage.key)
    size = tensor.storage.numel * tensor.storage.itemsize
    if place is None:
        raise _damaged(path, f"storage {key} is missing")
    if size > place.size or (place.packed is None and place.start + size > file_size):
        raise _damaged(path, f"storage {key} should have {size} bytes and has fewer")
    if tensor.start + tensor.span * tensor.dtype.itemsize > size:
        raise _damaged(path, f"a tensor of shape {tensor.shape} reaches beyond its storage {key}")
    # one value repeated by a stride of 0 is honest in small tensors, and a way to fill the memory in large ones
    if tensor.numel > tensor.span and tensor.nbytes > max(file_size, 1 << 20):
        raise _damaged(path, f"a tensor of shape {tensor.shape} needs more memory than the whole file")


def _damaged(path: Path, how: str) -> UserError:
    return UserError.of(f"the file is damaged: {how}", str(path), _FIX_DAMAGED)


def _not_ours(path: Path) -> UserError:
    return _damaged(path, "it was not written by torch.save, or its beginning is broken")


def _big_endian(path: Path) -> UserError:
    what = "was written on a machine with the opposite order of bytes (big endian), which is not supported"
    return UserError.of(what, str(path), _FIX_OTHER)
