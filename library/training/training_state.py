"""All that a run must know to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from library.training.ema import Ema
from library.training.guards import GradientWatch, MovementWatch
from library.training.progress import Progress
from library.training.scalars import ScalarLog
from library.training.session import Session


@dataclass(frozen=True)
class TrainingState:
    """The parts of a run that change while it trains.

    Args:
        groups: optimizer groups as the method gave them; their parameters are the weights that train.
        optimizer: the prepared one.
        scaler: of fp16; None where there is none.
        ema: the running average; None where none is kept.
    """

    groups: Sequence[Mapping[str, Any]]
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: Any
    ema: Ema | None
    log: ScalarLog
    watch: GradientWatch
    movement: MovementWatch
    progress: Progress
    session: Session

    def state_dict(self) -> dict[str, Any]:
        """Every part by name: nested dicts and lists of tensors (the very ones, not copies), numbers and texts."""
        return {
            "progress": {"step": self.progress.step},
            "session": {"started_at": self.session.started_at, "number": self.session.number},
            "weights": {group["name"]: list(group["params"]) for group in self.groups},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
