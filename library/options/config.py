"""The options that say where other options come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option


@dataclass(frozen=True)
class ConfigOptions(OptionGroup):
    """Options from a file; the command line wins over it."""

    title: ClassVar[str] = "Options file"

    config_file: str | None = option(
        None, "TOML file with any of these options (tables only group them); the command line wins", metavar="FILE"
    )
    output_config: bool = option(False, "write the options in force to --config_file and stop; never overwrites")
