"""Where a resumed run goes on from, and what has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from library.core.wording import some_of
from library.options.record import Kind

_VALUES_TOLD = 8  # of a list


@dataclass(frozen=True)
class Change:
    """Something that is not what it was when the state was made.

    Attributes:
        name: what people call it; of an option its flag.
        kind: what that means.
    """

    name: str
    old: Any
    new: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name}: {_shown(self.old)} -> {_shown(self.new)}"


@dataclass(frozen=True)
class ResumePoint:
    """The state that a run goes on from.

    Attributes:
        folder: of the state; whole, and checked.
        step: updates done.
        changes: what is not as it was when it was written, but for what nothing depends on.
        is_exact: the run goes on as if it had never stopped; else the options of now are put in force.
        is_foreign: another tool wrote it.
        warnings: what people should know before it goes on.
        begun_with: options that said where the run began, by name, as its state has them.
    """

    folder: Path
    step: int
    changes: tuple[Change, ...] = ()
    is_exact: bool = True
    is_foreign: bool = False
    warnings: tuple[str, ...] = ()
    begun_with: Mapping[str, Any] = field(default_factory=dict)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return some_of([str(part) for part in value[:_VALUES_TOLD]], len(value)) or "none"
    return str(value)
