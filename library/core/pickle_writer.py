"""Files of tensors in the zip form of `torch.save`: deterministic bytes, one tensor in memory at a time.

The pickle names nothing but `collections.OrderedDict`, `torch._utils._rebuild_tensor_v2` and torch's storage classes,
and for the newer number formats, as torch does, `_rebuild_tensor_v3`, `torch.storage.UntypedStorage` and the format, so
that `torch.load(weights_only=True)` and the safety checks of the Web UI and others let it pass. The archive is torch's:
`data.pkl`, `byteorder`, the storages `data/N` uncompressed at multiples of 64 bytes (they can be mapped), `version`.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from library.core.atomic_io import write_whole
from library.core.pickle_names import StoredTensor, plain_stride
from library.core.pickled import read_pickled
from library.core.tensor_files import Writable, bytes_of

STATE_KEY = "state_dict"
_ROOT = "archive"
_VERSION = b"3\n"  # of the archive's layout
_ALIGNMENT = 64
_PADDING_ID = b"FB"  # the extra field by which torch shifts an entry to an aligned place
_LOCAL_HEADER, _ZIP64_EXTRA = 30, 20  # bytes before an entry's name; bytes that a large entry needs besides
_LARGE = 1 << 30  # entries from here on get sizes of 64 bits
_DATE = (1980, 1, 1, 0, 0, 0)
_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.complex64: "ComplexFloatStorage",
}
# Formats that have no storage class of their own: torch writes plain bytes for them, and names the format beside.
_OF_BYTES = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.float8_e4m3fnuz: "float8_e4m3fnuz",
    torch.float8_e5m2fnuz: "float8_e5m2fnuz",
    torch.float8_e8m0fnu: "float8_e8m0fnu",
    torch.uint64: "uint64",
    torch.uint32: "uint32",
    torch.uint16: "uint16",
}


def write_pickled(path: Path, tensors: Mapping[str, Writable], beside: Mapping[str, object] | None) -> None:
    """Writes a file that `torch.load` reads, whole or not at all, re-read and compared before it is renamed.

    Args:
        path: final name.
        tensors: any device; saved in their own dtype, contiguous, one after the other in the order of their names.
            Tensors that share memory are written each for itself.
        beside: None makes the file the bare dict of tensors; otherwise it is `{"state_dict": tensors, **beside}`.
            Texts, whole numbers and dicts of these.

    Raises:
        ValueError: a dtype or a value beside the tensors cannot be stored.
    """
    names = sorted(tensors)
    objects = _objects(names, tensors, beside)

    def is_as_asked(content: Any) -> bool:
        found = content if beside is None else content[STATE_KEY]
        return {name: _facts(tensor) for name, tensor in found.items()} == {
            name: _facts(tensors[name]) for name in names
        }

    _write(path, objects, [(name, tensors[name]) for name in names], is_as_asked)


def write_pickled_content(path: Path, content: Mapping[Any, object]) -> None:
    """As `write_pickled`, for a dict that nests tensors in a form of its own (the Web UI's hypernetworks).

    Args:
        path: final name.
        content: dicts (keys: texts and whole numbers), lists, tuples, texts, numbers, True, False, None and tensors,
            in the order they have.

    Raises:
        ValueError: a dtype or a value cannot be stored.
    """
    tensors: list[tuple[str, Writable]] = []
    objects = pickle.PROTO + b"\x02" + _anything("", content, tensors) + pickle.STOP
    _write(path, objects, tensors, lambda found: bool(_outline(found) == _outline(content)))


def _write(path: Path, objects: bytes, tensors: list[tuple[str, Writable]], is_as_asked: Callable[[Any], bool]) -> None:
    """Writes the archive: the pickle and the storages it names by their places in `tensors`."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _add(archive, "data.pkl", objects)
            _add(archive, "byteorder", b"little")
            for key, (name, tensor) in enumerate(tensors):
                _add(archive, f"data/{key}", bytes_of(name, tensor))
            _add(archive, "version", _VERSION)

    def check(temporary: Path) -> None:
        if not is_as_asked(read_pickled(temporary).content):
            raise OSError(f"{path.name} was not written as asked; the disk may be full or failing")

    write_whole(path, write, check)


def _facts(tensor: Writable | StoredTensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def _outline(content: Any) -> Any:
    """The content with the facts of its tensors in their places, to be compared."""
    if isinstance(content, Mapping):
        return {key: _outline(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(_outline, content))
    return _facts(content) if isinstance(content, Writable | StoredTensor) else content


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """Appends an uncompressed entry whose content begins at an aligned place of the file."""
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}", _DATE)
    entry.create_system = 0  # the same bytes on every system
    entry.file_size = len(content)
    is_large = len(content) >= _LARGE
    header = _LOCAL_HEADER + len(entry.filename) + (_ZIP64_EXTRA if is_large else 0)
    start = archive.start_dir + header + 4  # 4: id and length of the padding field
    padding = -start % _ALIGNMENT
    entry.extra = _PADDING_ID + struct.pack("<H", padding) + b"Z" * padding
    with archive.open(entry, "w", force_zip64=is_large) as stream:
        stream.write(content)


# --- the pickle -------------------------------------------------------------------------------------------------------


def _objects(names: list[str], tensors: Mapping[str, Writable], beside: Mapping[str, object] | None) -> bytes:
    """The pickle of protocol 2; without memo, so that its bytes depend on values alone."""
    state = pickle.EMPTY_DICT + pickle.MARK
    state += b"".join(_text(name) + _tensor(str(key), name, tensors[name]) for key, name in enumerate(names))
    state += pickle.SETITEMS
    if beside is not None:
        others = b"".join(_text(name) + _value(name, value) for name, value in beside.items())
        state = pickle.EMPTY_DICT + pickle.MARK + _text(STATE_KEY) + state + others + pickle.SETITEMS
    return pickle.PROTO + b"\x02" + state + pickle.STOP


def _tensor(key: str, name: str, tensor: Writable) -> bytes:
    """`torch._utils._rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)`; `_v3` adds the dtype."""
    dtype, shape = _facts(tensor)
    count = math.prod(shape)
    if dtype in _STORAGES:
        function, storage, more = "_rebuild_tensor_v2", _storage("torch", _STORAGES[dtype], key, count), b""
    elif dtype in _OF_BYTES:
        function, more = "_rebuild_tensor_v3", _global("torch", _OF_BYTES[dtype])
        storage = _storage("torch.storage", "UntypedStorage", key, count * dtype.itemsize)
    else:
        raise ValueError(f"{name}: {dtype} cannot be stored in a file of torch.save by this program")
    arguments = (
        storage,
        _number(0),
        _numbers(shape),
        _numbers(plain_stride(shape)),
        pickle.NEWFALSE,
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
        more,
    )
    return _global("torch._utils", function) + _tuple(b"".join(arguments)) + pickle.REDUCE


def _storage(module: str, kind: str, key: str, count: int) -> bytes:
    """`("storage", kind, key, device, count)` as a persistent id."""
    facts = _text("storage") + _global(module, kind) + _text(key) + _text("cpu") + _number(count)
    return _tuple(facts) + pickle.BINPERSID


def _value(name: str, value: object) -> bytes:
    if isinstance(value, str):
        return _text(value)
    if type(value) is int:
        return _number(value)
    if isinstance(value, Mapping):
        items = b"".join(_text(str(key)) + _value(f"{name}.{key}", item) for key, item in sorted(value.items()))
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    raise ValueError(f"{name}: a {type(value).__name__} is neither text, whole number nor dict")


def _anything(name: str, value: object, tensors: list[tuple[str, Writable]]) -> bytes:
    """A value of `write_pickled_content`; `name` is its dotted place, and the tensors that are met are gathered."""
    if isinstance(value, Writable):
        tensors.append((name, value))
        return _tensor(str(len(tensors) - 1), name, value)
    if value is None or isinstance(value, bool):
        return pickle.NONE if value is None else (pickle.NEWTRUE if value else pickle.NEWFALSE)
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    inner = f"{name}." if name else ""
    if isinstance(value, Mapping):
        items = b"".join(
            (_number(key) if type(key) is int else _text(key)) + _anything(f"{inner}{key}", item, tensors)
            for key, item in value.items()
        )
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    if isinstance(value, list | tuple):
        items = b"".join(_anything(f"{inner}{number}", item, tensors) for number, item in enumerate(value))
        return _tuple(items) if isinstance(value, tuple) else pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
    return _value(name, value)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def _number(number: int) -> bytes:
    if 0 <= number < 1 << 8:
        return pickle.BININT1 + struct.pack("<B", number)
    if -(1 << 31) <= number < 1 << 31:
        return pickle.BININT + struct.pack("<i", number)
    content = pickle.encode_long(number)
    return pickle.LONG1 + struct.pack("<B", len(content)) + content


def _numbers(numbers: tuple[int, ...]) -> bytes:
    return _tuple(b"".join(map(_number, numbers)))


def _tuple(items: bytes) -> bytes:
    return pickle.MARK + items + pickle.TUPLE
