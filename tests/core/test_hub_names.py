from __future__ import annotations

import pytest

from library.core.hub_names import stays_below


@pytest.mark.parametrize(
    "name", ("model.onnx", "a/b/c.csv", ".hidden", "..a", "a..b/c", "タグ/猫 1.csv", "console.txt")
)
def test_names_that_stay_below_a_folder(name: str) -> None:
    assert stays_below(name)


@pytest.mark.parametrize(
    "name",
    (
        "", ".", "..", "../a", "a/../b", "a/..", "/a", "//a", "a//b", "./a", "a/.", "a/", "C:a", "C:/a", "a:stream",
        "..\\a", "a\\b", "a/b.", "a /b", "con", "a/NUL.txt", "Com1", "a\x00b", "a\nb", "a\x1b[2J", "a?", "a*", "a|b",
        'a"b', "<a>",
    ),
)  # fmt: skip
def test_names_that_leave_it_or_mean_something_else_on_windows(name: str) -> None:
    assert not stays_below(name)
