"""Trains a LoRA, or another network module, beside a frozen Stable Diffusion model. All options: --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.core.errors import run_script
from library.core.log import start_logging
from library.options.config import ConfigOptions
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS

NAME = "train_network.py"


def main(words: Sequence[str] | None = None) -> None:
    """Check, build, run. Heavy libraries are imported only after the options are known to be good."""
    script = SCRIPTS[NAME]
    options = parse_options(NAME, script.description, script.groups, sys.argv[1:] if words is None else words)
    start_logging()
    if options.of(ConfigOptions).output_config:
        from library.options.write import write_options_file

        print(f"options written to {write_options_file(options)}")
        return

    from library.training.preflight import check_network_run

    checked = check_network_run(options)

    from library.training.assemble import train_network

    train_network(checked)


if __name__ == "__main__":
    sys.exit(run_script(main))
