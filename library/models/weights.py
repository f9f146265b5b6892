"""Reading files of named tensors: `.safetensors`, and the pickled `.ckpt` and `.bin`.

Both kinds tell names and shapes without reading a weight, and hand out one tensor at a time. Nothing but tensors is
ever unpickled. Format of `.safetensors`: eight bytes header length, a JSON header, the raw data
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from library.core.errors import UserError

SAFETENSORS_SUFFIX = ".safetensors"
PICKLED_SUFFIXES = (".ckpt", ".bin")
_HEADER_LIMIT = 100_000_000  # the limit of the reference implementation
# how files written by torch.save begin: a zip archive since 1.6, a bare pickle before
_ZIP_MARK, _PICKLE_MARK = b"PK\x03\x04", b"\x80"
_FIX_DAMAGED = "download or copy the file again, and compare its size with the original"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class SafetensorsFile:
    """A `.safetensors` file whose header has been read and checked."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    entries: Mapping[str, Mapping[str, Any]]
    data_start: int

    def read(self, name: str) -> Tensor:
        """The tensor in the file's own dtype, in memory of its own that may be written to.

        Reads the bytes straight into the new tensor: no mapping keeps the file busy, no second copy exists.
        """
        entry = self.entries[name]
        tensor = torch.empty(self.shapes[name], dtype=_DTYPES[entry["dtype"]])
        with self.path.open("rb") as file:
            file.seek(self.data_start + entry["data_offsets"][0])
            if file.readinto(_bytes_of(tensor)) != tensor.nbytes:
                raise _damaged(self.path, f"it ends inside the tensor {name}")
        return tensor


@dataclass(frozen=True)
class PickledFile:
    """A file written by `torch.save`, mapped into memory: a weight is read from disk when it is first touched."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    tensors: Mapping[str, Tensor]
    shared: frozenset[int]

    def read(self, name: str) -> Tensor:
        """The tensor in the file's own dtype, in memory of its own that may be written to.

        That is the mapped tensor (copy on write, the file never changes), or a copy of one whose memory is shared.
        """
        tensor = self.tensors[name].detach()
        owns_all = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
        if owns_all and tensor.data_ptr() not in self.shared:
            return tensor
        return tensor.clone(memory_format=torch.contiguous_format)


WeightsFile = SafetensorsFile | PickledFile


def open_weights(path: Path) -> WeightsFile:
    """Opens a tensor file by its extension. `UserError` when it is damaged, empty or holds more than tensors."""
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        return _open_safetensors(path)
    return _open_pickled(path)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor; what is written there changes the tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _open_safetensors(path: Path) -> SafetensorsFile:
    size = path.stat().st_size
    if size < 8:
        raise _damaged(path, "it is empty" if size == 0 else f"it has only {size} bytes")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_HEADER_LIMIT, size - 8):
            raise _damaged(path, "it is no safetensors file, or cut off inside its header")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
        expected = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        wrong = [name for name, entry in entries.items() if not _is_sound(entry)]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, "its header cannot be read") from error
    missing = 8 + length + expected - size
    if missing > 0:
        raise _damaged(path, f"{missing} of its {8 + length + expected} bytes are missing")
    if wrong:
        raise _damaged(path, f"size or number format of {len(wrong)} tensors make no sense, first {wrong[0]}")
    return SafetensorsFile(path, shapes, entries, 8 + length)


def _is_sound(entry: Mapping[str, Any]) -> bool:
    dtype = _DTYPES.get(entry["dtype"])
    start, end = entry["data_offsets"]
    return dtype is not None and 0 <= start <= end and end - start == math.prod(entry["shape"]) * dtype.itemsize


def _open_pickled(path: Path) -> PickledFile:
    with path.open("rb") as file:
        start = file.read(len(_ZIP_MARK))
    if not start.startswith((_ZIP_MARK, _PICKLE_MARK)):
        raise _damaged(path, "it is empty or was not written by torch.save")
    try:
        # only the zip form can be mapped
        content = torch.load(path, map_location="cpu", mmap=start == _ZIP_MARK, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError.of(
            "holds Python objects besides tensors, which are not loaded because they could run any code",
            str(path),
            "use the .safetensors version of the model",
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError) as error:
        raise _damaged(path, "it is cut off or was not written by torch.save") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    uses = Counter(tensor.data_ptr() for tensor in tensors.values())
    shared = frozenset(pointer for pointer, count in uses.items() if count > 1)
    return PickledFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors, shared)


def _damaged(path: Path, how: str) -> UserError:
    return UserError.of(f"the file is damaged: {how}", str(path), _FIX_DAMAGED)
