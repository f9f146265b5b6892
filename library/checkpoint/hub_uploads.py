"""Works off a queue of uploads, in a thread beside the training: patient, and never in its way."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from library.checkpoint.hub_client import Hub, HubError, Repository, silence, waiting_at_most
from library.checkpoint.upload_queue import QueueEntry, UploadQueue
from library.core.log import get_logger

log = get_logger(__name__)

PATIENCE = 600.0  # seconds without any success after which the end of a run no longer waits
_ANSWER_SECONDS = 120.0  # a commit of many files takes the Hub a while
_SLOWEST = 1 << 16  # bytes a second that a transfer makes in any case; one that is slower hangs
_TRIES = 6  # of one thing in a row, before the next has its turn


@dataclass(frozen=True)
class Pauses:
    """Seconds between two tries: the first, twice as long each time, and the longest."""

    first: float = 1.0
    longest: float = 60.0

    def after(self, tries: int) -> float:
        """The pause after so many tries, a little longer or shorter each time, so that runs do not come all at once."""
        jitter = 0.75 + 0.5 * (time.time_ns() % 1_000_003) / 1_000_003
        return min(self.longest, self.first * 2.0 ** min(tries - 1, 30)) * jitter


class UploadWorker:
    """Uploads what waits in a queue, in its order.

    What the Hub refuses is set aside, and so is, until `finish`, what failed several times; everything else waits for a
    Hub that cannot be reached. Nothing is raised, and what is not uploaded stays in the queue.

    Args:
        makes: the only repository that is made where it is missing; None for any. What waits for another one may be
            left of a run whose repository was deleted since.
    """

    def __init__(
        self, queue: UploadQueue, hub: Hub, pauses: Pauses | None = None, makes: Repository | None = None
    ) -> None:
        self._queue = queue
        self._hub = hub
        self._makes = makes
        self._pauses = pauses or Pauses()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._opened: set[Repository] = set()
        self._aside: dict[int, str] = {}  # entries that are not tried now, and why
        self._gives_up_at: float | None = None  # of time.monotonic; None as long as the run goes on
        self._ends_by = 0.0  # of time.monotonic; when the try that is being made must be over
        self._patience = PATIENCE
        self._uploaded: Counter[Repository] = Counter()
        self._last_failure = ""

    @property
    def uploaded(self) -> dict[Repository, int]:
        """How many things were uploaded to each repository."""
        with self._changed:
            return dict(self._uploaded)

    def wake(self) -> None:
        """There is something to do, or to do soon; starts the thread when it is called first."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                # a daemon: a process that ends does not wait for it, and its work stays in the queue
                self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self, patience: float = PATIENCE) -> dict[int, str]:
        """Uploads what waits; returns why, by their numbers, for the entries that are left.

        Args:
            patience: seconds to go on trying after the last success. Ctrl-C ends the waiting at once.
        """
        with self._changed:
            self._aside.clear()
            self._patience = patience
            self._gives_up_at = time.monotonic() + patience
            self._changed.notify_all()
        if self._queue.entries():
            self.wake()
        try:
            while self._thread is not None and self._thread.is_alive() and not self._hangs():
                self._thread.join(0.2)
        except KeyboardInterrupt:
            log.warning("what is not uploaded stays in the queue")
        return {entry.number: self._aside.get(entry.number, "not done in time") for entry in self._queue.entries()}

    def _work(self) -> None:
        silence()
        with waiting_at_most(_ANSWER_SECONDS):
            while (entry := self._next()) is not None:
                self._upload(entry)

    def _next(self) -> QueueEntry | None:
        """The first that may be tried, as soon as there is one; None when the run has ended and there is none."""
        while True:
            is_late = self._is_too_late()
            with self._changed:
                waiting = [entry for entry in self._queue.entries() if entry.number not in self._aside]
                if waiting and not is_late:
                    return waiting[0]
                if self._gives_up_at is not None:
                    self._aside |= {entry.number: self._last_failure for entry in waiting}
                    return None
                self._changed.wait()

    def _upload(self, entry: QueueEntry) -> None:
        """Tries until it is uploaded, replaced by a newer one, or set aside."""
        digests: dict[Path, bytes] = {}
        tries = 0
        while self._queue.begin(entry):
            tries += 1
            self._ends_by = time.monotonic() + entry.size / _SLOWEST + self._patience
            error = self._try(entry, digests)
            self._queue.end(entry, is_uploaded=error is None)
            if error is None:
                self._succeeded(entry)
                return
            self._last_failure = error.what
            if error.is_final or (tries >= _TRIES and not error.is_away) or self._is_too_late():
                self._aside[entry.number] = error.what
                log.error("%s was not uploaded: %s", entry.place.name, error.what)
                return
            if tries == 1:
                log.warning("%s is not uploaded yet: %s; it is tried again", entry.place.name, error.what)
            self._pause(tries)

    def _try(self, entry: QueueEntry, digests: dict[Path, bytes]) -> HubError | None:
        repository = entry.place.repository
        try:
            _refuse_altered(entry)
            if repository not in self._opened and self._makes in (None, repository):
                self._hub.open(repository, entry.place.is_public)
                self._opened.add(repository)
            self._hub.commit(repository, entry.place.name, entry.files, digests, entry.place.is_set)
            wrong = self._hub.differing(repository, entry.files, digests)
        except HubError as error:
            return error
        except KeyboardInterrupt:  # the transfer library turns a Ctrl-C, which is the run's, into one of its own
            return HubError("interrupted", "try again")
        return HubError(f"{wrong[0]} arrived with another checksum", "try again later") if wrong else None

    def _succeeded(self, entry: QueueEntry) -> None:
        with self._changed:
            self._uploaded[entry.place.repository] += 1
            if self._gives_up_at is not None:
                self._gives_up_at = time.monotonic() + self._patience
        log.info("uploaded %s to %s", entry.place.name, entry.place.repository.repo_id)

    def _is_too_late(self) -> bool:
        with self._changed:
            return self._gives_up_at is not None and time.monotonic() >= self._gives_up_at

    def _hangs(self) -> bool:
        return self._is_too_late() and time.monotonic() > self._ends_by

    def _pause(self, tries: int) -> None:
        """Waits; when the end of the run comes in between, it is tried again at once."""
        until = time.monotonic() + self._pauses.after(tries)
        with self._changed:
            was_ending = self._gives_up_at is not None
            while (left := until - time.monotonic()) > 0:
                if self._gives_up_at is not None and not was_ending:
                    return
                if self._gives_up_at is not None:
                    until = min(until, self._gives_up_at)
                self._changed.wait(min(left, max(0.0, until - time.monotonic())))


def _refuse_altered(entry: QueueEntry) -> None:
    """Raises `HubError` when the files are not what was queued."""
    for file in entry.files:
        if not file.stored.is_file() or file.stored.stat().st_size != file.size:
            raise HubError("its copy in the queue was altered or is gone", "upload it by hand", is_final=True)
