"""Signals that go elsewhere for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def handled_by(handler: Handler, numbers: Iterable[int]) -> Iterator[dict[int, Any]]:
    """Inside, signals are handled so; afterwards as before. One that the process was told to ignore stays ignored.

    Yields:
        What handled them before, by their numbers, for those that are handled now: none outside the main thread, the
        only one where Python hears signals.
    """
    is_possible = threading.current_thread() is threading.main_thread()
    present = {number: signal.getsignal(number) for number in numbers} if is_possible else {}
    former = {number: found for number, found in present.items() if found not in (signal.SIG_IGN, None)}
    try:
        for number in former:
            signal.signal(number, handler)
        yield former
    finally:
        for number, found in former.items():
            signal.signal(number, found)
