"""Options as text: the TOML of `--output_config` and the page docs/options.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from library.core.atomic_io import write_text_whole
from library.core.errors import UserError
from library.core.sizes import Size
from library.options.base import OptionGroup, info_of, option_fields, value_type
from library.options.config import ConfigOptions
from library.options.parse import OptionValues, config_path, help_text, names_of
from library.options.scripts import Script


def write_options_file(values: OptionValues) -> Path:
    """Writes the options in force to `--config_file`.

    Raises:
        UserError: when the file exists already.
    """
    path = config_path(str(values.of(ConfigOptions).config_file))
    if path.exists():
        raise UserError.of(f"{path} exists already", "--output_config", "name another file or remove this one")
    write_text_whole(path, options_as_toml(values.groups))
    return path


def options_as_toml(groups: Sequence[OptionGroup]) -> str:
    """TOML text that `--config_file` reads back to the same options; one table a group."""
    tables = []
    for group in groups:
        if isinstance(group, ConfigOptions):
            continue
        rows = [f"{name} = {_toml_value(value)}" for name, value in options_as_dict(group).items() if value is not None]
        tables.append("\n".join([f"[{type(group).__name__}]", *rows]))
    return "\n\n".join(tables) + "\n"


def options_as_dict(group: OptionGroup) -> dict[str, Any]:
    """Names and values of one group of options, without secrets."""
    shown = [item for item in option_fields(type(group)) if not info_of(item).secret]
    return {item.name: getattr(group, item.name) for item in shown}


def _toml_value(value: Any) -> str:
    # JSON's spelling of text, numbers, true/false and flat lists is also TOML's
    return json.dumps(list(value) if isinstance(value, (tuple, Size)) else value, ensure_ascii=False)


def options_page(scripts: Mapping[str, Script]) -> str:
    """The text of docs/options.md: every option of every script."""
    groups: dict[type[OptionGroup], list[str]] = {}
    for name, script in scripts.items():
        for group in (*script.groups, ConfigOptions):
            groups.setdefault(group, []).append(name)
    lines = [
        "# Options",
        "",
        "Made from `library/options` by `python tools/write_options_page.py`; do not edit by hand.",
        "Switches can be given alone (`--cache_latents`) or with `true`/`false`, which overrides `--config_file`.",
    ]
    for group, users in groups.items():
        lines += ["", f"## {group.title}", "", f"Understood by {', '.join(f'`{user}`' for user in users)}.", ""]
        lines += ["| Option | Value | Meaning |", "| --- | --- | --- |"]
        lines += [_row(group, item) for item in option_fields(group)]
    return "\n".join(lines) + "\n"


def _row(group: type[OptionGroup], item: Any) -> str:
    kind, info = value_type(group, item.name), info_of(item)
    names = {bool: "switch", int: "whole number", float: "number", str: "text", Size: "size"}
    value = ", ".join(f"`{choice}`" for choice in info.choices) or names.get(kind, "list of texts")
    flags = f"`{info.metavar}`" if info.positional else ", ".join(f"`--{name}`" for name in names_of(item))
    return f"| {flags} | {value} | {help_text(item).replace('|', '/')} |"
