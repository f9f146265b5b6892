"""Where numbers and pictures of a run are logged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from library.core.device import peak_memory_mib
from library.core.memory import peak_process_mib
from library.core.secrets import taken_secret
from library.core.sizes import Size, Span
from library.options.base import OptionGroup, info_of, option_fields
from library.options.logs import KEY_PLACES, TENSORBOARD, WANDB
from library.options.write import options_as_dict
from library.training.logs.row_file import RowFile
from library.training.logs.scalars import ScalarLog
from library.training.logs.settings import KEY_FLAG, active_trackers, read_tracker_settings
from library.training.logs.tensorboard import TensorBoardTracker
from library.training.logs.tracker import Tracker
from library.training.logs.wandb import WandbTracker
from library.training.methods import tracker_name
from library.training.progress import RunPlan
from library.training.run import Run

Scalar = bool | int | float | str

_PLACES = ("DIR", "FILE", "MODEL", "STATE")  # metavars of options that name a file or folder
_ARGUMENT = re.compile(r"(\w+=)(.*)", re.DOTALL)
_ABSOLUTE = re.compile(r"[/\\~]|[A-Za-z]:[/\\]")  # how a path begins that tells of this machine


def open_log(run: Run, plan: RunPlan, accelerator: Accelerator) -> ScalarLog:
    """The log of a run; on processes other than the main one it writes nothing, and keeps in step.

    Raises:
        UserError: `--log_tracker_config` was changed since it was checked.
    """

    def mean(values: torch.Tensor) -> torch.Tensor:
        return accelerator.reduce(values, reduction="mean")

    def peak_memory() -> float | None:
        return peak_memory_mib(accelerator.device) or peak_process_mib()

    if not accelerator.is_main_process:
        return ScalarLog(None, (), plan.updates_per_epoch, mean, peak_memory)
    rows = RowFile(run.files.log, run.options.output.overwrite)
    return ScalarLog(rows, _trackers(run), plan.updates_per_epoch, mean, peak_memory)


def _trackers(run: Run) -> list[Tracker]:
    options = run.options.logs
    settings, config = read_tracker_settings(options), tracker_config(run)
    project = options.log_tracker_name or tracker_name(run)
    trackers: list[Tracker] = []
    if TENSORBOARD in active_trackers(options):
        root = Path(str(options.logging_dir))
        trackers.append(TensorBoardTracker(root, options.log_prefix or "", project, config, settings.tensorboard))
    if WANDB in active_trackers(options):
        folder = Path(options.logging_dir) if options.logging_dir is not None else run.files.folder
        name = {} if options.wandb_run_name is None else {"name": options.wandb_run_name}
        key = taken_secret(options.wandb_api_key, KEY_FLAG, KEY_PLACES)
        trackers.append(WandbTracker(folder, project, config, {**settings.wandb, **name}, key))
    return trackers


def tracker_config(run: Run) -> dict[str, Scalar]:
    """The options in force, as trackers show them: no secrets, and of files and folders the bare names."""
    groups = [group for group in vars(run.options).values() if isinstance(group, OptionGroup)]
    found: dict[str, Any] = dict(run.options.record)  # those of the script's own kind of run, places are bare there
    for group in groups:
        places = [item.name for item in option_fields(type(group)) if info_of(item).metavar in _PLACES]
        found |= {name: _bare(value) if name in places else value for name, value in options_as_dict(group).items()}
    return {name: _shown(value) for name, value in found.items() if value is not None}


def _shown(value: Any) -> Scalar:
    """A plain number, or text: TensorBoard takes no lists."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple, Size, Span)):
        return ", ".join(_argument(part) if isinstance(part, str) else str(_shown(part)) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_shown(part)}" for name, part in value.items())
    return str(value)


def _argument(word: str) -> str:
    """A word of a list; of those like `key=value` a value that is a file or folder of this machine is told bare."""
    found = _ARGUMENT.fullmatch(word)
    return found[1] + _bare(found[2]) if found and _ABSOLUTE.match(found[2]) else word


def _bare(place: Any) -> Any:
    """The name of a file or folder without the folders before it; of several, each."""
    if isinstance(place, tuple):
        return tuple(map(_bare, place))
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] if isinstance(place, str) else place
