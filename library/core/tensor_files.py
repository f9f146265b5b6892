"""Safetensors files as we write them: deterministic bytes, checked before they get their name, hashes inside.

The layout is that of the safetensors format: 8 bytes header length (little endian), a JSON header, the tensors' bytes.
The header is written in sorted order, so that the same content gives the same bytes in every process.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from safetensors import safe_open

from library.core.atomic_io import write_whole
from library.core.errors import UserError

# Number formats by their names in the format. What is read must be writable, so the readers know no others.
DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
        torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
        torch.float8_e8m0fnu: "F8_E8M0",
        torch.complex64: "C64",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint64: "U64",
        torch.uint32: "U32",
        torch.uint16: "U16",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
)
HEADER_LIMIT = 50_000_000  # readers refuse headers of 100 MB; ours stay far from it

# Hashes that the Web UI's LoRA tools compare; both describe the file that holds them, so they are put in afterwards.
MODEL_HASH_KEY = "sshs_model_hash"
LEGACY_HASH_KEY = "sshs_legacy_hash"
_LEGACY_OFFSET, _LEGACY_LENGTH = 0x100000, 0x10000
_HASH_LENGTHS = MappingProxyType({MODEL_HASH_KEY: 64, LEGACY_HASH_KEY: 8})
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Deferred:
    """A tensor that is made when it is written, so that a converted model never stands in memory as a whole.

    `make` returns a tensor of exactly this dtype and shape, on any device.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


Writable = torch.Tensor | Deferred


def made(tensor: Writable) -> torch.Tensor:
    """The tensor itself."""
    return tensor.make() if isinstance(tensor, Deferred) else tensor


def bytes_of(name: str, tensor: Writable) -> bytes | memoryview:
    """The tensor's numbers as a file holds them; ValueError if a deferred one is not what it said it would be."""
    values = made(tensor)
    if values.dtype != tensor.dtype or tuple(values.shape) != tuple(tensor.shape):
        found, promised = f"{values.dtype} {tuple(values.shape)}", f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name}: {found} instead of {promised}")
    flat = values.detach().to("cpu").contiguous().flatten()
    return b"" if flat.numel() == 0 else flat.view(torch.uint8).numpy().data


def write_safetensors(path: Path, tensors: Mapping[str, Writable], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, re-read and compared by name and shape before it is renamed.

    Args:
        path: final name.
        tensors: any device; saved in their own dtype, one after the other.
        metadata: texts only; an `sshs_model_hash` or `sshs_legacy_hash` among them is computed here, whatever it was.

    Raises:
        ValueError: when a dtype cannot be stored or the header would be too large to be read again.
    """
    asked = [key for key in _HASH_LENGTHS if key in metadata]
    header = _header(tensors, {**metadata, **{key: "0" * _HASH_LENGTHS[key] for key in asked}})
    if len(header) > HEADER_LIMIT:
        raise ValueError(f"metadata of {len(header)} bytes would make {path.name} unreadable (limit {HEADER_LIMIT})")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(len(header).to_bytes(8, "little"))
            file.write(header)
            for name in _order(tensors):
                file.write(bytes_of(name, tensors[name]))
        if asked:
            _fill_in_hashes(temporary, header, asked)

    def check(temporary: Path) -> None:
        with safe_open(str(temporary), framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
        if found != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            raise OSError(f"{path.name} was not written as asked; the disk may be full or failing")

    write_whole(path, write, check)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, in CPU memory of their own, copied out of the mapped file one by one.

    What stays mapped would hold the file, and rounds as it lies there, not as other memory does.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no dict)
    except OSError as error:
        fix = "check that it is there, and its rights"
        raise UserError.of(f"cannot be read: {error.strerror or error}", str(path), fix) from error
    except Exception as error:  # the reader has an exception of its own
        fix = "copy or download the file again"
        raise UserError.of(f"the file is damaged: {error}", str(path), fix) from error


def with_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata that asks `write_safetensors` for both hashes (placeholders of their final length)."""
    return {**metadata, **{key: "0" * length for key, length in _HASH_LENGTHS.items()}}


def data_hash(path: Path) -> str:
    """SHA-256 (hex) of everything after the header of a safetensors file."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start)
        return _digest(_chunks(file))


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a whole file."""
    with path.open("rb") as file:
        return _digest(_chunks(file))


def legacy_hash(path: Path) -> str:
    """First 8 hex digits of the SHA-256 of the 65,536 bytes at offset 1,048,576."""
    with path.open("rb") as file:
        file.seek(_LEGACY_OFFSET)
        return hashlib.sha256(file.read(_LEGACY_LENGTH)).hexdigest()[:8]


def _order(tensors: Mapping[str, Writable]) -> list[str]:
    # larger element sizes first, as the reference writer does, so that every tensor stays aligned
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def _header(tensors: Mapping[str, Writable], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in _order(tensors):
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"{name}: {tensor.dtype} cannot be stored in a safetensors file")
        end = offset + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return text + b" " * (-len(text) % 8)


def _fill_in_hashes(path: Path, header: bytes, asked: Iterable[str]) -> None:
    """Replaces the placeholders in the header; their length is final, so nothing moves."""
    # the bytes at the legacy offset lie behind the header unless metadata is huge, so the order of the two is free
    found = {MODEL_HASH_KEY: data_hash(path), LEGACY_HASH_KEY: legacy_hash(path)}
    entries = json.loads(header)
    entries["__metadata__"].update({key: found[key] for key in asked})
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    with path.open("r+b") as file:
        file.seek(8)
        file.write(text + b" " * (len(header) - len(text)))


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _digest(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
