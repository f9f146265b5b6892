"""Encodes the pictures of a metadata file once, and stores latents and buckets where trainings find them.

    python finetune/prepare_buckets_latents.py pictures meta_clean.json meta_lat.json model.safetensors

Exit code 3 when a picture could not be read; the others are prepared then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import run_script
from library.options.command_line import read_command_line
from library.options.preparation import LatentPreparationOptions

SCRIPT = "finetune/prepare_buckets_latents.py"


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, checks, then imports what is slow.

    Raises:
        UserError: with every problem that was found.
        Incomplete: when a picture could not be read.
    """
    options = read_command_line(SCRIPT, words)
    if options is None:
        return
    from library.training.checks.preparation import check_preparation

    found = check_preparation(options.of(LatentPreparationOptions))
    from library.training.prepare_latents import prepare_latents

    prepare_latents(found)


if __name__ == "__main__":
    sys.exit(run_script(main))
