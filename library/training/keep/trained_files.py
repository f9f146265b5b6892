"""What was learned as files, at any moment of a run."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from library.checkpoint.metadata import BaseModelFacts, RunFacts, average_values
from library.checkpoint.naming import average_file
from library.core.clock import now
from library.core.errors import Problem
from library.methods.base import Method
from library.models.forms import is_single_file, yaml_beside
from library.optim.optimizers import eval_mode, optimizer_name, rates_told, train_mode
from library.training.ema import Ema
from library.training.facts import saved_metadata
from library.training.guards import refuse_non_finite
from library.training.keep.save_failures import SAVE_FAILURES, save_problems
from library.training.keep.session import Session
from library.training.progress import Moment, RunPlan
from library.training.run import FullModelRun, Run


@dataclass(frozen=True)
class Written:
    """What became of a save: what has its final name now, and what went wrong."""

    paths: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


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

    def refuse_non_finite(self) -> None:
        """Called before `write`, by all processes: they have the same weights.

        Raises:
            UserError: weights are not finite.
        """
        refuse_non_finite(self.optimizer.param_groups)

    def smallest_size(self) -> int:
        """Bytes of the trained weights alone as `write` writes them, the average included; files have more."""
        numbers = sum(parameter.numel() for group in self.optimizer.param_groups for parameter in group["params"])
        return numbers * self.dtype.itemsize * (1 if self.ema is None else 2)

    def write(self, path: Path, moment: Moment) -> Written:
        """Writes under this name, and the average beside it; a failure of one does not keep the other from being
        written. The weights are, bit by bit, what they were before."""
        eval_mode(self.optimizer)
        try:
            return self._write(path, moment)
        finally:
            train_mode(self.optimizer)

    def _write(self, path: Path, moment: Moment) -> Written:
        metadata, written = self._metadata(path, moment), Written()
        self._attempt(path, metadata, written)
        if self.ema is not None:
            average = average_file(path)
            told = metadata | average_values(average.stem, self.run.options.validation.ema_decay)
            with self.ema.swapped():
                self._attempt(average, told, written)
        return written

    def _attempt(self, path: Path, metadata: dict[str, str], written: Written) -> None:
        """Writes one file, or the folder of a model."""
        before = _identity(path)
        try:
            self.method.save(path, self.dtype, metadata)
        except SAVE_FAILURES as error:
            written.problems.extend(save_problems(error, path))
        if _identity(path) not in (None, before):  # where a number did not fit, float32 was written all the same
            written.paths.extend([path, *self._beside(path)])

    def _beside(self, path: Path) -> list[Path]:
        """The configuration that a whole model in one file may need; one that stands there is of this save."""
        if not isinstance(self.run, FullModelRun) or not is_single_file(self.run.form):
            return []
        return [yaml for yaml in (yaml_beside(path),) if yaml.is_file()]

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


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Another one once the file or folder has been replaced; None where nothing is there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
