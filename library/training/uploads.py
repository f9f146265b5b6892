"""Hands saved files to the Hugging Face Hub, beside the training and never in its way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from library.training.run import Run


class Uploads:
    """Takes what was saved; here where nothing is uploaded."""

    def add(self, paths: Sequence[Path], is_state: bool = False) -> None:
        """Takes files and folders that are complete; returns at once."""

    def finish(self) -> list[str]:
        """Uploads what is left; returns a line for each thing that could not be uploaded."""
        return []


def make_uploads(run: Run, accelerator: Accelerator) -> Uploads:
    """The uploads of a run."""
    return Uploads()
