"""Reading files of named tensors: `.safetensors`, and what torch.save wrote (`.ckpt`, `.bin`, `.pt`, `.pth`).

Both kinds tell names, shapes and number formats without reading a weight, and hand out one tensor at a time. Nothing a
file names is ever run. Format of `.safetensors`: eight bytes header length, a JSON header, the raw data without gaps
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from library.core.errors import UserError
from library.core.pickle_names import StoredTensor
from library.core.pickled import PickledContent, explained, fill_memory, read_pickled, shown
from library.core.tensor_files import DTYPE_NAMES
from library.models.files.kind import SAFETENSORS, TORCH, damaged, kind_of

SAFETENSORS_SUFFIX = ".safetensors"
PICKLED_SUFFIXES = (".ckpt", ".bin", ".pt", ".pth")
STATE_KEY, METADATA_KEY = "state_dict", "metadata"
# whole numbers beside a pickled state dict, and the names they have in the metadata of a safetensors file
_COUNTERS = {"ss_epoch": "epoch", "ss_steps": "global_step"}
_HEADER_LIMIT = 100_000_000  # the limit of the reference implementation
_DEEPEST = 16  # dicts within dicts
_NAMED_FOREIGN = 5

_HALVES = re.compile("[\ud800-\udfff]")
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class SafetensorsFile:
    """A `.safetensors` file whose header has been read and checked.

    Attributes:
        metadata: the texts of its `__metadata__`.
        notes: what a person should know about the file, in sentences.
        entries: what the header says of each tensor; `data_offsets` count from `data_start`.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    entries: Mapping[str, Mapping[str, Any]]
    data_start: int

    def offset(self, name: str) -> int | None:
        """Where in the file the values stand one after the other, in bytes; for those who map the file."""
        return int(self.data_start + self.entries[name]["data_offsets"][0])

    def read(self, name: str) -> Tensor:
        """The tensor in the file's own dtype, in memory of its own that may be written to.

        Reads the bytes straight into the new tensor: no mapping keeps the file busy, no second copy exists.
        """
        tensor = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        with explained(self.path), self.path.open("rb") as file:
            file.seek(self.data_start + self.entries[name]["data_offsets"][0])
            is_whole = fill_memory(file, tensor)
        if not is_whole:
            raise damaged(self.path, f"it ends inside the tensor {shown(name)}")
        return tensor


@dataclass(frozen=True)
class PickledFile:
    """A file written by `torch.save`; of its objects only tensors, texts and numbers were kept.

    Attributes:
        metadata: the texts of a dict `metadata` beside the tensors, and `ss_epoch`, `ss_steps` from its counters.
        notes: what a person should know about the file, in sentences.
        content: all that it holds; `tensors` says where each tensor lies.
        shared: the keys of storages that several tensors use.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]
    content: PickledContent
    tensors: Mapping[str, StoredTensor]
    shared: frozenset[str]

    def offset(self, name: str) -> int | None:
        """Where in the file the values stand one after the other, in bytes; for those who map the file.

        None where they do not (strides, compression), or where another tensor has the same storage.
        """
        tensor = self.tensors[name]
        return None if tensor.storage.key in self.shared else self.content.offset(tensor)

    def read(self, name: str) -> Tensor:
        """The tensor in the file's own dtype, contiguous, in memory of its own that may be written to."""
        return self.content.read(self.tensors[name])


WeightsFile = SafetensorsFile | PickledFile


def open_weights(path: Path) -> WeightsFile:
    """Opens a tensor file by its extension, which its content must confirm.

    Tensors inside dicts, lists and tuples of a pickled file get dotted names (`string_to_param.*`); if it has a dict
    `state_dict`, only that one counts.

    Raises:
        UserError: it is damaged, empty, of another kind, malicious, or holds no tensor.
    """
    file = open_weights_or_metadata(path)
    if not file.shapes:
        raise UserError.of("holds no tensors at all", str(path), "give a file of weights")
    return file


def open_weights_or_metadata(path: Path) -> WeightsFile:
    """Like `open_weights`, but a file without any tensor, of which only the metadata counts, is welcome too.

    Raises:
        UserError: it is damaged, empty (of no bytes), of another kind or malicious.
    """
    suffix = path.suffix.lower()
    if suffix not in (SAFETENSORS_SUFFIX, *PICKLED_SUFFIXES):
        what = f"a file of weights ends in {', '.join((SAFETENSORS_SUFFIX, *PICKLED_SUFFIXES))}"
        raise UserError.of(what, str(path), "give such a file, or rename it if it is one")
    kind = kind_of(path)
    if kind == SAFETENSORS and suffix != SAFETENSORS_SUFFIX:
        raise _misnamed(path, "a safetensors file", SAFETENSORS_SUFFIX)
    if kind == TORCH and suffix == SAFETENSORS_SUFFIX:
        read_pickled(path)  # what is wrong with it is told before it is renamed
        raise _misnamed(path, "a file of torch.save", ".ckpt")
    return _open_safetensors(path) if suffix == SAFETENSORS_SUFFIX else _open_pickled(path)


def _misnamed(path: Path, what: str, suffix: str) -> UserError:
    fix = f"rename it to {path.with_suffix(suffix).name}"
    return UserError.of(f"this is {what}, but its name ends in {path.suffix}", str(path), fix)


# --- safetensors ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """One tensor of the header; `start` and `end` count bytes from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class _RepeatedNameError(ValueError):
    """A JSON object has two values of one name."""


def _open_safetensors(path: Path) -> SafetensorsFile:
    with explained(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > _HEADER_LIMIT:
            raise damaged(path, f"its header would be {length} bytes long, so this is no safetensors file")
        text = file.read(length)
    if len(text) < length:
        raise damaged(path, f"it is cut off inside its header, {length - len(text)} bytes of which are missing")
    header = _parse_header(path, text)
    given = header.pop("__metadata__", None) or {}
    entries = {name: _parse_entry(path, name, entry) for name, entry in header.items()}
    _check_extent(path, entries, size, 8 + length)
    return SafetensorsFile(
        path,
        shapes={name: entry.shape for name, entry in entries.items()},
        dtypes={name: entry.dtype for name, entry in entries.items()},
        metadata=_texts(given),
        notes=(),
        entries=header,
        data_start=8 + length,
    )


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
    except _RepeatedNameError as error:
        raise damaged(path, f"its header names {shown(error.args[0])} twice") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is no valid JSON") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no JSON object")
    return header


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _RepeatedNameError(name)
        found[name] = value
    return found


def _parse_entry(path: Path, name: str, entry: Any) -> _Entry:
    fields = entry if isinstance(entry, dict) else {}
    _check_name(path, name)
    dtype_name, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(dtype_name, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise damaged(path, f"its header describes {shown(name)} in a way that makes no sense")
    if dtype_name not in _DTYPES:
        what = f"the number format {shown(dtype_name, 20)} of {shown(name)} is unknown"
        raise UserError.of(what, str(path), f"give a file in one of {', '.join(_DTYPES)}")
    dtype, (start, end) = _DTYPES[dtype_name], offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - start != needed:
        how = f"the shape {shape} of {shown(name)} needs {needed} bytes, but it has {end - start}"
        raise damaged(path, how)
    return _Entry(dtype, tuple(shape), start, end)


def _check_name(path: Path, name: str) -> None:
    if _whole_text(name) != name:
        raise damaged(path, f"the name {shown(name)} of a tensor is no valid text")


def _are_counts(numbers: Any) -> TypeGuard[list[int]]:
    """Whether these are sizes or places; a tensor has 64 dimensions at most."""
    return (
        isinstance(numbers, list)
        and len(numbers) <= 64
        and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    )


def _check_extent(path: Path, entries: Mapping[str, _Entry], size: int, data_start: int) -> None:
    """The tensors must fill the rest of the file, one after the other."""
    total = data_start + max((entry.end for entry in entries.values()), default=0)
    if size < total:
        raise damaged(path, f"{total - size} of its {total} bytes are missing")
    if size > total:
        raise damaged(path, f"it is {size - total} bytes longer than its header says")
    end, last = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start < end:
            raise damaged(path, f"the tensors {shown(last)} and {shown(name)} overlap")
        if entry.start > end:
            raise damaged(
                path, f"{entry.start - end} bytes between {shown(last)} and {shown(name)} belong to no tensor"
            )
        end, last = entry.end, name


# --- files of torch.save ----------------------------------------------------------------------------------------------


def _open_pickled(path: Path) -> PickledFile:
    content = read_pickled(path)
    top = content.content if isinstance(content.content, dict) else {}
    state = top.get(STATE_KEY)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _tensors_in(state if isinstance(state, dict) else content.content):
        _check_name(path, name)
        if tensors.setdefault(name, tensor) != tensor:
            raise damaged(path, f"it holds two tensors of the name {shown(name)}")
        if tensor.dtype not in DTYPE_NAMES:
            what = f"the number format {tensor.dtype} of {shown(name)} cannot be kept in a .safetensors file"
            raise UserError.of(what, str(path), f"give a file in one of {', '.join(_DTYPES)}")
    uses = Counter(tensor.storage.key for tensor in tensors.values())
    return PickledFile(
        path,
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        metadata=_pickled_metadata(top),
        notes=_notes(content),
        content=content,
        tensors=tensors,
        shared=frozenset(key for key, count in uses.items() if count > 1),
    )


def _tensors_in(content: Any) -> Iterator[tuple[str, StoredTensor]]:
    """Tensors of nested containers by their dotted names. A container that stands in two places counts once."""
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, StoredTensor):
            yield name or "tensor", value
        if not isinstance(value, dict | list | tuple) or id(value) in seen or depth > _DEEPEST:
            continue
        seen.add(id(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        prefix = f"{name}." if name else ""
        inner = [(f"{prefix}{key}", item, depth + 1) for key, item in items if isinstance(key, str | int)]
        waiting.extend(reversed(inner))


def _pickled_metadata(top: Mapping[Any, Any]) -> dict[str, str]:
    counters = {name: top[key] for name, key in _COUNTERS.items() if type(top.get(key)) is int}
    return {**{name: str(count) for name, count in counters.items()}, **_texts(top.get(METADATA_KEY))}


def _notes(content: PickledContent) -> tuple[str, ...]:
    if not content.foreign:
        return ()
    named = ", ".join(shown(name) for name in content.foreign[:_NAMED_FOREIGN])
    more = len(content.foreign) - _NAMED_FOREIGN
    return (f"objects that are no tensors were left out: {named}{f' and {more} more' if more > 0 else ''}",)


def _texts(given: Any) -> dict[str, str]:
    """The texts of what should be a dict of texts, such that every file can hold them."""
    items = given.items() if isinstance(given, dict) else ()
    texts = ((key, value) for key, value in items if isinstance(key, str) and isinstance(value, str))
    return {_whole_text(key): _whole_text(value) for key, value in texts}


def _whole_text(text: str) -> str:
    """The text with U+FFFD for halves of characters (lone surrogates), which JSON may name and no file can hold."""
    return _HALVES.sub("\ufffd", text)
