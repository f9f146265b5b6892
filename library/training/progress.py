"""How long a run is and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RunPlan:
    """The length of a run.

    Attributes:
        total_updates: optimizer steps of the whole run.
        updates_per_epoch: of the first epoch; rotating regularisation pictures can change it by a few.
        batches_per_epoch: micro-batches of the first epoch, over all processes.
        epochs: epochs begun by the end of the run.
        whole_epochs: epochs ended by then; the last one may be cut short.
        accumulation: micro-batches an update takes from each process.
        processes: processes that train together.
    """

    total_updates: int
    updates_per_epoch: int
    batches_per_epoch: int
    epochs: int
    whole_epochs: int
    accumulation: int
    processes: int


class EpochLengths(Protocol):
    """How long each epoch is; a `Planner` knows it."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of each process in an update."""

    @property
    def process_count(self) -> int:
        """Processes that train together."""

    def batches_in_epoch(self, epoch: int) -> int:
        """Micro-batches over all processes."""

    def updates_in_epoch(self, epoch: int) -> int:
        """Optimizer steps."""

    def updates_in_epochs(self, epochs: int) -> int:
        """Optimizer steps of the first epochs together."""


def plan(
    images: Sequence[int],
    repeats: int,
    batch_size: int,
    accumulation: int = 1,
    processes: int = 1,
    max_steps: int | None = None,
    max_epochs: int | None = None,
) -> RunPlan:
    """The length of a run whose epochs are all alike.

    Args:
        images: pictures of each bucket; a batch holds pictures of one bucket only.
        repeats: uses of each picture in an epoch.

    Raises:
        ValueError: when neither steps nor epochs are given.
    """
    batches = sum(-(-count * repeats // batch_size) for count in images)
    return plan_run(_EqualEpochs(batches, accumulation, processes), max_steps, max_epochs)


@dataclass(frozen=True)
class _EqualEpochs:
    """Epochs of as many micro-batches each."""

    batches: int
    accumulation: int
    process_count: int

    def batches_in_epoch(self, epoch: int) -> int:
        return self.batches

    def updates_in_epoch(self, epoch: int) -> int:
        return -(-self.batches // (self.accumulation * self.process_count))

    def updates_in_epochs(self, epochs: int) -> int:
        return epochs * self.updates_in_epoch(0)


def plan_run(epochs: EpochLengths, max_steps: int | None, max_epochs: int | None) -> RunPlan:
    """The plan for `max_epochs` whole epochs if given (it wins), else for `max_steps` updates.

    Raises:
        ValueError: when neither is given.
    """
    if max_epochs is not None:
        total, begun, ended = epochs.updates_in_epochs(max_epochs), max_epochs, max_epochs
    elif max_steps is not None:
        total, begun = max_steps, _epochs_begun(epochs, max_steps)
        ended = begun if epochs.updates_in_epochs(begun) == total else begun - 1
    else:
        raise ValueError("neither steps nor epochs")
    return RunPlan(
        total_updates=total,
        updates_per_epoch=epochs.updates_in_epoch(0),
        batches_per_epoch=epochs.batches_in_epoch(0),
        epochs=begun,
        whole_epochs=ended,
        accumulation=epochs.accumulation,
        processes=epochs.process_count,
    )


def _epochs_begun(lengths: EpochLengths, updates: int) -> int:
    epochs, reached = 0, 0
    while reached < updates:
        reached += lengths.updates_in_epoch(epochs)
        epochs += 1
    return epochs


@dataclass
class Progress:
    """Updates done, and the epoch (from 0) of the last one."""

    step: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Moment:
    """A place between two updates, where things may be due.

    Attributes:
        step: updates done; 0 before the first.
        epoch: of the last update, counted from 1.
        ends_epoch: it was the last one of its epoch.
        is_last: it was the last one of the run.
    """

    step: int
    epoch: int
    ends_epoch: bool = False
    is_last: bool = False


@dataclass(frozen=True)
class Moments:
    """When something is due: every so many updates, every so many epochs (None for never), after the last update."""

    every_steps: int | None = None
    every_epochs: int | None = None
    at_end: bool = False

    def due(self, moment: Moment) -> bool:
        """Whether it is time."""
        return self.due_by_step(moment) or self.due_by_epoch(moment) or (self.at_end and moment.is_last)

    def due_by_step(self, moment: Moment) -> bool:
        """Whether so many updates are done again."""
        return self.every_steps is not None and moment.step > 0 and moment.step % self.every_steps == 0

    def due_by_epoch(self, moment: Moment) -> bool:
        """Whether so many epochs have ended again, the last one just now."""
        return self.every_epochs is not None and moment.ends_epoch and moment.epoch % self.every_epochs == 0
