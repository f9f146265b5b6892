"""Nested values taken apart into JSON and tensors, and put together again exactly as they were.

In the JSON, null, true, false, texts, whole numbers, finite floats, lists, and dicts whose keys are texts stand for
themselves. Everything else is an object whose key `$` names its kind. Nothing in it names code: reading makes values of
the kinds below and no others.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from library.core.tensor_files import DTYPE_NAMES

KIND = "$"
_DEEPEST = 100  # levels; a value that holds itself has no end
_PLAIN_NUMPY = "biufc"  # kinds of numpy's numbers: no objects, no dates
_FACTORIES: Mapping[str, type] = MappingProxyType(
    {kind.__name__: kind for kind in (dict, list, set, int, float, str, bool)}
)
_DTYPES = MappingProxyType(
    {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
)

Place = tuple[Any, ...]


def take_apart(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """The value as plain JSON, and the tensors in it by the names that the JSON has for them.

    Args:
        value: dicts (also `OrderedDict`, `Counter`, `defaultdict` of a built-in type), lists, tuples, sets, tensors and
            parameters, numbers (also numpy's), texts, bytes, None, `torch.dtype`, `torch.Size`. Keys of dicts: any of
            these that can be one, but tensors.

    Returns:
        `(plain, tensors)`: `plain` for `json.dumps`, without NaN and infinity; the tensors are the very ones,
        detached, not copies. The same numbers at the same place of memory are there once.

    Raises:
        ValueError: it holds something else; the message begins with the place, such as `state[0]['average']`.
    """
    taker = _Taker()
    return taker.take(value, ()), taker.tensors


def put_together(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `take_apart` was given; a tensor that stood in two places is one tensor again.

    Raises:
        ValueError: this is nothing that `take_apart` gave, or a tensor is missing.
    """
    try:
        return _put(plain, tensors)
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"makes no sense as nested values: {type(error).__name__} {error}") from error


class _Taker:
    """Takes values apart and gathers their tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._kinds: Mapping[type, Callable[[Any, Place], Any]] = {
            float: lambda value, _: value if math.isfinite(value) else {KIND: "float", "is": repr(value)},
            list: self._items,
            dict: self._dict,
            tuple: lambda value, place: {KIND: "tuple", "items": self._items(value, place)},
            set: lambda value, place: {KIND: "set", "items": self._sorted(value, place)},
            frozenset: lambda value, place: {KIND: "frozenset", "items": self._sorted(value, place)},
            OrderedDict: lambda value, place: {KIND: "OrderedDict", "pairs": self._pairs(value, place)},
            Counter: lambda value, place: {KIND: "Counter", "pairs": self._pairs(value, place)},
            defaultdict: self._defaultdict,
            bytes: lambda value, _: {KIND: "bytes", "hex": value.hex()},
            torch.Size: lambda value, _: {KIND: "Size", "items": list(value)},
            torch.dtype: lambda value, _: {KIND: "dtype", "is": str(value).removeprefix("torch.")},
            Tensor: self._tensor,
            nn.Parameter: self._tensor,
        }

    def take(self, value: Any, place: Place) -> Any:
        """One value, which stands at `place`: the keys and indices that lead to it."""
        if value is None or type(value) in (bool, int, str):
            return value
        if len(place) > _DEEPEST:
            raise ValueError(f"{_shown(place[:3])}…: is nested deeper than {_DEEPEST} levels, or holds itself")
        if isinstance(value, np.generic) and value.dtype.kind in _PLAIN_NUMPY:
            return {KIND: "numpy", "dtype": value.dtype.str, "hex": value.tobytes().hex()}
        take = self._kinds.get(type(value))
        if take is None:
            raise ValueError(f"{_shown(place)}: a {_name_of(type(value))} cannot be kept in a file")
        return take(value, place)

    def _items(self, values: Any, place: Place) -> list[Any]:
        return [self.take(value, (*place, number)) for number, value in enumerate(values)]

    def _sorted(self, values: Any, place: Place) -> list[Any]:
        """The items of a set in an order that depends on them alone."""
        for value in values:
            _check_key(value, place)
        return sorted(self._items(values, place), key=repr)

    def _dict(self, value: dict[Any, Any], place: Place) -> dict[str, Any]:
        if all(type(key) is str and key != KIND for key in value):
            return {key: self.take(item, (*place, key)) for key, item in value.items()}
        return {KIND: "dict", "pairs": self._pairs(value, place)}

    def _defaultdict(self, value: defaultdict[Any, Any], place: Place) -> dict[str, Any]:
        factory = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and _FACTORIES.get(name) is not factory:
            raise ValueError(f"{_shown(place)}: a defaultdict of {name or factory!r} cannot be kept in a file")
        return {KIND: "defaultdict", "of": name, "pairs": self._pairs(value, place)}

    def _pairs(self, value: Mapping[Any, Any], place: Place) -> list[list[Any]]:
        for key in value:
            _check_key(key, place)
        return [[self.take(key, place), self.take(item, (*place, key))] for key, item in value.items()]

    def _tensor(self, value: Tensor, place: Place) -> dict[str, str]:
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"{_shown(place)}: a tensor that is sparse, quantized or without numbers cannot be kept")
        if value.dtype not in DTYPE_NAMES:
            raise ValueError(f"{_shown(place)}: a tensor of {value.dtype} cannot be kept in a file")
        tensor = value.detach().resolve_conj().resolve_neg()
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        name = self._names.get(memory)
        if name is None:
            name = self._names[memory] = str(len(self.tensors))
            self.tensors[name] = tensor
        return {KIND: "tensor", "name": name}


def _check_key(key: Any, place: Place) -> None:
    """Tensors are told apart as keys by which object they are, and that is lost."""
    if isinstance(key, Tensor):
        raise ValueError(f"{_shown(place)}: a tensor as a key cannot be kept in a file")
    if isinstance(key, tuple | frozenset):
        for part in key:
            _check_key(part, place)


def _put(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_put(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    kind = plain.get(KIND)
    if kind is None:
        return {key: _put(item, tensors) for key, item in plain.items()}
    if "pairs" in plain:
        pairs = [(_put(key, tensors), _put(item, tensors)) for key, item in plain["pairs"]]
        if kind == "defaultdict":
            return defaultdict(None if plain["of"] is None else _FACTORIES[plain["of"]], pairs)
        return _DICTS[kind](pairs)
    if "items" in plain:
        return _SEQUENCES[kind]([_put(item, tensors) for item in plain["items"]])
    if kind == "tensor":
        return tensors[plain["name"]]
    return _SINGLE[kind](plain)


def _numpy_number(plain: Mapping[str, str]) -> np.generic[Any]:
    dtype = np.dtype(str(plain["dtype"]))
    if dtype.kind not in _PLAIN_NUMPY:
        raise ValueError(f"{dtype} is no number of numpy's")
    number: np.generic[Any] = np.frombuffer(bytes.fromhex(plain["hex"]), dtype)[0]
    return number


_DICTS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    # a Counter made of pairs would count the pairs
    {"dict": dict, "OrderedDict": OrderedDict, "Counter": lambda pairs: Counter(dict(pairs))}
)
_SEQUENCES: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"tuple": tuple, "set": set, "frozenset": frozenset, "Size": torch.Size}
)
_SINGLE: Mapping[str, Callable[[Mapping[str, Any]], Any]] = MappingProxyType(
    {
        "float": lambda plain: float(plain["is"]),
        "bytes": lambda plain: bytes.fromhex(plain["hex"]),
        "dtype": lambda plain: _DTYPES[plain["is"]],
        "numpy": _numpy_number,
    }
)


def _shown(place: Place) -> str:
    """A place as Python would write it."""
    return "".join(f"[{part!r}]" for part in place) or "the value itself"


def _name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
