"""Whether a run can go on from the state that is asked for, and what has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.core.errors import Problems
from library.options.keeping import KeepingOptions
from library.training.progress import RunPlan


@dataclass(frozen=True)
class ResumePoint:
    """The state that a run goes on from.

    Attributes:
        folder: of the state; whole, and checked.
        step: updates done.
    """

    folder: Path
    step: int


def check_resume(
    keeping: KeepingOptions, output: Path, name: str | None, record: Mapping[str, Any], plan: RunPlan | None,
    problems: Problems,
) -> ResumePoint | None:  # fmt: skip
    """The state of `--resume`; None where none is asked for, or it was refused."""
    return None
