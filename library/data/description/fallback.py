"""The one rule by which a dataset value falls back: subset, dataset, [general], command line, default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from library.data.description.schema import Table
from library.options.base import default_of, option_fields
from library.options.data import DataOptions

_FLAG_OF_KEY = {"batch_size": "train_batch_size"}  # every other key is named like its flag


@dataclass(frozen=True)
class Value:
    """A value in force and where it was given; `place` is None when it is the default."""

    value: Any
    place: str | None


def look_up(key: str, tables: Sequence[Table], options: DataOptions) -> Value:
    """The value of a dataset key: the first table that gives it, else the command line, else the default.

    Args:
        key: the key as dataset files spell it.
        tables: from the innermost to the outermost: subset, dataset, [general].
        options: the command line and its defaults.
    """
    for table in tables:
        if key in table.values:
            return Value(table.values[key], table.places[key])
    flag = _FLAG_OF_KEY.get(key, key)
    defaults = {item.name: default_of(item) for item in option_fields(DataOptions)}
    if flag not in defaults:  # keys that only folders have
        return Value({"num_repeats": 1.0, "is_reg": False}.get(key), None)
    value = getattr(options, flag)
    return Value(value, None if value == defaults[flag] else f"--{flag}")
