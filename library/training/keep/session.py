"""The identity of a run, which it keeps when it is resumed."""

from __future__ import annotations

from dataclasses import dataclass

from library.core.clock import now
from library.core.randomness import derived_seed


@dataclass
class Session:
    """The run as its files know it, the same before and after it was resumed; the time in seconds since 1970."""

    started_at: float
    number: int

    @classmethod
    def begin(cls) -> Session:
        """A new one."""
        started_at = now()
        return cls(started_at, derived_seed(int(started_at * 1000), 0, "", "session") >> 32)
