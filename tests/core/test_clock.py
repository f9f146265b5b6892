"""The time as files tell it."""

from __future__ import annotations

import time

import pytest

from library.core.clock import FIXED_TIME, now
from library.core.errors import UserError


def test_it_is_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FIXED_TIME, raising=False)
    assert abs(now() - time.time()) < 5


def test_it_can_be_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FIXED_TIME, "1700000000")
    assert now() == 1_700_000_000.0


@pytest.mark.parametrize("text", ["", "yesterday", "-1", "1.5", "\u0661"])
def test_anything_else_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(FIXED_TIME, text)
    with pytest.raises(UserError, match=FIXED_TIME):
        now()
