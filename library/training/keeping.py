"""Saves on the way and at the end: files, states, and which of the older ones go."""

from __future__ import annotations

from pathlib import Path

from library.checkpoint.naming import epoch_stem, last_stem, state_folder, step_stem
from library.core.log import get_logger
from library.options.keeping import KeepingOptions
from library.training.progress import Moment, Moments
from library.training.requests import Requests
from library.training.run import OutputFiles
from library.training.trained_files import TrainedFiles
from library.training.training_state import TrainingState
from library.training.uploads import Uploads

log = get_logger(__name__)


class Keeper:
    """Saves what was learned when it is due.

    Args:
        options: when, and how much is kept.
        files: where.
        trained: writes the weights.
        state: what a resumed run needs.
        uploads: takes what was written.
        is_main: whether this process writes; the others only keep in step.
    """

    def __init__(
        self,
        options: KeepingOptions,
        files: OutputFiles,
        trained: TrainedFiles,
        state: TrainingState,
        uploads: Uploads,
        is_main: bool,
    ) -> None:
        self._options = options
        self._files = files
        self._trained = trained
        self._state = state
        self._uploads = uploads
        self._is_main = is_main
        self._moments = Moments(options.save_every_n_steps, options.save_every_n_epochs)

    def keep(self, moment: Moment, asked: Requests) -> None:
        """Saves if it is due, or asked for; called by all processes after each update."""
        name = self._files.name
        if self._moments.due_by_epoch(moment) and not moment.is_last:
            self._save(epoch_stem(name, moment.epoch), moment, self._options.save_state)
        asked_now = (asked.save or asked.stop) and not moment.is_last
        if self._moments.due_by_step(moment) or asked_now:
            self._save(step_stem(name, moment.step), moment, self._options.save_state or asked_now)

    def finish(self, moment: Moment) -> None:
        """Saves the end of the run."""
        with_state = self._options.save_state or self._options.save_state_on_train_end
        self._save(last_stem(self._files.name), moment, with_state)

    def close(self, has_ended: bool) -> None:
        """Ends the uploads: at the end of the run all that are left are made, after a stop they wait for the next
        start."""
        if has_ended:
            self._uploads.finish()

    def _save(self, stem: str, moment: Moment, with_state: bool) -> None:
        if not self._is_main:
            return
        self._uploads.add(self._trained.write(self._files.of(stem), moment))
        if with_state:
            log.info("state %s", state_folder(Path(self._files.folder), stem))
