"""Files in the output folder as requests, for those who cannot send signals."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from library.core.errors import printable
from library.core.log import get_logger

log = get_logger(__name__)

LOOK_EVERY = 1.0  # seconds; the folder may lie on a network drive
_BLANK = re.compile(r"[ _-]")


class RequestFiles:
    """Looks for files by name and removes those it found.

    Names count in any case, with a blank, an underscore or a hyphen between their words, and with .txt behind them.
    Behind the run's own name and a dot they are meant for this run alone; those of other runs are left to them.

    Args:
        folder: where they appear; it need not be there yet.
        run: the name of the run.
        meanings: what each asks for, by its name in small letters and with blanks.
    """

    def __init__(self, folder: Path, run: str, meanings: Mapping[str, str]) -> None:
        self._folder = folder
        self._prefix = f"{run}."
        self._meanings = meanings
        self._next_look = 0.0
        self._stuck: set[str] = set()  # names of those that could not be removed

    def remove_left_overs(self) -> None:
        """Removes what was asked of an earlier run."""
        for name in self._take():
            log.warning(
                "%s was there before training began, so it is not obeyed; write it again if it is meant",
                printable(str(self._folder / name)),
            )

    def look(self) -> set[str]:
        """What is asked for by files that are new, looked for at most once a second."""
        now = time.monotonic()
        if now < self._next_look:
            return set()
        self._next_look = now + LOOK_EVERY
        return set(self._take().values())

    def _take(self) -> dict[str, str]:
        """The meanings of the files that were not seen before, by name; the files are gone then."""
        there = self._there()
        self._stuck &= there.keys()
        taken = {name: meaning for name, meaning in there.items() if name not in self._stuck}
        for name in list(taken):
            try:
                (self._folder / name).unlink()
            except FileNotFoundError:  # another run in this folder was quicker
                del taken[name]
            except OSError as error:
                self._stuck.add(name)
                shown, reason = printable(str(self._folder / name)), error.strerror
                log.warning("%s cannot be removed (%s); it is not looked at again while it is there", shown, reason)
        return taken

    def _there(self) -> dict[str, str]:
        found: dict[str, str] = {}
        with suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                meaning = self._meaning_of(entry.name) or self._meaning_of(entry.name.removeprefix(self._prefix))
                if meaning is not None and not entry.is_dir():
                    found[entry.name] = meaning
        return found

    def _meaning_of(self, name: str) -> str | None:
        return self._meanings.get(_BLANK.sub(" ", name.lower().removesuffix(".txt")))
