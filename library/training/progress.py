"""How long a run is and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

from library.data.planner import Planner


@dataclass(frozen=True)
class RunPlan:
    """The length of a run.

    Attributes:
        total_updates: optimizer steps of the whole run.
        updates_per_epoch: of the first epoch; rotating regularisation pictures can change it by a few.
        batches_per_epoch: micro-batches of the first epoch, over all processes.
        epochs: epochs begun by the end of the run.
        accumulation: micro-batches an update takes from each process.
        processes: processes that train together.
    """

    total_updates: int
    updates_per_epoch: int
    batches_per_epoch: int
    epochs: int
    accumulation: int
    processes: int


def plan_run(planner: Planner, max_steps: int | None, max_epochs: int | None) -> RunPlan:
    """The plan for `max_epochs` whole epochs if given (it wins), else for `max_steps` updates.

    Raises:
        ValueError: when neither is given.
    """
    if max_epochs is not None:
        total, epochs = planner.updates_in_epochs(max_epochs), max_epochs
    elif max_steps is not None:
        total, epochs = max_steps, _epochs_begun(planner, max_steps)
    else:
        raise ValueError("neither steps nor epochs")
    return RunPlan(
        total_updates=total,
        updates_per_epoch=planner.updates_per_epoch,
        batches_per_epoch=planner.batches_per_epoch,
        epochs=epochs,
        accumulation=planner.accumulation,
        processes=planner.process_count,
    )


def _epochs_begun(planner: Planner, updates: int) -> int:
    epochs, reached = 0, 0
    while reached < updates:
        reached += planner.updates_in_epoch(epochs)
        epochs += 1
    return epochs


@dataclass
class Progress:
    """Updates done, and the epoch (from 0) of the last one."""

    step: int = 0
    epoch: int = 0
