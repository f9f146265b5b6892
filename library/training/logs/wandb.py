"""Weights & Biases (wandb). The package is optional."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.core.log import get_logger
from library.core.optional import import_optional
from library.core.secrets import HIDDEN
from library.options.logs import WANDB

log = get_logger(__name__)

OFFLINE = "offline"
_START_TIMEOUT, _END_TIMEOUT = 30, 120  # seconds; a bad network must not hold a training
# wandb would record the command line, the folders of program and output, the code and all that is printed
_PRIVACY = {
    "x_disable_meta": True,
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "console": "off",
}


class WandbTracker:
    """A run in wandb; one on this disk alone, for `wandb sync`, where wandb cannot be reached.

    Args:
        folder: wandb keeps its own folder in it.
        project: in wandb.
        config: options as plain numbers and texts.
        arguments: further ones of `wandb.init`.
        key: of `--wandb_api_key`; None for that of the environment or of `wandb login`.
    """

    name = WANDB

    def __init__(
        self, folder: Path, project: str, config: Mapping[str, Any], arguments: Mapping[str, Any], key: str | None
    ) -> None:
        self._folder = folder
        self._project = project
        self._config = dict(config)
        self._arguments = {name: value for name, value in arguments.items() if name != "settings"}
        self._settings = {
            **_PRIVACY,
            "silent": True,
            "init_timeout": _START_TIMEOUT,
            "finish_timeout": _END_TIMEOUT,
            **arguments.get("settings", {}),
        }
        self._key = key
        self._id: str | None = None
        self._goes_on = False
        self._run: Any = None
        self._package: Any = None
        self._place = ""  # where the run is found

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._begun().log(dict(values), step=step)

    def picture(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        """See `Tracker`."""
        run = self._begun()
        run.log({tag: self._package.Image(pixels)}, step=step)

    def flush(self) -> None:
        """See `Tracker`; a process of wandb's own writes at once."""

    def close(self) -> None:
        """See `Tracker`."""
        if self._run is not None:
            self._run.finish(exit_code=int(sys.exception() is not None))  # what ends the training, if something does

    def told(self) -> str:
        """See `Tracker`."""
        return self._place

    def state_dict(self) -> dict[str, Any]:
        """See `Tracker`."""
        return {"id": self._id} if self._id is not None else {}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """See `Tracker`; wandb takes no rows of steps it has already, so none are told twice."""
        if "id" in state:
            self._id, self._goes_on = str(state["id"]), True

    def _begun(self) -> Any:
        if self._run is None:
            self._package = import_optional("wandb", "wandb", "--log_with wandb")
            logging.getLogger("wandb").addFilter(_nothing)  # its diary tells the folders of the program and its own
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._run = self._begin({})
            except Exception as error:  # no network, no access, ...: whatever it is, the rows are kept
                log.warning(
                    "wandb cannot be reached, this run is logged on the disk only: %s", self._without_key(error)
                )
                self._id, self._goes_on = None, False  # the other one may be half there
                self._run = self._begin({"mode": OFFLINE})
            self._tell_place()
        return self._run

    def _begin(self, changed: Mapping[str, Any]) -> Any:
        self._id = self._id or secrets.token_hex(4)
        settings = {**self._settings, **({"api_key": self._key} if self._key is not None else {})}
        arguments = {**self._arguments, **changed}
        if self._goes_on and not self._is_offline(arguments):
            arguments["resume"] = "allow"
        return self._package.init(
            project=self._project,
            dir=str(self._folder),
            id=self._id,
            config=self._config,
            reinit="create_new",
            settings=settings,
            **arguments,
        )

    def _is_offline(self, arguments: Mapping[str, Any]) -> bool:
        return arguments.get("mode", self._package.setup().settings.mode) == OFFLINE

    def _tell_place(self) -> None:
        if self._run.settings.mode == OFFLINE:
            how = "wandb sync --append" if self._goes_on else "wandb sync"
            self._place = f"wandb: offline; `{how} {Path(self._run.dir).parent}` sends it"
        else:
            self._place = f"wandb: {self._run.url}"
        log.info("%s", self._place)

    def _without_key(self, error: Exception) -> str:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return reason.replace(self._key, HIDDEN) if self._key else reason


def _nothing(record: logging.LogRecord) -> bool:
    return False
