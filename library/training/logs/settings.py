"""Which trackers a run has, and what `--log_tracker_config` tells them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.core.errors import Problems, suggest_name
from library.core.optional import import_optional
from library.core.toml_files import TomlFile, read_toml
from library.options.checks import file_stem
from library.options.logs import ALL, TENSORBOARD, WANDB, LogOptions

Complain = Callable[[Any], str | None]  # what is wrong with a value

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
            _check_keys(file, (name,), table, _arguments_of(name), problems)
    if problems:
        problems.raise_if_any()
    return TrackerSettings(file.content.get(TENSORBOARD, {}), file.content.get(WANDB, {}))


def _tables(active: Sequence[str]) -> str:
    return ", ".join(f"[{name}]" for name in active)


def _arguments_of(tracker: str) -> dict[str, Complain]:
    """What the tracker's own function takes, asked of the function itself; and who says what values it cannot have."""
    if tracker == TENSORBOARD:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only wanted here

        known = inspect.signature(SummaryWriter).parameters
        return {name: partial(_unlike_default, argument.default) for name, argument in known.items()}
    of_settings = _settings_of_wandb()
    return {
        name: partial(_not_for_wandb, argument.annotation, of_settings.get(name))
        for name, argument in _signature(_wandb().init).parameters.items()
    }


def _settings_of_wandb() -> dict[str, Complain]:
    return {name: partial(_refused_as_setting, name) for name in _wandb().Settings.model_fields}


def _wandb() -> Any:
    return import_optional("wandb", "wandb", "--log_with wandb")


def _unlike_default(default: Any, value: Any) -> str | None:
    """SummaryWriter takes anything, and its thread dies of it later."""
    if isinstance(default, str):
        return (file_stem(value) if value else None) if isinstance(value, str) else "must be text"
    if isinstance(default, int):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return None if is_whole and value > 0 else "must be a whole number from 1 on"
    return None


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # a version that imports its types for type checkers alone: no value of it is checked
        return inspect.signature(function)


def _not_for_wandb(annotation: Any, as_setting: Complain | None, value: Any) -> str | None:
    complaint = None
    if not isinstance(annotation, str):
        adapter = import_optional("pydantic", "pydantic", "--log_with wandb").TypeAdapter  # wandb itself needs it
        complaint = _refused_by(adapter(annotation).validate_python, value)
    return complaint or (as_setting(value) if as_setting is not None else None)


def _refused_as_setting(name: str, value: Any) -> str | None:
    settings = _wandb().Settings
    return _refused_by(lambda given: settings(**{name: given}), value)


def _refused_by(validate: Callable[[Any], Any], value: Any) -> str | None:
    try:
        validate(value)
    except (ValueError, TypeError) as error:  # pydantic's are of the first kind, with an explanation for each place
        errors = getattr(error, "errors", None)
        return str(errors()[0]["msg"] if errors else error)
    return None


def _check_keys(
    file: TomlFile, place: tuple[str, ...], table: Mapping[str, Any], known: Mapping[str, Complain], problems: Problems
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
            _check_keys(file, (*place, key), value, _settings_of_wandb(), problems)
        elif complaint := known[key](value):
            problems.add(f"{name} cannot be {value!r}: {complaint}", where, f"see the documentation of {tracker}")
