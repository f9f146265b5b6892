"""Whether a run can be logged as it is asked for."""

from __future__ import annotations

from library.core.errors import Problems
from library.core.optional import import_optional
from library.options.logs import LogOptions


def check_logs(options: LogOptions, problems: Problems) -> None:
    """Whether the trackers are there, and every option of theirs has one."""
    if options.logging_dir is not None:
        problems.attempt(lambda: import_optional("tensorboard", "tensorboard", "--logging_dir"))
