"""Losses and rates as they are logged: JSONL always, TensorBoard when asked.

Numbers stay on the device until a drain, so that logging never makes the loop wait for the device at every step.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from library.optim.optimizers import rates_in_force

DRAIN_EVERY = 10  # updates; the first ones drain singly, so that something is seen at once
_TAG_OF_COMPONENT = {"text_encoder": "textencoder"}  # the tags dashboards know: lr/unet, lr/textencoder

Number = float | torch.Tensor
Reduce = Callable[[torch.Tensor], torch.Tensor]


class ScalarLog:
    """Collects the numbers of each update and writes them in order.

    Args:
        jsonl: file of the JSONL log, or None on processes that do not write.
        tensorboard: folder of the TensorBoard events, or None.
        updates_per_epoch: the moving average of the loss covers as many updates.
        reduce: mean over processes of a tensor; called by all of them at the same updates.
    """

    def __init__(self, jsonl: Path | None, tensorboard: Path | None, updates_per_epoch: int, reduce: Reduce) -> None:
        self._file: IO[str] | None = _open(jsonl) if jsonl is not None else None
        self._writer = _tensorboard_writer(tensorboard) if tensorboard is not None else None
        self._recent: deque[float] = deque(maxlen=updates_per_epoch)
        self._reduce = reduce
        self._waiting: list[tuple[int, int, dict[str, Number]]] = []
        self._losses: list[torch.Tensor] = []
        self._last_drain = time.perf_counter()
        self._epoch_losses: list[float] = []
        self.first_loss: float | None = None

    @property
    def average_loss(self) -> float | None:
        """Moving average of the loss over an epoch's length; None before the first drain."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def record(self, step: int, epoch: int, loss: torch.Tensor, numbers: Mapping[str, Number]) -> bool:
        """Takes the numbers of one update by tag; step counts from 1. True when they were drained.

        The loss is averaged over the processes; the other numbers are the same in all of them.
        """
        self._waiting.append((step, epoch, dict(numbers)))
        self._losses.append(loss.detach().float())
        if step <= DRAIN_EVERY or step % DRAIN_EVERY == 0:
            self.drain()
            return True
        return False

    def drain(self) -> None:
        """Reads the waiting numbers from the device and writes them."""
        if not self._waiting:
            return
        losses = self._reduce(torch.stack(self._losses)).tolist()
        rows = _read_together([numbers for _, _, numbers in self._waiting])
        now = time.perf_counter()
        speed = len(self._waiting) / max(now - self._last_drain, 1e-9)
        for (step, epoch, _), known, loss in zip(self._waiting, rows, losses, strict=True):
            self._recent.append(loss)
            self._epoch_losses.append(loss)
            self.first_loss = loss if self.first_loss is None else self.first_loss
            row = {"loss/current": loss, "loss/average": self.average_loss, **known, "speed": speed}
            self._write({"step": step, "epoch": epoch, **row})
        self._waiting.clear()
        self._losses.clear()
        self._last_drain = now
        self._flush()

    def write(self, step: int, epoch: int, numbers: Mapping[str, float]) -> None:
        """Writes numbers that come now and then, at once; what waits goes before them."""
        self.drain()
        self._write({"step": step, "epoch": epoch, **numbers})
        self._flush()

    def picture(self, step: int, epoch: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        """Hands a picture (H, W, 3), sRGB, to the trackers that show pictures."""

    def end_epoch(self, step: int, epoch: int) -> None:
        """Writes the mean loss of the epoch (counted from 1)."""
        self.drain()
        if self._epoch_losses:
            self._write(
                {"step": step, "epoch": epoch, "loss/epoch_average": sum(self._epoch_losses) / len(self._epoch_losses)}
            )
            self._epoch_losses.clear()
            self._flush()

    def close(self) -> None:
        """Closes the files. What waits is lost unless it was drained before, which all processes must do together."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            finite = {tag: value if math.isfinite(value) else None for tag, value in row.items()}
            self._file.write(json.dumps(finite, allow_nan=False) + "\n")  # JSON knows no NaN
        if self._writer is not None:
            for tag, value in row.items():
                if tag not in ("step", "epoch"):
                    self._writer.add_scalar(tag, value, row["step"])

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()


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


def _open(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")


def _tensorboard_writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only wanted with --logging_dir

    return SummaryWriter(str(folder))
