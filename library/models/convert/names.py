"""Renaming by table: the longest dotted prefix that the table knows is replaced, the rest of the name stays."""

from __future__ import annotations

from collections.abc import Mapping


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """The name with its longest known dotted prefix replaced, or None where the table knows none.

    >>> rename("out.2.weight", {"out.2": "conv_out"})
    'conv_out.weight'
    """
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        replacement = table.get(".".join(parts[:count]))
        if replacement is not None:
            return ".".join([replacement, *parts[count:]])
    return None


def renamed(name: str, table: Mapping[str, str]) -> str:
    """As `rename`, for names that must be known. KeyError for one that is not."""
    found = rename(name, table)
    if found is None:
        raise KeyError(name)
    return found


def inverted(table: Mapping[str, str]) -> dict[str, str]:
    """The table read from right to left."""
    return {new: old for old, new in table.items()}
