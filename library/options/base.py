"""Options as frozen dataclasses: a field is the flag, its default, choices, check and help stand beside it.

Nothing here imports torch, so `--help` and every usage error answer at once. A value comes from the command line, else
from `--config_file`, else it is the default; text from the command line and TOML values go through the same converter.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar

from library.core.sizes import Size, Span

Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class OptionInfo:
    """What stands beside a field: help, allowed values, a check that returns a complaint or None, other names that
    guides use for the same option; for a secret, which is written nowhere, where it should rather stand; whether it is
    given by its place on the command line instead of by its name."""

    help: str
    choices: tuple[str, ...] = ()
    check: Check | None = None
    required: bool = False
    metavar: str | None = None
    aliases: tuple[str, ...] = ()
    better: str | None = None
    positional: bool = False

    @property
    def secret(self) -> bool:
        """Whether the value is a token or key."""
        return self.better is not None


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    check: Check | None = None,
    required: bool = False,
    metavar: str | None = None,
    aliases: Sequence[str] = (),
) -> Any:
    """Declares one option as a dataclass field."""
    info = OptionInfo(help, tuple(choices), check, required, metavar, tuple(aliases))
    return field(default=default, metadata={"option": info})


def positional(help: str, *, metavar: str, many: bool = False) -> Any:
    """Declares a word of the command line that has no flag and must be given.

    Args:
        help: what it is.
        metavar: its name in `--help` and in messages.
        many: one or more such words; the field is a tuple of texts. Only the first positional of a script may be many.
    """
    info = OptionInfo(help, required=True, metavar=metavar, positional=True)
    return field(default=() if many else None, metadata={"option": info})


def secret_option(help: str, *, metavar: str, better: str) -> Any:
    """Declares a token or key: None where it is not given, and never written anywhere.

    Args:
        better: where it should stand instead of on the command line.
    """
    told = f"{help}; better in {better}, where other users of this machine cannot read it"
    return field(default=None, metadata={"option": OptionInfo(told, metavar=metavar, better=better)})


class OptionGroup:
    """Base of the option dataclasses; `title` heads the group in `--help` and docs/options.md."""

    title: ClassVar[str] = ""


def info_of(item: Field[Any]) -> OptionInfo:
    """The `OptionInfo` of a dataclass field made by `option`."""
    info = item.metadata["option"]
    if not isinstance(info, OptionInfo):
        raise TypeError(f"field {item.name} was not declared with option()")
    return info


def default_of(item: Field[Any]) -> Any:
    """The default value of a field; every option has one (None where the user must say)."""
    if item.default is MISSING:
        raise TypeError(f"option {item.name} has no default")
    return item.default


def option_fields(group: type[OptionGroup]) -> tuple[Field[Any], ...]:
    """The fields of an option dataclass, in the order they are declared."""
    return fields(group)  # type: ignore[arg-type]  # every OptionGroup is a dataclass; tests/options checks it


def value_type(group: type[OptionGroup], name: str) -> Any:
    """The type of a field without its `| None`."""
    hint = typing.get_type_hints(group)[name]
    if isinstance(hint, types.UnionType):
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    return hint


def convert(value: Any, kind: Any) -> Any:
    """Turns text from the command line, or a TOML value, into the type of the option.

    Raises:
        ValueError: with a sentence that says what is expected and what was given.
    """
    if kind is bool:
        return _to_bool(value)
    if kind is int:
        return _to_int(value)
    if kind is float:
        return _to_float(value)
    if kind is Size:
        return _to_size(value)
    if kind is Span:
        return _to_span(value)
    if kind == tuple[str, ...]:
        return _to_texts(value)
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"text is expected, got {_show(value)}")
        return value
    raise TypeError(f"no converter for option type {kind}")


def _show(value: Any) -> str:
    names = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list", dict: "table"}
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{shown} ({names.get(type(value), type(value).__name__)})"


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"true or false is expected, got {_show(value)}")


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"a whole number is expected, got {_show(value)}")


def _to_float(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"a number is expected, got {_show(value)}")


def _to_texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ValueError(f"a text or a list of texts is expected, got {_show(value)}")


def _to_size(value: Any) -> Size:
    """512, "512", "512,768", [512, 768]: one number is a square, a pair is width then height."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str):
        parts = [int(part) if part.strip().isdigit() else part for part in value.split(",")]
    whole = all(isinstance(part, int) and not isinstance(part, bool) and part > 0 for part in parts)
    if not whole or len(parts) not in (1, 2):
        raise ValueError(f"one number, or width and height (512 or 512,768), is expected, got {_show(value)}")
    return Size(parts[0], parts[-1])


def _to_span(value: Any) -> Span:
    """ "2,4", [2, 4]: the lower and the upper end."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str):
        parts = [text_to_value(part.strip(), float) for part in value.split(",")]
    numbers = all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in parts)
    if not numbers or len(parts) != 2:
        raise ValueError(f"two numbers (such as 2.0,4.0) are expected, got {_show(value)}")
    return Span(float(parts[0]), float(parts[1]))


def text_to_value(text: str, kind: Any) -> Any:
    """Reads a command-line word as the TOML value it stands for, so that `convert` sees one kind of input.

    What cannot be read stays text, and `convert` complains about it.
    """
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            return text
    return text
