"""library/core/ahead.py: results in order, a bounded part of the work under way, nothing begun behind an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from library.core.ahead import in_order


def test_results_come_in_the_order_of_the_items() -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    for threads in (1, 2, 5):
        assert list(in_order(work, range(20), threads)) == [number * number for number in range(20)]
    assert list(in_order(work, (), 2)) == []


@pytest.mark.parametrize(("threads", "ahead", "most"), [(1, 1, 1), (3, 7, 7), (2, None, 4), (5, 2, 2)])
def test_no_more_items_are_drawn_than_asked_for(threads: int, ahead: int | None, most: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for number in range(30):
            drawn += 1
            yield number

    results = in_order(lambda number: number, items(), threads, ahead)
    assert drawn == 0
    for taken, _ in enumerate(results):
        assert drawn == min(30, taken + most)


def test_work_is_done_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)
    assert list(in_order(lambda _: meeting.wait() >= 0, range(6), threads=3)) == [True] * 6


def test_an_exception_comes_out_and_nothing_else_begins() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        if number == 3:
            raise ValueError("the fourth")
        done.append(number)
        return number

    results = in_order(work, range(1000), threads=1, ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    count = len(done)
    assert count < 10
    time.sleep(0.02)
    assert len(done) == count


def test_closing_ends_the_threads() -> None:
    names: set[str] = set()

    def work(number: int) -> int:
        names.add(threading.current_thread().name)
        return number

    results = in_order(work, range(1000), threads=2)
    next(results)
    results.close()
    assert names and names.isdisjoint(thread.name for thread in threading.enumerate())
