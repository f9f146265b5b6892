"""Saves on the way and at the end: files, states, and which of the older ones go."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from library.checkpoint.naming import average_file, epoch_stem, last_stem, state_folder, step_stem
from library.checkpoint.saves import END, EPOCH, REQUEST, STEP
from library.checkpoint.state import NAME_FACT, write_state
from library.core.atomic_io import size_on_disk
from library.core.errors import Incomplete, Problem, UserError
from library.core.log import get_logger
from library.training.checks.keeping import save_moments
from library.training.keep.retention import KeptFiles
from library.training.keep.save_failures import SAVE_FAILURES, free_space, save_problems
from library.training.keep.state_facts import state_facts
from library.training.keep.trained_files import TrainedFiles, Written
from library.training.keep.training_state import TrainingState
from library.training.keep.uploads import Uploads
from library.training.progress import Moment
from library.training.requests.watch import Requests
from library.training.run import OutputFiles

log = get_logger(__name__)


class Due(NamedTuple):
    """A save that is due: its name, why, whether a state belongs to it, and whether it is the last of the run."""

    stem: str
    kind: str
    with_state: bool
    is_end: bool = False


class Keeper:
    """Saves what was learned when it is due. What cannot be saved is told, and training goes on.

    Args:
        files: where.
        trained: writes the weights; it knows the run.
        state: what a resumed run needs.
        uploads: takes what was written.
        is_main: whether this process writes; the others only keep in step.
    """

    def __init__(
        self, files: OutputFiles, trained: TrainedFiles, state: TrainingState, uploads: Uploads, is_main: bool
    ) -> None:
        self._options = trained.run.options.keeping
        self._files = files
        self._trained = trained
        self._state = state
        self._uploads = uploads
        self._is_main = is_main
        self._moments = save_moments(self._options, trained.plan.epochs)
        self._states_at_end: list[Due] = []
        self._problems: list[Problem] = []
        self._lines: list[str] = []
        self._saves_on_way: list[bool] = []  # whether each was a state
        self._last_size = 0  # of all that one save of the weights writes
        self._fresh: set[tuple[str, bool]] = set()  # what was just written: kind, and whether it is a state
        self.has_end = False  # what was learned is saved; at a stop the state will do
        self.has_state_of_end = False
        self._kept = KeptFiles(files.folder, files.name, self._options)
        if is_main:
            resume = trained.run.resume
            on_way = (self._moments.every_steps, self._moments.every_epochs) != (None, None)
            with_state = self._options.save_state or self._options.save_state_on_train_end
            self._kept.begin(resume.folder if resume else None, state.progress.step, on_way or with_state)

    def keep(self, moment: Moment, asked: Requests) -> None:
        """Saves if it is due, or asked for; called by all processes after each update.

        Raises:
            UserError: the weights are no longer finite.
        """
        due = list(self._due(moment, asked))
        if not due:
            return
        self._trained.refuse_non_finite()
        for save in due:
            self._keep_weights(save, moment)
        states = [save for save in due if save.with_state]
        if moment.is_last:  # who resumes from the state of the last update finds the end written
            self._states_at_end = states
        else:
            self._keep_states(states, moment)
        self._retire(moment)

    def finish(self, moment: Moment) -> None:
        """Saves the end of the run.

        Raises:
            UserError: the weights are no longer finite.
        """
        self._trained.refuse_non_finite()
        with_state = self._options.save_state or self._options.save_state_on_train_end
        end = Due(last_stem(self._files.name), END, with_state, is_end=True)
        self._keep_weights(end, moment)
        self._keep_states([*([end] if with_state else []), *self._states_at_end], moment)
        self._retire(moment)

    def close(self, has_ended: bool) -> None:
        """Ends the uploads: at the end of the run all that are left are made, after a stop they wait for the next
        start."""
        if has_ended:
            fix = "what is left is uploaded by the next run with this --output_name"
            self._problems += [Problem(line, "upload", fix) for line in self._uploads.finish()]

    @property
    def failures(self) -> list[str]:
        """What was asked for and could not be saved or uploaded."""
        return [f"{problem.where}: {problem.what}" for problem in self._problems]

    def told(self) -> list[str]:
        """What was saved where and what was not, for the summary."""
        lines = []
        if self._saves_on_way:
            saves, states = self._saves_on_way.count(False), self._saves_on_way.count(True)
            lines.append(f"on the way: {saves} saves and {states} states; {self._kept.path} lists those that are kept")
        return [*lines, *self._lines, *self._uploads.told(), *(f"not done: {failure}" for failure in self.failures)]

    def raise_if_incomplete(self) -> None:
        """Called when nothing more can be done.

        Raises:
            Incomplete: something that was asked for is missing.
            UserError: nothing of the end could be saved.
        """
        if self._problems:
            raise (Incomplete if self.has_end else UserError)(self._problems)

    def _due(self, moment: Moment, asked: Requests) -> Iterator[Due]:
        name, with_state = self._files.name, self._options.save_state
        if self._moments.due_by_epoch(moment) and not moment.is_last:  # the end of the run follows
            yield Due(epoch_stem(name, moment.epoch), EPOCH, with_state)
        if (asked.save or asked.stop) and not moment.is_last:
            yield Due(step_stem(name, moment.step), REQUEST, with_state=True, is_end=asked.stop)
        elif self._moments.due_by_step(moment):
            yield Due(step_stem(name, moment.step), STEP, with_state)

    def _keep_weights(self, save: Due, moment: Moment) -> None:
        if not self._is_main:
            return
        path = self._files.of(save.stem)
        needed = max(self._trained.smallest_size(), self._last_size)
        written = _attempt(lambda: self._trained.write(path, moment), path, needed)
        expected = {path, average_file(path)} if self._files.keeps_average else {path}
        if expected <= set(written.paths):
            self._last_size = sum(size_on_disk(path) for path in written.paths)
            self._fresh.add((save.kind, False))
        self._take(save, moment, written, is_state=False)

    def _keep_states(self, saves: Sequence[Due], moment: Moment) -> None:
        if not saves:
            return
        self._state.log.drain()  # a mean over all processes
        if not self._is_main:
            return
        facts = {**self._facts, NAME_FACT: self._files.name, "step": moment.step, "epoch": moment.epoch}
        for save in saves:
            folder, parts = state_folder(self._files.folder, save.stem), self._state.state_dict()
            written = _attempt(partial(_write_state, folder, parts, facts), folder, _tensor_bytes(parts))
            if written.paths:
                self._fresh.add((save.kind, True))
            self._take(save, moment, written, is_state=True)

    def _take(self, save: Due, moment: Moment, written: Written, is_state: bool) -> None:
        """Lists what was written, hands it on, and tells what was not."""
        self.has_state_of_end = self.has_state_of_end or (is_state and moment.is_last and bool(written.paths))
        if written.paths:
            self._kept.add(save.kind, is_state, (moment.step, moment.epoch), written.paths)
            self._uploads.add(written.paths, is_state=is_state)
        if save.is_end:
            is_enough = not is_state or save.kind == REQUEST
            self.has_end = self.has_end or (is_enough and bool(written.paths))
            verb = "state" if is_state else "saved"
            self._lines += [f"{verb} {path} ({size_on_disk(path) / 1e6:.1f} MB)" for path in written.paths]
        elif written.paths:
            self._saves_on_way.append(is_state)
            log.info("saved %s", written.paths[0])
        goes_on = "" if save.is_end or moment.is_last else "; training goes on"
        for problem in written.problems:
            log.error("%s: %s%s\n    -> %s", problem.where, problem.what, goes_on, problem.fix)
        self._problems += written.problems

    def _retire(self, moment: Moment) -> None:
        """Removes what is older than asked for, where something newer of its kind has just been written."""
        if self._is_main:
            self._kept.retire(self._fresh, moment.step)
        self._fresh.clear()

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return state_facts(self._trained.run, self._trained.plan)


def _attempt(write: Callable[[], Written], path: Path, needed: int) -> Written:
    """Writes where there is room; what goes wrong is told in what is returned."""
    free = free_space(path.parent)
    try:
        if free is not None and free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write()
    except SAVE_FAILURES as error:
        return Written(problems=save_problems(error, path, needed))


def _write_state(folder: Path, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> Written:
    write_state(folder, parts, facts)
    return Written([folder])


def _tensor_bytes(value: Any) -> int:
    """Of all tensors in nested values."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return sum(_tensor_bytes(item) for item in items)
