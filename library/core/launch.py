"""What a launcher (`torchrun`, `accelerate launch`) has told this process; asked before any heavy library is there."""

from __future__ import annotations

import os


def launched_processes() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
