"""Trains a whole Stable Diffusion model on your own pictures (DreamBooth). All options: --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from library.core.errors import run_script


def main(words: Sequence[str] | None = None) -> None:
    """Check, build, run. Heavy libraries are imported only after the options are known to be good."""
    from library.options.command_line import read_command_line  # here, for Ctrl-C is answered from here on

    options = read_command_line("train_db.py", words)
    if options is None:
        return
    from library.training.checks.preflight import check_full_model_run
    from library.training.start import start

    start(check_full_model_run, options)


if __name__ == "__main__":
    sys.exit(run_script(main))
