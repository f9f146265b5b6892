"""User mistakes become messages and exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from library.core import errors
from library.core.errors import (
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    Problems,
    Stopped,
    UserError,
    once_begun,
    run_script,
    suggest_name,
)

ROOT = Path(__file__).resolve().parents[2]


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


def broken() -> None:
    raise UserError.of("is broken", "b.png", "replace it")


def broken_on_the_way() -> None:
    with once_begun():
        broken()


def stopped() -> None:
    raise Stopped("stopped after update 3 of 5")


def test_a_run_that_had_begun_is_not_told_to_mend_something_before(capsys: pytest.CaptureFixture[str]) -> None:
    bullet = "\n  * b.png: is broken\n    -> replace it\n"
    assert run_script(broken) == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"1 problem to mend before anything can run:{bullet}"
    assert run_script(broken_on_the_way) == EXIT_USER_ERROR
    assert capsys.readouterr().err == f"1 problem ended the run:{bullet}"


def test_other_errors_pass_through_what_marks_mistakes() -> None:
    with pytest.raises(ZeroDivisionError), once_begun():
        raise ZeroDivisionError


def test_a_stop_has_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(stopped) == EXIT_STOPPED == 75
    assert capsys.readouterr().err == "stopped after update 3 of 5\n"


@pytest.mark.parametrize("main", [broken, stopped])
def test_of_several_processes_the_first_one_tells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, main: Callable[[], None]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_script(main) in (EXIT_USER_ERROR, EXIT_STOPPED)
    assert capsys.readouterr().err == ""


def test_the_guide_lists_the_exit_codes() -> None:
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    table = (ROOT / "docs" / "stopping.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)} == {0, *codes}


def test_a_console_that_does_not_know_a_character_stops_nothing() -> None:
    code = (
        "from library.core.errors import UserError, run_script\n"
        "from library.core.log import get_logger, start_logging\n"
        "def main():\n    start_logging(); get_logger('x').info('\u732b.png'); print('\u732b')\n"
        "    raise UserError.of('is broken', '\u732b.png', 'replace it')\n"
        "raise SystemExit(run_script(main))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "\\u732b" in result.stdout and "\\u732b.png: is broken" in result.stderr
    assert "Traceback" not in result.stderr and "Logging error" not in result.stderr


def test_no_problem_raises_nothing() -> None:
    problems = Problems()
    problems.raise_if_any()
    assert not problems and len(problems) == 0
    problems.extend(UserError.of("a", "b", "c").problems)
    assert len(problems) == 1


def test_nearest_name_or_where_to_look() -> None:
    assert suggest_name("resolutoin", ["resolution", "batch_size"], "see docs") == "did you mean resolution?"
    assert suggest_name("xyz", ["resolution"], "see docs") == "see docs"
