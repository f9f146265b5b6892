"""What people ask of a run while it trains: to stop, to save, to make samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from library.checkpoint.naming import last_stem
from library.core.log import get_logger
from library.training.requests.files import RequestFiles
from library.training.requests.signals import SAVE, STOP, SignalRequests

log = get_logger(__name__)

SAMPLE = "sample"
_KINDS = (STOP, SAVE, SAMPLE)
FILES = {"stop": STOP, "save now": SAVE, "sample now": SAMPLE}
_SHOWN = {STOP: "to save and stop", SAVE: "for a save", SAMPLE: "for sample pictures"}


@dataclass(frozen=True)
class Requests:
    """What was asked for since the last update; a stop saves as well."""

    stop: bool = False
    save: bool = False
    sample: bool = False


_NOTHING = Requests()


class RequestWatch:
    """Gathers requests by signal and by file; all processes of a run learn of them after the same update.

    Args:
        folder: the output folder, where the files appear.
        name: `--output_name`, or None; files may be meant for this run alone.
        accelerator: the processes.
        save_on_signal: whether a signal asks for a save, see `--save_on_signal`.
    """

    def __init__(self, folder: Path, name: str | None, accelerator: Accelerator, save_on_signal: bool) -> None:
        self._accelerator = accelerator
        self._is_main, self._is_one_of_several = accelerator.is_main_process, accelerator.num_processes > 1
        self._folder = folder
        self._signals = SignalRequests(save_on_signal, speaks=self._is_main)
        self._files = RequestFiles(folder, last_stem(name), FILES)
        self._found: set[str] = set()  # by files, since the last look
        self._stops = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, signals are requests; afterwards they do what they did before.

        Files that were there before are removed and not obeyed.
        """
        if self._is_main:
            self._files.remove_left_overs()
        with self._signals.heard() as are_heard:
            if not are_heard:
                log.info("no signals reach this thread: to save and stop, put a file named stop into %s", self._folder)
            yield

    def look(self) -> Requests:
        """What was asked for since the last call; called by all processes after each update."""
        asked = self._signals.take()
        if self._is_main:
            asked |= self._asked_by_files() | self._found
            self._found = set()
        if self._is_one_of_several:
            asked = self._asked_of_any(asked)
        if not asked:
            return _NOTHING
        self._stops = STOP in asked and SAMPLE not in asked  # who asks for both wants the samples first
        return Requests(STOP in asked, SAVE in asked, SAMPLE in asked)

    def is_stopping(self) -> bool:
        """Whether a stop was asked for, so that nothing long should be begun. For the main process; costs little."""
        if not self._stops:
            self._found |= self._asked_by_files()
        return self._stops or STOP in self._found or self._signals.is_stopping()

    def _asked_by_files(self) -> set[str]:
        asked = self._files.look()
        for kind in sorted(asked):
            log.info("a file in the output folder asks %s", _SHOWN[kind])
        return asked

    def _asked_of_any(self, asked: set[str]) -> set[str]:
        """What any of the processes was asked for."""
        mine = torch.tensor([float(kind in asked) for kind in _KINDS], device=self._accelerator.device)
        counts = self._accelerator.reduce(mine, reduction="sum").tolist()
        of_any = {kind for kind, count in zip(_KINDS, counts, strict=True) if count > 0}
        for kind in sorted(of_any - asked):
            log.info("another process is asked %s", _SHOWN[kind])
        return of_any
