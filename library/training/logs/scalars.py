"""Losses and rates as they are logged: JSONL always, trackers when asked.

Numbers stay on the device until a drain, so that logging never makes the loop wait for the device at every step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.core.log import get_logger
from library.optim.optimizers import rates_in_force
from library.training.logs.row_file import PEAK_MEMORY, SPEED, RowFile
from library.training.logs.tracker import Tracker

log = get_logger(__name__)

DRAIN_EVERY = 10  # updates; the first ones drain singly, so that something is seen at once
_TAG_OF_COMPONENT = {"text_encoder": "textencoder"}  # the tags dashboards know: lr/unet, lr/textencoder

Number = float | torch.Tensor
Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Row:
    step: int
    epoch: int
    numbers: Mapping[str, Number]


@dataclass(frozen=True)
class _Picture:
    step: int
    tag: str
    pixels: NDArray[np.uint8]


class _Stopwatch:
    """Seconds that go by, but for those inside a pause."""

    def __init__(self) -> None:
        self._paused = 0.0
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        now = time.perf_counter() if self._stopped_at is None else self._stopped_at
        return now - self._paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time stands still inside; not entered twice."""
        self._stopped_at = begun = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begun
            self._stopped_at = None


class ScalarLog:
    """Collects the numbers of each update and writes them in order.

    Args:
        rows: the JSONL log, or None on processes that do not write.
        trackers: they get the same numbers under the same tags, and pictures; none on processes that do not write.
        updates_per_epoch: the moving average of the loss covers as many updates.
        reduce: mean over processes of a tensor; called by all of them at the same updates.
        peak_memory: largest memory so far in MiB, or None where it is not known.
    """

    def __init__(
        self,
        rows: RowFile | None,
        trackers: Sequence[Tracker],
        updates_per_epoch: int,
        reduce: Reduce,
        peak_memory: Callable[[], float | None],
    ) -> None:
        self._rows = rows
        self._trackers = list(trackers)
        self._recent: deque[float] = deque(maxlen=updates_per_epoch)
        self._reduce = reduce
        self._peak_memory = peak_memory
        self._waiting: list[_Row | _Picture] = []
        self._losses: list[torch.Tensor] = []
        self._epoch_sum, self._epoch_count = 0.0, 0
        self._last_step = 0
        self._lost: dict[str, str] = {}  # trackers that failed, and why
        self._watch = _Stopwatch()
        self._since = self._last_record = self._watch()
        self.first_loss: float | None = None

    @property
    def average_loss(self) -> float | None:
        """Moving average of the loss over an epoch's length; None before the first drain."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def record(self, step: int, epoch: int, loss: torch.Tensor, numbers: Mapping[str, Number]) -> bool:
        """Takes the numbers of one update by tag; step counts from 1. True when they were drained.

        The loss is averaged over the processes; the other numbers are the same in all of them.
        """
        self._waiting.append(_Row(step, epoch, dict(numbers)))
        self._losses.append(loss.detach().float())
        self._last_record = self._watch()
        if step <= DRAIN_EVERY or step % DRAIN_EVERY == 0:
            self.drain()
            return True
        return False

    def drain(self) -> None:
        """Reads the waiting numbers from the device and writes them. All processes do it together."""
        if not self._losses:
            return
        losses = iter(self._reduce(torch.stack(self._losses)).tolist())
        waiting = [entry for entry in self._waiting if isinstance(entry, _Row)]
        known = iter(_read_together([row.numbers for row in waiting]))
        # to the last update, not to now: what comes after it belongs to none
        speed = len(waiting) / max(self._last_record - self._since, 1e-9)
        memory = self._peak_memory()
        shared = {SPEED: speed} | ({} if memory is None else {PEAK_MEMORY: round(memory, 1)})
        for entry in self._waiting:
            if isinstance(entry, _Picture):
                self._show(entry)
                continue
            self._count(loss := next(losses))
            numbers = {"loss/current": loss, "loss/average": self.average_loss or 0.0, **next(known), **shared}
            self._write(entry.step, entry.epoch, numbers, {"epoch": float(entry.epoch), **numbers})
        self._waiting.clear()
        self._losses.clear()
        self._flush()

    def write(self, step: int, epoch: int, numbers: Mapping[str, float]) -> None:
        """Writes numbers that come now and then, at once; what waits goes before them. All processes do it together."""
        self.drain()
        self._write(step, epoch, numbers, numbers)
        self._flush()

    def picture(self, step: int, epoch: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        """Hands a picture (H, W, 3), sRGB, to the trackers. It follows the rows that wait, so one process may do it."""
        if not self._trackers:
            return
        shown = _Picture(step, tag, pixels)
        if self._losses:
            self._waiting.append(shown)
        else:
            self._show(shown)

    def pause(self) -> AbstractContextManager[None]:
        """Inside is what no update takes, however long: validation, pictures, saves. `speed` leaves it out."""
        return self._watch.pause()

    def end_epoch(self, step: int, epoch: int) -> None:
        """Writes the mean loss of the epoch (counted from 1). All processes do it together."""
        self.drain()
        if self._epoch_count:
            self.write(step, epoch, {"loss/epoch_average": self._epoch_sum / self._epoch_count})
            self._epoch_sum, self._epoch_count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with averages, rows and trackers as if it had never stopped.

        What waits is drained, so all processes call it together, or `drain` before. Rows are on the disk then.
        """
        self.drain()
        self._each(lambda tracker: tracker.flush())
        return {
            "recent": torch.tensor(list(self._recent), dtype=torch.float32),  # as which losses are computed
            "epoch_sum": self._epoch_sum,
            "epoch_count": self._epoch_count,
            "first_loss": self.first_loss,
            "last_step": self._last_step,
            "rows": self._rows.state_dict() if self._rows is not None else None,
            "trackers": {tracker.name: tracker.state_dict() for tracker in self._trackers},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, in the same files; called before anything is recorded."""
        self._recent.extend(state["recent"].tolist())
        self._epoch_sum, self._epoch_count = state["epoch_sum"], state["epoch_count"]
        self.first_loss, self._last_step = state["first_loss"], state["last_step"]
        if self._rows is not None and state["rows"] is not None:
            self._rows.load_state_dict(state["rows"])
        for tracker in self._trackers:
            if tracker.name in state["trackers"]:
                tracker.load_state_dict(state["trackers"][tracker.name], self._last_step)
        self._since = self._watch()

    def close(self) -> None:
        """Closes the files. What waits is lost unless it was drained before, which all processes must do together."""
        if self._rows is not None:
            self._rows.close()
        self._each(lambda tracker: tracker.close())

    def told(self) -> list[str]:
        """Where everything was logged, and what was not, for the summary; after `close`."""
        lines = [] if self._rows is None else [self._rows.told()]
        lines += [line for tracker in self._trackers if (line := tracker.told())]
        return [*lines, *(f"{name}: not logged to the end, {reason}" for name, reason in self._lost.items())]

    def _count(self, loss: float) -> None:
        self._recent.append(loss)
        self._epoch_sum, self._epoch_count = self._epoch_sum + loss, self._epoch_count + 1
        self.first_loss = loss if self.first_loss is None else self.first_loss

    def _write(self, step: int, epoch: int, numbers: Mapping[str, float], shown: Mapping[str, float]) -> None:
        self._last_step = step
        if self._rows is not None:
            self._rows.add({"step": step, "epoch": epoch, **numbers})
        self._each(lambda tracker: tracker.numbers(step, shown))

    def _show(self, shown: _Picture) -> None:
        self._each(lambda tracker: tracker.picture(shown.step, shown.tag, shown.pixels))

    def _flush(self) -> None:
        if self._rows is not None:
            self._rows.flush()
        self._since = self._watch()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        """Does something with every tracker; one that fails is left out from then on."""
        for tracker in tuple(self._trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever a package of others raises, the training is worth more
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                told = "%s cannot be logged to any more, training goes on and the JSONL log has everything: %s"
                log.warning(told, tracker.name, reason)
                self._trackers.remove(tracker)
                self._lost[tracker.name] = reason


def _read_together(rows: Sequence[Mapping[str, Number]]) -> list[dict[str, float]]:
    """The same rows as plain numbers; what lies on a device is read at once, not one by one."""
    tensors = [number for row in rows for number in row.values() if isinstance(number, torch.Tensor)]
    values = iter(torch.stack([tensor.detach().float() for tensor in tensors]).tolist() if tensors else ())
    return [
        {tag: next(values) if isinstance(number, torch.Tensor) else float(number) for tag, number in row.items()}
        for row in rows
    ]


def rate_scalars(optimizer: torch.optim.Optimizer, resting: Collection[str] = ()) -> dict[str, Number]:
    """The rates by tag: as the schedule has them, and where the optimizer finds the rate itself, what it is.

    Args:
        resting: parts that do not learn at this update; their rate is 0.
    """
    rates: dict[str, Number] = {
        f"lr/{_component(group)}": 0.0 if group["name"] in resting else group["lr"] for group in optimizer.param_groups
    }
    found = rates_in_force(optimizer)
    for group in optimizer.param_groups:
        in_force = found.get(group["name"], group["lr"])
        if in_force is not group["lr"] and group["name"] not in resting:
            rates[f"lr/d*lr/{_component(group)}"] = in_force
    return {tag: rate for tag, rate in rates.items() if rate is not None}


def _component(group: Mapping[str, Any]) -> str:
    name = group["name"]
    return _TAG_OF_COMPONENT.get(name, name)
