"""User mistakes become messages and exit codes."""

from __future__ import annotations

import pytest

from library.core.errors import Problems, UserError, run_script, suggest_name


def test_all_problems_are_shown_with_place_and_mend(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        problems = Problems()
        problems.add("is empty", "folder a", "add pictures")
        problems.add("is broken", "b.png", "replace it")
        problems.raise_if_any()

    assert run_script(main) == 1
    shown = capsys.readouterr().err
    assert "2 problems" in shown
    assert "folder a: is empty\n    -> add pictures" in shown and "b.png: is broken" in shown


def test_success_interrupt_and_bugs_are_told_apart() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def bug() -> None:
        raise ZeroDivisionError

    assert run_script(lambda: None) == 0
    assert run_script(interrupted) == 130
    with pytest.raises(ZeroDivisionError):
        run_script(bug)


def test_no_problem_raises_nothing() -> None:
    problems = Problems()
    problems.raise_if_any()
    assert not problems and len(problems) == 0
    problems.extend(UserError.of("a", "b", "c").problems)
    assert len(problems) == 1


def test_nearest_name_or_where_to_look() -> None:
    assert suggest_name("resolutoin", ["resolution", "batch_size"], "see docs") == "did you mean resolution?"
    assert suggest_name("xyz", ["resolution"], "see docs") == "see docs"
