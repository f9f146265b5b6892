"""Pickles read as data, by a machine that calls nothing and changes nothing a file names.

Python's own unpickler imports, calls and sets attributes on what the file asks for, so every object it can reach is a
way in; it also reserves memory for whatever a damaged byte asks. This one knows the opcodes alone, which `pickletools`
of the standard library decodes, and `pickle_names` says what the names mean.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from library.core.pickle_names import (
    FORMER_MODULES,
    INERT,
    STORAGES,
    MalformedPickle,
    MaliciousPickle,
    Named,
    Storage,
    StoredTensor,
    as_set,
    is_count,
    judge,
    make,
    safe_key,
)

_LONGEST = 10_000_000  # opcodes; a model takes some 40,000, and each may cost a hundred bytes of memory
_MOST_ITEMS = 10_000_000  # that one pickle may have copied from container to container; optimizers copy some thousands


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle holds: its value, the foreign names in it, its tensors and storages wherever they stand."""

    value: Any
    foreign: tuple[str, ...]
    tensors: tuple[StoredTensor, ...]
    storages: Mapping[str, Storage]


def read_pickle(stream: BinaryIO) -> Unpickled:
    """Reads one pickle and leaves the stream behind its end.

    Raises:
        MaliciousPickle: it names what could do harm.
        MalformedPickle: it is cut off, no pickle, or contradicts itself.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            machine.step(opcode.name, argument)
            if count > _LONGEST:
                raise MalformedPickle("it is longer than any model needs")
        value = machine.stack[-1]
    except (MaliciousPickle, MalformedPickle):
        raise
    except Exception as error:  # bytes that make no sense go wrong in every way there is
        cut_off = stream.read(1) == b""
        raise MalformedPickle("it is cut off" if cut_off else "it makes no sense") from error
    tensors = tuple(machine.tensors.values())
    return Unpickled(value, tuple(sorted(machine.foreign)), tensors, machine.storages)


class _Machine:
    """Stack, memo and marks of one pickle. A mark sets the stack aside and begins a new one, as CPython does."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.foreign: set[str] = set()
        self.tensors: dict[StoredTensor, StoredTensor] = {}
        self.storages: dict[str, Storage] = {}
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._left = _MOST_ITEMS
        self._handlers = self._make_handlers()

    def step(self, name: str, argument: Any) -> None:
        """Does one opcode, named as `pickletools` names it."""
        handler = self._handlers.get(name)
        if handler is not None:
            handler(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _NEUTRAL:
            return
        elif name in _LITERALS:
            self.stack.append(argument)
        else:
            raise MalformedPickle(f"{name} is nothing that torch writes")

    def _make_handlers(self) -> dict[str, Callable[[Any], None]]:
        pop, marked = self._pop, self._marked

        def push(what: Callable[[], Any]) -> Callable[[Any], None]:
            return lambda _: self._push(what())  # what() first: it may exchange the stack

        return {
            "POP": lambda _: self._drop(),
            "POP_MARK": lambda _: marked().clear(),
            "DUP": push(lambda: self.stack[-1]),
            "MARK": lambda _: self._mark(),
            "EMPTY_LIST": push(list),
            "EMPTY_DICT": push(dict),
            "EMPTY_SET": push(set),
            "LIST": push(marked),
            "TUPLE": push(lambda: tuple(marked())),
            "TUPLE1": push(lambda: self._last(1)),
            "TUPLE2": push(lambda: self._last(2)),
            "TUPLE3": push(lambda: self._last(3)),
            "FROZENSET": push(lambda: as_set(marked())),
            "DICT": push(lambda: _filled({}, marked())),
            "APPEND": lambda _: self._extend([pop()]),
            "APPENDS": lambda _: self._extend(marked()),
            "ADDITEMS": lambda _: self._extend(marked()),
            "SETITEM": lambda _: self._fill(list(self._last(2))),
            "SETITEMS": lambda _: self._fill(marked()),
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._remember),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda index: self._push(self._memo[index])),
            "GLOBAL": lambda words: self._push(self._name(*words.split(" ", 1))),
            "STACK_GLOBAL": push(lambda: self._name(*self._last(2))),
            "REDUCE": push(lambda: self._made(*self._last(2))),
            "NEWOBJ": push(lambda: self._made(*self._last(2))),
            "NEWOBJ_EX": push(lambda: self._made(*self._last(3)[:2])),
            "INST": lambda words: self._push(self._made(self._name(*words.split(" ", 1)), tuple(marked()))),
            "OBJ": push(lambda: self._made_of_list(marked())),
            "BUILD": lambda _: self._set_state(pop()),
            "BINPERSID": push(lambda: self._persistent(pop())),
        }

    def _mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        return self.stack.pop()

    def _drop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise MalformedPickle("it takes more from its stack than there is")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def _remember(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(safe_key, items))

    def _fill(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            _filled(self.stack[-1], items)

    def _name(self, module: Any, name: Any) -> Named:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise MalformedPickle("a name in it is no text")
        found = Named(FORMER_MODULES.get(module, module), name)
        if judge(found):
            self.foreign.add(found.dotted)
        return found

    def _made(self, function: Any, arguments: Any) -> Any:
        made = make(function, arguments, self._spend)
        if isinstance(made, StoredTensor):
            self.tensors[made] = made
        return made

    def _spend(self, items: int) -> None:
        """A few bytes of a pickle can ask for a copy of what took many, again and again."""
        self._left -= items
        if self._left < 0:
            raise MalformedPickle(f"it copies more than {_MOST_ITEMS:,} items, and no model needs that")

    def _made_of_list(self, items: list[Any]) -> Any:
        return self._made(items[0], tuple(items[1:]))

    def _set_state(self, state: Any) -> None:
        """A state changes nothing, except that a ParameterDict keeps its parameters there."""
        target = self.stack[-1]
        parameters = state.get("_parameters") if isinstance(state, dict) else None
        if isinstance(target, dict) and isinstance(parameters, dict):
            self._spend(len(parameters))
            target.update(parameters)

    def _persistent(self, given: Any) -> Any:
        """`("storage", kind, key, device, numel)`, without zip also `(…, (view key, first, view numel))` or None."""
        if not isinstance(given, tuple) or not given:
            return INERT
        if given[0] == "module":  # files without zip note the source text of a class beside it
            return given[1]
        kind = given[1] if len(given) > 4 else None
        dotted = kind.dotted.replace("torch.cuda.", "torch.") if isinstance(kind, Named) else ""
        if given[0] != "storage" or dotted not in STORAGES:
            return INERT
        key, numel = given[2], given[4]
        if not (isinstance(key, str) and is_count(numel)):
            raise MalformedPickle("a storage in it makes no sense")
        storage = self.storages.setdefault(key, Storage(STORAGES[dotted], key, numel))
        if (storage.dtype, storage.numel) != (STORAGES[dotted], numel):
            raise MalformedPickle(f"it describes storage {key} in two ways")
        view = given[5] if len(given) > 5 else None
        if view is None:
            return storage
        if not is_count(view[1]):
            raise MalformedPickle("a storage in it makes no sense")
        return Storage(storage.dtype, key, numel, view[1])


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[safe_key(key)] = value
    return target


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEUTRAL = {"PROTO", "FRAME", "STOP", "READONLY_BUFFER"}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
