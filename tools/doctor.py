"""The environment on one page: what is here, what works, and the mend of everything that does not.

    python tools/doctor.py
    python tools/doctor.py --json report.json

Looks at the Python in .venv if there is one, else at the one it runs with. Exit code 1 when training cannot work.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bootstrap import ROOT, run_tool, say, venv_python
from doctor_checks import (
    OK,
    PROBLEM,
    Finding,
    check_machine,
    check_optional,
    check_packages,
    check_settings,
    check_torch,
    look_around,
)

_MARKS = {OK: "  ", "note": "? ", PROBLEM: "! "}
_NAME_WIDTH, _PAGE_WIDTH = 24, 110


def main() -> int:
    """Prints the page, writes the JSON file if one is asked for."""
    options = _parse()
    findings = examine(options.python or default_python())
    say(format_page(findings))
    if options.json is not None:
        options.json.write_text(report_json(findings), encoding="utf-8")
        say(f"\nwritten: {options.json}")
    return exit_code(findings)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings for a program to read")
    parser.add_argument("--python", type=Path, metavar="FILE", help="look at this Python instead")
    return parser.parse_args()


def default_python() -> Path:
    """The Python of .venv, else the running one."""
    python = venv_python(ROOT / ".venv")
    return python if python.exists() else Path(sys.executable)


def examine(python: Path) -> list[Finding]:
    """All findings, area by area."""
    say(f"looking at {python} (takes half a minute)\n")
    around = look_around(ROOT, python)
    checks = (check_machine, check_torch, check_packages, check_optional, check_settings)
    return [finding for check in checks for finding in check(around)]


def format_page(findings: Sequence[Finding]) -> str:
    """The findings as text: a heading for each area, `!` before problems, `?` before notes."""
    lines: list[str] = []
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            lines += ["", area]
        lines += _wrap(f"{_MARKS[finding.level]}{finding.name:<{_NAME_WIDTH}}", finding.text)
        if finding.fix:
            lines += _wrap(" " * _NAME_WIDTH + "->", finding.fix)
    return "\n".join([*lines, "", summary(findings)])


def _wrap(head: str, text: str) -> list[str]:
    """Long texts go on under themselves; words, such as paths and commands, are never broken."""
    return textwrap.wrap(
        f"{head} {text}", _PAGE_WIDTH, subsequent_indent=" " * (_NAME_WIDTH + 3),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def summary(findings: Sequence[Finding]) -> str:
    """The last line of the page."""
    problems = sum(finding.level == PROBLEM for finding in findings)
    if problems == 0:
        return "All that training needs is in order."
    return f"{problems} problem{'s' if problems > 1 else ''} to mend, marked with ! above."


def report_json(findings: Sequence[Finding]) -> str:
    """The findings for a program: `{"ok": bool, "findings": [{area, level, name, text, fix}]}`."""
    content = {"ok": exit_code(findings) == 0, "findings": [asdict(item) for item in findings]}
    return json.dumps(content, indent=1) + "\n"


def exit_code(findings: Sequence[Finding]) -> int:
    """1 when there is a problem; notes are none."""
    return 1 if any(finding.level == PROBLEM for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
