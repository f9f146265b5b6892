"""What was learned as files, at any moment of a run."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from library.checkpoint.metadata import BaseModelFacts, RunFacts, average_values
from library.checkpoint.naming import average_file
from library.core.clock import now
from library.core.errors import Problems
from library.methods.base import Method
from library.optim.optimizers import eval_mode, optimizer_name, rates_told, train_mode
from library.training.ema import Ema
from library.training.facts import saved_metadata
from library.training.guards import refuse_non_finite
from library.training.progress import Moment, RunPlan
from library.training.run import Run
from library.training.session import Session


@dataclass(frozen=True)
class TrainedFiles:
    """Writes what was learned, and its running average where one is kept.

    Args:
        optimizer: the prepared one.
        dtype: number format of the trained weights in files.
        base: what is known of the base model, once it has been hashed.
    """

    run: Run
    plan: RunPlan
    method: Method
    optimizer: Any
    ema: Ema | None
    dtype: torch.dtype
    base: Future[BaseModelFacts]
    session: Session

    def write(self, path: Path, moment: Moment) -> list[Path]:
        """Writes under this name; weights that are not finite are never written. Returns what was written.

        The weights are, bit by bit, what they were before.

        Raises:
            UserError: weights are not finite; or a number does not fit the format asked for, then they were saved in
                float32 instead.
            OSError: a file could not be written.
        """
        eval_mode(self.optimizer)
        try:
            return self._write(path, moment)
        finally:
            train_mode(self.optimizer)

    def _write(self, path: Path, moment: Moment) -> list[Path]:
        refuse_non_finite(self.optimizer.param_groups)
        metadata, problems = self._metadata(path, moment), Problems()
        problems.attempt(lambda: self.method.save(path, self.dtype, metadata))
        written = [path]
        if self.ema is not None:
            average = average_file(path)
            told = metadata | average_values(average.stem, self.run.options.validation.ema_decay)
            with self.ema.swapped():
                problems.attempt(lambda: self.method.save(average, self.dtype, told))
            written.append(average)
        problems.raise_if_any()
        return written

    def _metadata(self, path: Path, moment: Moment) -> dict[str, str]:
        facts = RunFacts(
            session_id=self.session.number,
            started_at=self.session.started_at,
            finished_at=now(),
            rates=rates_told(self.optimizer),
            optimizer=optimizer_name(self.run.options.optimizer),
            epochs=self.plan.epochs,
            max_steps=self.plan.total_updates,
            epoch=moment.epoch,
            step=moment.step,
        )
        return saved_metadata(self.run, self.plan, self.base.result(), facts, path)
