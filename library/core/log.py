"""The program's voice: plain lines on standard error, from the main process only."""

from __future__ import annotations

import logging
import sys

ROOT_NAME = "sd_atelier"
# Libraries that tell every user at import what concerns none of them (missing server kernels, redirected launches).
_CHATTY = ("bitsandbytes", "torch.distributed.elastic", "diffusers.models.modeling_utils")


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; `name` is the module's `__name__`."""
    return logging.getLogger(f"{ROOT_NAME}.{name}")


def start_logging(is_main_process: bool = True) -> None:
    """Sends our messages to standard error; processes other than the main one show errors only."""
    root = logging.getLogger(ROOT_NAME)
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LevelFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO if is_main_process else logging.ERROR)
    root.propagate = False
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


class _LevelFormatter(logging.Formatter):
    """Information stands as it is; anything graver says what it is."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"
