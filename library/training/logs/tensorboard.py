"""TensorBoard: events below LOGGING_DIR/{prefix}{date and time}/{name}."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.core.clock import now
from library.core.log import get_logger
from library.options.logs import TENSORBOARD

log = get_logger(__name__)

_EVENTS = "events.out.tfevents."  # then ten digits of seconds since 1970


class TensorBoardTracker:
    """Writes event files.

    Args:
        root: `--logging_dir`.
        prefix: stands before date and time.
        project: the folder below them.
        config: options as plain numbers and texts, for the HPARAMS page.
        arguments: further ones of `SummaryWriter`.
    """

    name = TENSORBOARD

    def __init__(
        self, root: Path, prefix: str, project: str, config: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        self._root = root
        self._prefix = prefix
        self._project = project
        self._config = dict(config)
        self._arguments = dict(arguments)
        self._stamped: str | None = None  # the folder below root
        self._after: int | None = None  # the update a resumed run goes on after
        self._writer: Any = None
        self._file: Path | None = None  # that grows by what is logged

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        writer = self._begun()
        for tag, value in values.items():
            writer.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        """See `Tracker`."""
        self._begun().add_image(tag, pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """See `Tracker`."""
        if self._writer is not None:
            self._refuse_removed()
            self._writer.flush()

    def close(self) -> None:
        """See `Tracker`."""
        if self._writer is not None:
            self._refuse_removed()
            self._writer.close()

    def told(self) -> str:
        """See `Tracker`."""
        if self._writer is None:
            return ""
        return f"curves: tensorboard --logdir={self._root}, then http://localhost:6006/"

    def state_dict(self) -> dict[str, Any]:
        """See `Tracker`; the folder's own name, so that the state tells nobody's folders."""
        return {"folder": self._stamped} if self._stamped is not None else {}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """See `Tracker`. Where the folder is not below `--logging_dir` a new one is begun."""
        folder = str(state.get("folder", ""))
        if not folder:
            return
        # the state may come from strangers: a name is a name and no way to elsewhere
        is_name = Path(folder).name == folder and "\\" not in folder
        if is_name and folder.startswith(self._prefix) and (self._root / folder / self._project).is_dir():
            self._stamped, self._after = folder, step
        else:
            log.info("tensorboard: the folder of the stopped run is not in %s, a new one is begun", self._root)

    def _begun(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only wanted with a tracker

            is_new = self._stamped is None
            self._stamped = self._stamped or self._claim_folder()
            folder = self._root / self._stamped / self._project
            if not is_new:
                _wait_for_later_name(folder)
            purged = {} if self._after is None else {"purge_step": self._after + 1}
            before = set(folder.glob(f"{_EVENTS}*"))
            self._writer = SummaryWriter(str(folder), **purged, **self._arguments)
            self._file = next(iter(set(folder.glob(f"{_EVENTS}*")) - before), None)
            if is_new:
                self._tell_config()
        self._refuse_removed()
        return self._writer

    def _refuse_removed(self) -> None:
        """The writer would end with a traceback, or go on with a file that no reader takes."""
        if self._file is not None and not self._file.exists():
            raise FileNotFoundError(f"its file below {self._root} was removed")

    def _claim_folder(self) -> str:
        """Makes a folder that no other run has, also not one of the same second."""
        stamp = f"{self._prefix}{datetime.fromtimestamp(now()).strftime('%Y%m%d%H%M%S')}"
        name, number = stamp, 1
        self._root.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                (self._root / name).mkdir()
            except FileExistsError:
                number += 1
                name = f"{stamp}-{number}"
            else:
                return name

    def _tell_config(self) -> None:
        from torch.utils.tensorboard.summary import hparams

        # into the same file; SummaryWriter.add_hparams would begin another folder
        for summary in hparams(self._config, {}):
            self._writer.file_writer.add_summary(summary)


def _wait_for_later_name(folder: Path) -> None:
    """Readers take event files by name, which begins with the second they were made in; what we drop of an earlier
    file has to stand before the word that drops it."""
    stamps = [path.name.removeprefix(_EVENTS)[:10] for path in folder.glob(f"{_EVENTS}*")]
    latest = max((int(stamp) for stamp in stamps if stamp.isdecimal()), default=0)
    give_up = time.time() + 2  # the clock may have been set back
    while int(time.time()) <= latest and time.time() < give_up:
        time.sleep(0.05)
