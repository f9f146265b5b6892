"""Hands saved files to the Hugging Face Hub, beside the training and never in its way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from library.checkpoint.hub_client import Hub, Repository, address_of, found_token
from library.checkpoint.hub_uploads import PATIENCE, UploadWorker
from library.checkpoint.upload_queue import QueueEntry, UploadPlace, UploadQueue, queue_folder
from library.core.log import get_logger
from library.models.forms import yaml_beside
from library.training.checks.uploads import UploadTarget, given_token
from library.training.run import FullModelRun, Run

log = get_logger(__name__)

_TOLD = 3
LATER = "the next run of this name with --huggingface_repo_id makes them, or tools/upload_left_overs.py"


class Uploads:
    """Takes what was saved; here where nothing is uploaded."""

    def add(self, paths: Sequence[Path], is_state: bool = False) -> None:
        """Takes files and folders that are complete; returns at once, and they may be deleted."""

    def finish(self) -> list[str]:
        """Uploads what is left; returns a line for each thing of this run that could not be uploaded."""
        return []

    def told(self) -> list[str]:
        """Lines for the end of the run: what was uploaded where, and what still waits."""
        return []


class HubUploads(Uploads):
    """Uploads through a queue on disk, beside the training; the first save sets off those of an earlier run as well.

    Args:
        target: where; its repository is the only one that is made if it is missing.
        with_yaml: whether the yaml of the same stem belongs to a single file (of a whole model it may).
    """

    def __init__(self, target: UploadTarget, queue: UploadQueue, hub: Hub, with_yaml: bool) -> None:
        self._target = target
        self._repository = Repository(target.repo_id, target.repo_type)
        self._queue = queue
        self._worker = UploadWorker(queue, hub, makes=self._repository)
        self._with_yaml = with_yaml
        self._not_queued: list[str] = []
        self._earlier = {entry.number for entry in queue.entries()}
        self._left: dict[int, str] = {}

    def add(self, paths: Sequence[Path], is_state: bool = False) -> None:
        """Takes files and folders that are complete; returns at once, and they may be deleted.

        States are taken where they are asked for. What cannot be queued (a full disk) is told, here and at the end.
        """
        if is_state and not self._target.with_states:
            return
        for path in self._with_their_yaml(paths):
            name = f"{self._target.folder}/{path.name}" if self._target.folder else path.name
            try:
                self._queue.add(path, UploadPlace(self._repository, self._target.is_public, name, is_state))
            except OSError as error:
                self._not_queued.append(f"{path.name} is not uploaded: it could not be queued: {error.strerror}")
                log.error(self._not_queued[-1])
        self._worker.wake()

    def finish(self) -> list[str]:
        """Uploads what is left, and goes on trying for some minutes; returns a line for each thing that is not there.

        It stays in the queue, for the next start. Ctrl-C ends the waiting. What an earlier run left over is no failure
        of this one.
        """
        entries = self._queue.entries()
        if entries:
            mebibytes = sum(entry.size for entry in entries) >> 20
            log.info(
                "uploading %d files or folders, %d MiB; Ctrl-C leaves them to the next start", len(entries), mebibytes
            )
        self._left = self._worker.finish(PATIENCE)
        lines = [
            f"{entry.place.name} is not uploaded to {entry.place.repository.repo_id} ({self._left[entry.number]})"
            for entry in self._queue.entries()
            if entry.number in self._left and entry.number not in self._earlier
        ]
        return [*self._not_queued, *lines]

    def told(self) -> list[str]:
        """Lines for the end of the run: what was uploaded where, and what still waits."""
        done = self._worker.uploaded
        lines = [f"uploaded: {count} to {address_of(repository)}" for repository, count in done.items()]
        waiting = self._queue.entries()
        if waiting:
            lines.append(f"still to be uploaded: {len(waiting)} in {self._queue.folder}; {LATER}")
        earlier = [entry for entry in waiting if entry.number in self._earlier & self._left.keys()]
        lines += [f"of an earlier run: {self._of_earlier_run(entry)}" for entry in earlier[:_TOLD]]
        if len(earlier) > _TOLD:
            lines.append(f"of an earlier run: {len(earlier) - _TOLD} more in {self._queue.folder}")
        return lines

    def _of_earlier_run(self, entry: QueueEntry) -> str:
        what = f"{entry.place.name} is not uploaded to {entry.place.repository.repo_id} ({self._left[entry.number]})"
        return f"{what}; to drop it, delete {self._queue.folder_of(entry)}"

    def _with_their_yaml(self, paths: Sequence[Path]) -> list[Path]:
        beside = [yaml_beside(path) for path in paths if self._with_yaml and path.is_file()]
        return [*paths, *(path for path in beside if path.is_file() and path not in paths)]


def make_uploads(run: Run, accelerator: Accelerator) -> Uploads:
    """The uploads of a run; they begin with those that an earlier run of the same name left over."""
    if not accelerator.is_main_process:
        return Uploads()
    queue = UploadQueue(queue_folder(run.files.folder, run.files.name))
    waiting = len(queue.entries())
    if run.upload is None:
        if waiting:
            drop = f"to drop them, delete {queue.folder}"
            log.warning("%d uploads of an earlier run wait in %s; %s; %s", waiting, queue.folder, LATER, drop)
        return Uploads()
    if waiting:
        log.info("uploads: %d of an earlier run come first", waiting)
    hub = Hub(given_token(run.options.upload) or found_token())
    return HubUploads(run.upload, queue, hub, with_yaml=isinstance(run, FullModelRun))
