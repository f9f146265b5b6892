"""The time as files tell it."""

from __future__ import annotations

import os
import time

from library.core.errors import UserError

FIXED_TIME = "SOURCE_DATE_EPOCH"


def now() -> float:
    """Seconds since 1970; those of SOURCE_DATE_EPOCH where it is set, so that equal runs give equal bytes.

    Source: https://reproducible-builds.org/specs/source-date-epoch/

    Raises:
        UserError: the variable holds something else than whole seconds.
    """
    fixed = os.environ.get(FIXED_TIME)
    if fixed is None:
        return time.time()
    if not fixed.isascii() or not fixed.isdecimal():
        raise UserError.of(f"whole seconds since 1970 are expected, got {fixed!r}", FIXED_TIME, "correct or unset it")
    return float(fixed)
