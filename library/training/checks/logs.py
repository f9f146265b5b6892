"""Whether a run can be logged as it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

from library.core.atomic_io import why_not_writable
from library.core.errors import Problems, UserError
from library.core.optional import import_optional
from library.core.secrets import taken_secret
from library.options.logs import KEY_PLACES, TENSORBOARD, WANDB, LogOptions
from library.training.logs.settings import KEY_FLAG, active_trackers, read_tracker_settings

_NEEDS_NO_KEY = ("offline", "dryrun")
_KEY_LENGTH = 40  # the least that wandb takes


def check_logs(options: LogOptions, problems: Problems) -> None:
    """Whether the trackers are there and can write, and every option of theirs has one."""
    active = active_trackers(options)
    _check_companions(options, active, problems)
    if options.logging_dir is not None:
        _check_writable(Path(options.logging_dir), problems)
    packages_are_there = all([_is_there(tracker, problems) for tracker in active])
    if not packages_are_there:
        return
    settings = problems.attempt(lambda: read_tracker_settings(options)) if active else None
    if WANDB in active:
        mode = str(settings.wandb.get("mode", "")) if settings is not None else ""
        problems.attempt(lambda: _check_wandb(options, mode or os.environ.get("WANDB_MODE", "online")))
        if settings is not None and "name" in settings.wandb and options.wandb_run_name is not None:
            problems.add("the run's name stands in both", "--wandb_run_name, --log_tracker_config", "keep one of them")


def _check_companions(options: LogOptions, active: tuple[str, ...], problems: Problems) -> None:
    """Options that would do nothing."""
    if TENSORBOARD in active and options.logging_dir is None:
        problems.add("TensorBoard needs a folder", f"--log_with {options.log_with}", "name it with --logging_dir")
    if options.log_prefix is not None and TENSORBOARD not in active:
        fix = "give --logging_dir and log with tensorboard, or remove it"
        problems.add("it names TensorBoard's folder, and there is none", "--log_prefix", fix)
    for name in ("log_tracker_name", "log_tracker_config"):
        if getattr(options, name) is not None and not active:
            fix = "give --logging_dir for TensorBoard, or --log_with wandb"
            problems.add("nothing is logged with a tracker, so it would do nothing", f"--{name}", fix)
    for name in ("wandb_run_name", "wandb_api_key"):
        if getattr(options, name) is not None and WANDB not in active:
            problems.add("nothing is logged with wandb, so it would do nothing", f"--{name}", "give --log_with wandb")


def _check_writable(folder: Path, problems: Problems) -> None:
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    if nearest is None or not nearest.is_dir():
        return  # a file in the way is told with the output folder
    error = why_not_writable(nearest)
    if error is not None:
        what = f"nothing can be written in {nearest}: {error.strerror or error}"
        problems.add(what, "--logging_dir", "choose another folder")


def _is_there(tracker: str, problems: Problems) -> bool:
    package = {TENSORBOARD: "tensorboard", WANDB: "wandb"}[tracker]
    used_for = "--log_with wandb" if tracker == WANDB else "--logging_dir"
    return problems.attempt(lambda: import_optional(package, package, used_for)) is not None


def _check_wandb(options: LogOptions, mode: str) -> None:
    """Whether wandb may log, and finds its key, without asking a person."""
    if mode == "disabled":
        fix = "unset WANDB_MODE (or mode in --log_tracker_config), or log without wandb"
        raise UserError.of("wandb is switched off, so nothing would be logged with it", "--log_with", fix)
    wandb = import_optional("wandb", "wandb", "--log_with wandb")
    key = taken_secret(options.wandb_api_key, KEY_FLAG, KEY_PLACES)
    if key is not None:
        if len(key) < _KEY_LENGTH or len(key.split()) > 1:
            fix = "copy it again from https://wandb.ai/authorize"
            raise UserError.of("this is no key of wandb", KEY_FLAG, fix)  # and no word of what it is
    elif mode not in _NEEDS_NO_KEY and not wandb.api.api_key:
        fix = "run `wandb login` or set WANDB_API_KEY; WANDB_MODE=offline logs on this disk only"
        raise UserError.of("wandb has no key here", "--log_with", fix)
