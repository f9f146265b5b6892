"""Signals that go elsewhere for a while."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from library.core.signals import handled_by

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals as Linux and macOS have them")

NUMBERS = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What a handler of both signals has heard."""
    said: list[str] = []
    former = {number: signal.signal(number, lambda *_: said.append("before")) for number in NUMBERS}
    yield said
    for number, handler in former.items():
        signal.signal(number, handler)


def test_inside_they_go_elsewhere_and_afterwards_as_before(heard: list[str]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(ZeroDivisionError), handled_by(lambda *_: heard.append("inside"), NUMBERS) as former:
        assert set(former) == set(NUMBERS) and former[signal.SIGUSR1] == before
        os.kill(os.getpid(), signal.SIGUSR1)
        raise ZeroDivisionError
    os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == ["inside", "before"]


def test_one_that_is_ignored_stays_ignored(heard: list[str]) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with handled_by(lambda *_: heard.append("inside"), NUMBERS) as former:
        assert set(former) == {signal.SIGUSR2}
        for number in NUMBERS:
            os.kill(os.getpid(), number)
    assert heard == ["inside"]


def test_outside_the_main_thread_nothing_changes(heard: list[str]) -> None:
    found: list[object] = []

    def work() -> None:
        with handled_by(lambda *_: heard.append("inside"), NUMBERS) as former:
            found.append(former)
            os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [{}] and heard == ["before"]
