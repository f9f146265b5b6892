"""Which batch `--debug_dataset` shows next: Esc ends, S is the next batch, E the next epoch. Needs no display."""

from __future__ import annotations

from library.data.planner import BatchRequest, EpochPlan, Planner
from library.data.report.dataset_report import BatchFacts

MOST_SHOWN = 8  # pictures of a batch: more do not fit on a screen


class Walk:
    """A way through the batches of a run, from the first one on; it has no end."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._epoch, self._position = 0, 0
        self._plan = self._plan_of(0)

    @property
    def request(self) -> BatchRequest:
        """The batch that is shown."""
        return self._plan[self._position]

    @property
    def batches(self) -> int:
        """Batches of the epoch that is shown."""
        return len(self._plan)

    def press(self, key: str) -> bool:
        """Follows a key, in either case; False when it ends the walk. Other keys change nothing."""
        key = key.lower()
        if key == "escape":
            return False
        if key == "e" or (key == "s" and self._position + 1 == len(self._plan)):
            self._epoch, self._position = self._epoch + 1, 0
            self._plan = self._plan_of(self._epoch)
        elif key == "s":
            self._position += 1
        return True

    def _plan_of(self, epoch: int) -> EpochPlan:
        return self._planner.epoch_plan(epoch, self._planner.updates_in_epochs(epoch))


def head_line(batch: BatchFacts, epoch: int, batches: int) -> str:
    """The line above the pictures; `batches` of the epoch."""
    more = f", the first {MOST_SHOWN} of {len(batch.uses)} pictures" if len(batch.uses) > MOST_SHOWN else ""
    return f"epoch {epoch}, batch {batch.number} of {batches}, update {batch.update}, bucket {batch.bucket}{more}"
