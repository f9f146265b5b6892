"""Arguments of a class as `key=value` words: read as literals, never run, and checked against the class's signature."""

from __future__ import annotations

import ast
import inspect
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any, TypeVar

from library.core.errors import Problems, suggest_name

REQUIRED = inspect.Parameter.empty  # the default of what has none

_BARE_WORD = re.compile(r"[A-Za-z][\w.-]*")
_CONSTANTS = {"true": True, "false": False, "none": None, "inf": math.inf}
_SWITCHES_OF_THE_ENGINE = ("fused", "foreach", "capturable", "differentiable", "maximize")
_UNREADABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)  # what literal_eval may answer

MadeT = TypeVar("MadeT")


@dataclass(frozen=True)
class Signature:
    """What a class can be told by words.

    Attributes:
        flag: the option that holds the words.
        defaults: the arguments by name with their defaults, `REQUIRED` where there is none.
        takes_any: whether the class takes names beyond these.
        elsewhere: arguments that are set by other means, and by which.
    """

    flag: str
    defaults: Mapping[str, Any]
    takes_any: bool = False
    elsewhere: Mapping[str, str] = field(default_factory=dict)


def signature_of(kind: type, flag: str, given_by_us: Mapping[str, str]) -> Signature:
    """The signature of `kind` without its first argument and without what `given_by_us` names (with what to do)."""
    try:
        parameters = list(inspect.signature(kind).parameters.values())[1:]
    except ValueError:  # a class that is not written in Python
        return Signature(flag, {}, True, given_by_us)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    elsewhere = {**dict.fromkeys(_SWITCHES_OF_THE_ENGINE, "remove it; this is chosen by the program"), **given_by_us}
    return Signature(
        flag, {item.name: item.default for item in named if item.name not in elsewhere}, takes_any, elsewhere
    )


def read_arguments(words: Sequence[str], signature: Signature, problems: Problems) -> dict[str, Any]:
    """`key=value` words as keyword arguments; every word that cannot be used becomes a problem.

    Values are numbers, True, False, None, texts, and several of them joined by commas (a tuple).
    """
    arguments: dict[str, Any] = {}
    for word in words:
        name, sign, text = (part.strip() for part in word.partition("="))
        if name in signature.elsewhere:
            problems.add(f"{name} is not set here", signature.flag, signature.elsewhere[name])
        elif not sign or (name not in signature.defaults and not signature.takes_any):
            known = ", ".join(signature.defaults) or "none"
            fix = suggest_name(name, signature.defaults, f"write key=value; known are {known}")
            problems.add(f"{word!r} is not an argument of the class", signature.flag, fix)
        elif name in arguments:
            problems.add(f"{name} is given twice", signature.flag, "keep one of them")
        else:
            try:
                arguments[name] = _value(text, signature.defaults.get(name, REQUIRED))
            except ValueError:
                fix = "a number, numbers joined by commas, True, False or None"
                problems.add(f"{text!r} is no value for {name}", signature.flag, fix)
    return arguments


def missing_arguments(signature: Signature, arguments: Mapping[str, Any]) -> list[str]:
    """The arguments that the class demands and nobody gave."""
    return [name for name, default in signature.defaults.items() if default is REQUIRED and name not in arguments]


def quietly(make: Callable[[], MadeT]) -> MadeT:
    """The result of `make`; what it prints is dropped (optimizers announce their switches, the report tells them)."""
    with redirect_stdout(io.StringIO()):
        return make()


def reason_of(error: Exception) -> str:
    """Why a constructor refused, in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _value(text: str, default: Any) -> Any:
    """The value that `text` stands for. A bare word is text only where the argument may be one.

    Raises:
        ValueError: where it stands for none.
    """
    try:
        return ast.literal_eval(text)
    except _UNREADABLE:
        pass
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if "," in text:
        return tuple(_value(part.strip(), default) for part in text.split(","))
    may_be_text = default is REQUIRED or default is None or isinstance(default, str)
    if may_be_text and _BARE_WORD.fullmatch(text):
        return text
    raise ValueError(text)
