"""Which trackers a run has, and what `--log_tracker_config` tells them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.core.errors import Problems, suggest_name
from library.core.optional import import_optional
from library.core.toml_files import TomlFile, read_toml
from library.options.logs import ALL, TENSORBOARD, WANDB, LogOptions

KEY_FLAG = "--wandb_api_key"
# arguments of `SummaryWriter` and `wandb.init` that are said elsewhere, and where
_SAID_ELSEWHERE: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        TENSORBOARD: {
            "log_dir": "say it with --logging_dir",
            "comment": "say it with --log_prefix",
            "purge_step": "it follows from --resume",
        },
        WANDB: {
            "project": "say it with --log_tracker_name",
            "dir": "say it with --logging_dir",
            "id": "a resumed run keeps the one of its state",
            "resume": "say it with --resume",
            "resume_from": "say it with --resume",
            "config": "the options of the run are sent",
            "reinit": "each run of a script is a run of its own",
            "settings.api_key": "run `wandb login`, or set WANDB_API_KEY",
            "settings.run_id": "a resumed run keeps the one of its state",
            "settings.root_dir": "say it with --logging_dir",
        },
    }
)


@dataclass(frozen=True)
class TrackerSettings:
    """Keyword arguments for `SummaryWriter` and for `wandb.init`."""

    tensorboard: Mapping[str, Any]
    wandb: Mapping[str, Any]


def active_trackers(options: LogOptions) -> tuple[str, ...]:
    """The trackers that are asked for, by name."""
    if options.log_with is None:
        return (TENSORBOARD,) if options.logging_dir is not None else ()
    return (TENSORBOARD, WANDB) if options.log_with == ALL else (options.log_with,)


def read_tracker_settings(options: LogOptions) -> TrackerSettings:
    """The tables of `--log_tracker_config`; empty ones where there is none.

    Raises:
        UserError: with every table and key that means nothing; a package that would know is missing.
    """
    if options.log_tracker_config is None:
        return TrackerSettings({}, {})
    file = read_toml(Path(options.log_tracker_config), "--log_tracker_config")
    problems, active = Problems(), active_trackers(options)
    for name, table in file.content.items():
        if not isinstance(table, dict):
            problems.add(f"{name} stands in no table", file.where((name,)), f"put it below one of: {_tables(active)}")
        elif name not in (TENSORBOARD, WANDB):
            fix = suggest_name(name, active, f"the tables are: {_tables(active)}")
            problems.add(f"[{name}] is the table of no tracker", file.where((name,)), fix)
        elif name not in active:
            fix = "remove the table, or ask for the tracker with --log_with"
            problems.add(f"[{name}] would do nothing: nothing is logged with it", file.where((name,)), fix)
        else:
            _check_keys(file, (name,), table, _known_arguments(name), problems)
    if problems:
        problems.raise_if_any()
    return TrackerSettings(file.content.get(TENSORBOARD, {}), file.content.get(WANDB, {}))


def _tables(active: Collection[str]) -> str:
    return ", ".join(f"[{name}]" for name in active)


def _known_arguments(tracker: str) -> Collection[str]:
    """What the tracker's own function takes, asked of the function itself."""
    if tracker == TENSORBOARD:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only wanted here

        return list(inspect.signature(SummaryWriter).parameters)
    return list(inspect.signature(import_optional("wandb", "wandb", "--log_with wandb").init).parameters)


def _check_keys(
    file: TomlFile, place: tuple[str, ...], table: Mapping[str, Any], known: Collection[str], problems: Problems
) -> None:
    tracker, elsewhere = place[0], _SAID_ELSEWHERE[place[0]]
    for key, value in table.items():
        name = ".".join((*place[1:], key))
        where = file.where((*place, key))
        if name in elsewhere:
            problems.add(f"{name} cannot be set here", where, elsewhere[name])
        elif key not in known:
            fix = suggest_name(key, [k for k in known if k not in elsewhere], f"see the documentation of {tracker}")
            problems.add(f"{tracker} knows no {name}", where, fix)
        elif (tracker, name) == (WANDB, "settings") and isinstance(value, dict):
            fields = import_optional("wandb", "wandb", "--log_with wandb").Settings.model_fields
            _check_keys(file, (*place, key), value, list(fields), problems)
