"""What names in a pickle mean to us: descriptions of tensors, plain containers, nothing, or harm.

A name is never looked up (`Named`). `make` answers what torch's and Python's own functions would have built: plain
containers become dicts, lists and sets, tensors become descriptions of where their values lie. All else is `INERT`:
it stands for an object that may be called, filled and given a state, and nothing happens. `judge` tells names that
could do harm if they were called. What torch puts into its pickles: calls of `torch._utils._rebuild_*` on
storages, which are named by persistent ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


class MaliciousPickle(Exception):  # noqa: N818 (it says what it is)
    """The pickle names something that does harm when it is called; the first argument is that name."""


class MalformedPickle(Exception):  # noqa: N818
    """The bytes are no pickle, or one that makes no sense; the first argument says how."""


@dataclass(frozen=True, slots=True)
class Named:
    """A class or function that a pickle names. It is never looked up."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Inert:
    """Stands for every object that is neither data nor tensor."""


INERT = Inert()


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file.

    Attributes:
        dtype: None where the pickle counts bytes.
        key: its name in the file.
        numel: how many elements (of `dtype`, or bytes) the whole run has.
        first: where a view begins, in the same unit; only files without zip have views.
    """

    dtype: torch.dtype | None
    key: str
    numel: int
    first: int = 0

    @property
    def itemsize(self) -> int:
        return 1 if self.dtype is None else self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's values lie: `offset` and `stride` count elements of `dtype` within the storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: Storage
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def span(self) -> int:
        """Elements from the first value in the storage to the last."""
        if self.numel == 0:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def start(self) -> int:
        """Bytes from the start of the storage to the first value."""
        return self.storage.first * self.storage.itemsize + self.offset * self.dtype.itemsize


def plain_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of a tensor whose values follow one another."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


# --- names ------------------------------------------------------------------------------------------------------------

_DTYPE_NAMES = (
    "float64", "double", "float32", "float", "float16", "half", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128", "int64", "long", "int32", "int",
    "int16", "short", "int8", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip
_DTYPES = {f"torch.{name}": getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)}
STORAGES: dict[str, torch.dtype | None] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.Float8_e4m3fnStorage": torch.float8_e4m3fn,
    "torch.Float8_e5m2Storage": torch.float8_e5m2,
    "torch.UntypedStorage": None,
    "torch.storage.UntypedStorage": None,
    "torch.storage._UntypedStorage": None,
}
# Parts of torch that stand in ordinary files and mean nothing for the tensors.
_TORCH_FURNITURE = {"torch.device", "torch.Tensor", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"}
_PARAMETER_DICT = "torch.nn.modules.container.ParameterDict"

# Python 2 files use the former names.
FORMER_MODULES = {"__builtin__": "builtins", "exceptions": "builtins", "copy_reg": "copyreg"}
# Python's system functions live in modules that nobody knows by name.
_KNOWN_AS = {"posix": "os", "nt": "os"}
# Modules and names of Python's own library that run code or commands, or reach files, the network or other objects'
# inside. A name stands for all below it too. The rest of that library can do nothing worse than be left out.
_HARMFUL = {
    # code, commands, processes
    "os", "posix", "nt", "subprocess", "_posixsubprocess", "_winapi", "sys", "pty", "commands", "popen2", "pipes",
    "runpy", "code", "codeop", "rlcompleter", "importlib", "imp", "zipimport", "pkgutil", "site", "atexit", "ctypes",
    "_ctypes", "multiprocessing", "_multiprocessing", "threading", "_thread", "concurrent.futures.process",
    "concurrent.futures.thread", "asyncio.subprocess", "asyncio.base_subprocess", "asyncio.unix_events",
    "asyncio.windows_events", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "pdb", "bdb",
    "profile", "cProfile", "trace", "timeit", "doctest", "pydoc", "venv", "ensurepip", "pip", "test.support",
    "distutils", "compileall", "py_compile", "platform.popen", "uuid._get_command_stdout", "uuid._popen",
    "types.FunctionType", "types.CodeType", "types.MethodType", "signal.raise_signal", "signal.pthread_kill",
    "_signal.raise_signal", "_signal.pthread_kill",
    # pickles within the pickle
    *(f"{module}.{name}" for module in ("pickle", "_pickle", "cPickle")
      for name in ("load", "loads", "_load", "_loads", "Unpickler", "_Unpickler")),
    "marshal.load", "marshal.loads", "shelve", "dbm",
    # files
    "shutil", "tempfile", "fileinput", "mmap", "fcntl", "sqlite3", "winreg", "msvcrt", "codecs.open",
    "logging.FileHandler", "logging.config", "logging.handlers", "zipfile.ZipFile", "zipfile.PyZipFile",
    *(f"{module}.{name}" for module in ("io", "_io", "_pyio") for name in ("open", "open_code", "FileIO")),
    *(f"{module}.{name}" for module, kind in (("gzip", "GzipFile"), ("bz2", "BZ2File"), ("lzma", "LZMAFile"),
                                              ("tarfile", "TarFile")) for name in ("open", kind)),
    # network
    "socket", "_socket", "ssl", "_ssl", "socketserver", "webbrowser", "urllib.request", "urllib.urlopen",
    "urllib.urlretrieve", "urllib.URLopener", "urllib.FancyURLopener", "urllib2", "httplib", "http.client",
    "http.server", "xmlrpc", "wsgiref", "ftplib", "smtplib", "smtpd", "poplib", "imaplib", "nntplib", "telnetlib",
    "asyncore", "asynchat",
    # other objects' inside
    "operator.attrgetter", "operator.methodcaller", "_operator.attrgetter", "_operator.methodcaller",
    *(f"builtins.{name}" for name in ("eval", "exec", "execfile", "compile", "open", "file", "__import__", "getattr",
                                      "setattr", "delattr", "globals", "locals", "vars", "input", "raw_input",
                                      "breakpoint", "apply", "reload", "help", "__loader__", "__spec__",
                                      "__build_class__")),
}  # fmt: skip
# By these any class or function leads to every other.
_WAYS_OUT = {"__globals__", "__builtins__", "__subclasses__", "__code__", "__dict__", "__getattribute__", "__loader__"}
# What the standard library has of plain data in honest files: inert as well, and not worth a note. Modules count
# without dotted names.
_HARMLESS_MODULES = {
    "collections",
    "datetime",
    "_datetime",
    "decimal",
    "fractions",
    "uuid",
    "enum",
    "typing",
    "numbers",
}
_HARMLESS = {
    "argparse.Namespace", "copyreg.__newobj__", "copyreg.__newobj_ex__",
    "copyreg._reconstructor", "functools.partial", "logging.Logger", "logging.getLogger",
    "re._compile", "types.SimpleNamespace",
    *(f"pathlib.{name}" for name in ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath",
                                     "PureWindowsPath")),
    *(f"builtins.{name}" for name in ("int", "float", "str", "bytes", "bytearray", "bool", "complex", "slice",
                                      "range", "object", "type", "NoneType", "Ellipsis", "NotImplemented", "unicode",
                                      "long", "basestring")),
}  # fmt: skip


def _is_harmless(name: Named) -> bool:
    if name.dotted in _BUILDERS or name.dotted in _HARMLESS:
        return True
    is_exception = name.module == "builtins" and name.name.endswith(("Error", "Exception", "Warning"))
    return is_exception or (name.module in _HARMLESS_MODULES and "." not in name.name)


def _is_harmful(name: Named) -> bool:
    """Whether the name leads to harm, also by the attributes of another module (torch.serialization, os.system)."""
    parts = name.name.split(".")
    if not _WAYS_OUT.isdisjoint(parts) or (name.module == "pathlib" and len(parts) > 1):  # Path is data, Path.touch not
        return True
    inside = (".".join(parts[first:]) for first in range(len(parts) - 1))
    return any(_stands_below(path) for path in (name.dotted, *inside))


def _stands_below(path: str) -> bool:
    """Whether the path or its beginning is one of `_HARMFUL`."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in _HARMFUL for count in range(1, len(parts) + 1))


def _is_known_torch(name: Named) -> bool:
    tables: tuple[Any, ...] = (_DTYPES, STORAGES, _BUILDERS, _OTHER_TYPE, _TORCH_FURNITURE)
    return any(name.dotted in table for table in tables)


def judge(name: Named) -> bool:
    """Whether the name is foreign: neither tensors nor plain data, so that its object is left out.

    Raises:
        MaliciousPickle: calling it could do harm, and no honest model file has business with it.
    """
    if _is_harmful(name):
        known_as = _KNOWN_AS.get(name.module)
        raise MaliciousPickle(name.dotted if known_as is None else f"{known_as}.{name.name} (as {name.dotted})")
    return not (_is_known_torch(name) or _is_harmless(name))


# --- what the known names make ----------------------------------------------------------------------------------------


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """A dict of the last argument: another dict, or pairs (Python 2 gives an OrderedDict its items so)."""
    source = arguments[-1] if arguments else {}
    if isinstance(source, dict):
        return source
    pairs = [pair for pair in _items_of(source) if isinstance(pair, list | tuple) and len(pair) == 2]
    return {safe_key(key): value for key, value in pairs}


def _items_of(source: Any) -> list[Any]:
    return list(source) if isinstance(source, list | tuple | set | frozenset | dict) else []


def _bytes(text: Any, encoding: Any = "latin1") -> bytes | Inert:
    """Bytes, as protocol 2 writes them."""
    return text.encode("latin-1") if isinstance(text, str) and encoding in ("latin1", "latin-1") else INERT


def as_set(source: Any = ()) -> set[Any]:
    """The items as a set; those that cannot be told apart safely become one."""
    return {safe_key(item) for item in _items_of(source)}


def _tensor(*arguments: Any) -> StoredTensor | Inert:
    """`_rebuild_tensor(storage, offset, size, stride)`; `_v2` adds requires_grad, hooks and notes on the values."""
    storage, offset, shape, stride, *more = arguments
    if not isinstance(storage, Storage) or storage.dtype is None or (len(more) > 2 and more[2]):
        return INERT  # notes say that the values are to be conjugated or negated
    return _described(storage.dtype, storage, offset, shape, stride)


def _tensor_v3(*arguments: Any) -> StoredTensor | Inert:
    storage, offset, shape, stride, _grad, _hooks, dtype, *more = arguments
    known = _DTYPES.get(dtype.dotted) if isinstance(dtype, Named) else None
    if not isinstance(storage, Storage) or known is None or any(more):
        return INERT
    return _described(known, storage, offset, shape, stride)


def _described(dtype: torch.dtype, storage: Storage, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    numbers = (offset, *shape, *stride)
    sound = len(shape) == len(stride) <= 64 and all(is_count(number) for number in numbers)
    if not sound or math.prod(shape) >= 2**63:
        raise MalformedPickle("shape and place of a tensor make no sense")
    return StoredTensor(dtype, tuple(shape), tuple(stride), storage, offset)


def _parameter(data: Any, *_: Any) -> Any:
    return data


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    _PARAMETER_DICT: lambda *_: {},
    "_codecs.encode": _bytes,
    "builtins.dict": _mapping,
    "builtins.list": lambda *given: _items_of(given[0] if given else ()),
    "builtins.tuple": lambda *given: tuple(_items_of(given[0] if given else ())),
    "builtins.set": as_set,
    "builtins.frozenset": as_set,
    "torch.Size": lambda *given: tuple(_items_of(given[0] if given else ())),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
# They say: make it as (function, type, arguments, …) tell, then change its type.
_OTHER_TYPE = {"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"}
_LONGEST_KEY = 64  # parts
_BYTES_OF_ITEM = 16  # a text or bytes of so many characters costs about as much as an item


def make(function: Any, arguments: Any, spend: Callable[[int], None]) -> Any:
    """What calling `function` gives, by our own rules.

    Args:
        spend: is told before each call how many items it goes through; raises when they become too many.

    Raises:
        MalformedPickle: it describes an impossible tensor.
    """
    while isinstance(function, Named) and function.dotted in _OTHER_TYPE and isinstance(arguments, tuple):
        function, _type, arguments, *_ = arguments
    builder = _BUILDERS.get(function.dotted) if isinstance(function, Named) else None
    if builder is None or not isinstance(arguments, tuple):
        return INERT
    spend(len(arguments) + sum(map(_cost, arguments)))
    return builder(*arguments)


def _cost(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value) // _BYTES_OF_ITEM
    return len(value) if isinstance(value, dict | list | tuple | set | frozenset) else 0


def is_count(value: Any) -> bool:
    """Whether the value is a whole number that sizes and places can have."""
    return type(value) is int and 0 <= value < 2**63


def safe_key(value: Any) -> Any:
    """The value if it can be looked up safely, else `INERT`.

    Deep tuples overflow the interpreter's hash, and those of long ones are computed anew each time.
    """
    parts = value if type(value) is tuple else (value,)
    return (
        value
        if len(parts) <= _LONGEST_KEY
        and all(isinstance(part, str | int | float | bytes | Named | None) for part in parts)
        else INERT
    )
