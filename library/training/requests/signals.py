"""Signals as requests: the first one asks, the second one ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from library.core.errors import EXIT_INTERRUPTED
from library.core.log import get_logger
from library.core.signals import handled_by

log = get_logger(__name__)

STOP, SAVE = "stop", "save"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAVE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None) or getattr(signal, "SIGBREAK", None)  # Windows
# A launcher may pass on what the terminal has sent to everyone, and a loader process that was forked a moment ago still
# hears for this one: within this time (in seconds) a second signal is the first one once more.
_SAME = 1.0
_STDERR = 2
_STOPPING = "finishing this update, then saving; again to end at once"
_ENDING = "ended at once; what was saved before is whole"
_SAVING = "saving after this update"
_UNHEARD = "%s saves nothing: whatever started this process made it ignore the signal; a file named save now works"


class SignalRequests:
    """Hears SIGINT (Ctrl-C) and SIGTERM, and the signal of `--save_on_signal`.

    Handlers only count, for Python runs them in the main thread and between two of its own steps. A thread beside it
    answers, and ends the process at the second signal: so both work while the main thread waits inside a library.

    Args:
        save_on_signal: whether SIGUSR1 (Ctrl+Break on Windows) is heard.
        speaks: whether this process answers; of several, one does.
    """

    def __init__(self, save_on_signal: bool, speaks: bool) -> None:
        self._meaning: dict[int, str] = dict.fromkeys(STOP_SIGNALS, STOP)
        if save_on_signal and SAVE_SIGNAL is not None:
            self._meaning[SAVE_SIGNAL] = SAVE
        self._speaks = speaks
        self._heard = {STOP: 0, SAVE: 0}  # only ever counted up: a handler may run in the middle of `take`
        self._taken = dict(self._heard)

    def take(self) -> set[str]:
        """What was asked for since the last call: `STOP`, `SAVE`."""
        heard = dict(self._heard)
        new = {what for what, count in heard.items() if count != self._taken[what]}
        self._taken = heard
        return new

    def is_stopping(self) -> bool:
        """Whether the next call of `take` will have a `STOP`."""
        return self._heard[STOP] != self._taken[STOP]

    @contextmanager
    def heard(self) -> Iterator[bool]:
        """Inside, signals are requests. A signal that the process was told to ignore stays ignored.

        Yields:
            Whether it is so: Python can do it in its main thread alone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield False
            return
        ear, mouth = socket.socketpair()  # what Windows can do as well
        mouth.setblocking(False)
        listener = threading.Thread(target=self._listen, args=(ear,), name="signals", daemon=True)
        listener.start()
        former_mouth = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        try:
            with handled_by(self._count, self._meaning) as heeded:
                if self._speaks and SAVE_SIGNAL is not None and SAVE_SIGNAL in self._meaning.keys() - heeded:
                    log.warning(_UNHEARD, SAVE_SIGNAL.name)
                yield True
        finally:
            signal.set_wakeup_fd(former_mouth)
            mouth.shutdown(socket.SHUT_RDWR)  # closing would not end it: forked processes hold it as well
            listener.join()
            mouth.close()
            ear.close()

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._heard[self._meaning[number]] += 1

    def _listen(self, ear: socket.socket) -> None:
        """Reads the numbers that Python writes at the very moment of each signal."""
        asked_at: float | None = None
        while received := ear.recv(64):
            for what in map(self._meaning.get, received):
                if what == SAVE:
                    self._say(_SAVING)
                elif what == STOP and asked_at is None:
                    asked_at = time.monotonic()
                    self._say(_STOPPING)
                elif what == STOP and asked_at is not None and time.monotonic() - asked_at > _SAME:
                    self._say(_ENDING)
                    _end_at_once()

    def _say(self, text: str) -> None:
        if self._speaks:
            with suppress(OSError):  # nobody may be there to read it
                os.write(_STDERR, f"\n{text}\n".encode())  # not by the log, which the main thread may hold


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM interrupts as Ctrl-C does. What follows within a second is the same signal once more."""
    came_at: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came_at.append(time.monotonic())
        if len(came_at) == 1 or came_at[-1] - came_at[-2] > _SAME:
            raise KeyboardInterrupt

    with handled_by(interrupt, STOP_SIGNALS):
        yield


def _end_at_once() -> None:
    """Without waiting for anything: neither the main thread nor other threads may ever come to their end."""
    for child in multiprocessing.active_children():  # loader processes would notice after some seconds
        child.kill()
    os._exit(EXIT_INTERRUPTED)
