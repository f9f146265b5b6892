"""Numbers out of words."""

from __future__ import annotations

import math


def finite_number(word: str) -> float | None:
    """The number that a word writes; None where it writes none, or an infinite one."""
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
