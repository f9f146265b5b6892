"""What every training script does with its command line before it imports anything heavy."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.core.log import start_logging
from library.core.secrets import taken_secret
from library.options.base import info_of, option_fields
from library.options.config import ConfigOptions
from library.options.parse import OptionValues, parse_options
from library.options.scripts import SCRIPTS
from library.options.write import write_options_file


def read_command_line(script: str, words: Sequence[str] | None) -> OptionValues | None:
    """The options of a script; None when they were only to be written to a file, which is done then.

    Args:
        script: a name in `SCRIPTS`.
        words: the command line without the program's name; None takes that of this process.

    Raises:
        UserError: with every mistake in the options.
    """
    entry = SCRIPTS[script]
    options = parse_options(script, entry.description, entry.groups, sys.argv[1:] if words is None else words)
    start_logging()
    _hide_secrets(options)
    if not options.of(ConfigOptions).output_config:
        return options
    print(f"options written to {write_options_file(options)}")
    return None


def _hide_secrets(options: OptionValues) -> None:
    """Hides tokens and keys from those who list processes, and tells where they should stand instead."""
    for group in options.groups:
        for item in option_fields(type(group)):
            better = info_of(item).better
            if better is not None:
                taken_secret(getattr(group, item.name), f"--{item.name}", better)
