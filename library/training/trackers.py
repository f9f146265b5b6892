"""Where numbers and pictures of a run are logged."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import torch
from accelerate import Accelerator

from library.training.methods import tracker_name
from library.training.progress import RunPlan
from library.training.run import Run
from library.training.scalars import ScalarLog


def open_log(run: Run, plan: RunPlan, accelerator: Accelerator) -> ScalarLog:
    def mean(values: torch.Tensor) -> torch.Tensor:
        return accelerator.reduce(values, reduction="mean")

    if not accelerator.is_main_process:
        return ScalarLog(None, None, plan.updates_per_epoch, mean)
    return ScalarLog(run.files.log, _tensorboard_folder(run), plan.updates_per_epoch, mean)


def _tensorboard_folder(run: Run) -> Path | None:
    if run.options.logs.logging_dir is None:
        return None
    stamp = datetime.now().strftime("%Y%m%d%H%M%S")
    return Path(run.options.logs.logging_dir) / f"{run.options.logs.log_prefix or ''}{stamp}" / tracker_name(run)
