"""Work done by several threads, a bounded part of it ahead of who takes the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_order(
    work: Callable[[ItemT], ResultT], items: Iterable[ItemT], threads: int, ahead: int | None = None
) -> Generator[ResultT, None, None]:
    """The results of `work`, in the order of the items.

    An exception in `work` comes out here. After it, and when the generator is closed, what has begun is ended and
    nothing else begins.

    Args:
        work: called from several threads at once.
        items: drawn in the thread that takes the results, as they are needed.
        threads: that work.
        ahead: items that are done, or being done, and whose results are not taken yet; at least 1. Twice as many as
            threads where it is None.
    """
    most = 2 * threads if ahead is None else ahead
    waiting: deque[Future[ResultT]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
