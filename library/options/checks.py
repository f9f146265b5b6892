"""Checks of option values: single fields (used in the dataclasses) and pairs of options that must fit together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_LONGEST_STEM = 200  # file systems allow 255 bytes; step numbers, -state, -log and temporary marks need the rest


def at_least(limit: float) -> Callable[[Any], str | None]:
    """A check: the value is finite and not below `limit`."""

    def check(value: Any) -> str | None:
        if math.isfinite(value) and value >= limit:
            return None
        return f"must be {limit:g} or more, got {value:g}"

    return check


def above(limit: float) -> Callable[[Any], str | None]:
    """A check: the value is finite and above `limit`."""

    def check(value: Any) -> str | None:
        return None if math.isfinite(value) and value > limit else f"must be above {limit:g}, got {value:g}"

    return check


def between(low: float, high: float) -> Callable[[Any], str | None]:
    """A check: the value lies between two limits, both included."""

    def check(value: Any) -> str | None:
        return None if low <= value <= high else f"must be between {low:g} and {high:g}, got {value:g}"

    return check


def finite(value: float) -> str | None:
    """A check: neither infinite nor NaN."""
    return None if math.isfinite(value) else f"must be a finite number, got {value:g}"


def share(value: float) -> str | None:
    """A check: a probability from 0 to 1."""
    return None if 0 <= value <= 1 else f"must be between 0 and 1, got {value:g}"


def share_below_one(value: float) -> str | None:
    """A check: a probability of at least 0 and below 1."""
    return None if 0 <= value < 1 else f"must be at least 0 and below 1, got {value:g}"


def one_of(*allowed: int) -> Callable[[Any], str | None]:
    """A check: the value is one of a few numbers."""

    def check(value: Any) -> str | None:
        return None if value in allowed else f"must be one of {', '.join(map(str, allowed))}, got {value}"

    return check


def multiple_of(step: int) -> Callable[[Any], str | None]:
    """A check: a positive whole number divisible by `step`."""

    def check(value: Any) -> str | None:
        if value > 0 and value % step == 0:
            return None
        below = value // step * step
        near = f"; the nearest are {below} and {below + step}" if below > 0 else ""
        return f"must be a multiple of {step}, got {value}{near}"

    return check


def not_blank(value: str) -> str | None:
    """A check: the text holds more than blanks."""
    return None if value.strip() else f"must not be empty or blank, got {value!r}"


def rising_from(limit: float) -> Callable[[Any], str | None]:
    """A check: two numbers, the first at least `limit`, the second not below the first."""

    def check(value: Any) -> str | None:
        if math.isfinite(value.high) and limit <= value.low <= value.high:
            return None
        return f"must be two rising numbers from {limit:g}, got {value}"

    return check


def file_stem(value: str) -> str | None:
    """A check: a plain file name without folders, short enough for the endings that files of a run get."""
    length = len(value.encode("utf-8", "surrogateescape"))
    if length > _LONGEST_STEM:
        return f"must be at most {_LONGEST_STEM} bytes long, got {length}"
    if value and not any(mark in value for mark in '/\\:*?"<>|') and value not in (".", ".."):
        return None
    return f'must be a plain name without folder or the characters / \\ : * ? " < > |, got {value!r}'
