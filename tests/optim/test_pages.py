"""docs/optimizers.md and docs/schedulers.md say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from draw_schedules import DRAWING, SHOWN, drawing
from library.optim.curves import CURVES, RAMPS
from library.optim.optimizers import finds_rate_itself
from library.optim.registry import KNOWN, resolve
from library.options.optimizer import OptimizerOptions

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page: str, head: str) -> list[list[str]]:
    """The rows of the table whose first column is called `head`."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |")) + 2
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_table_of_optimizers_is_the_registry() -> None:
    told = {row[0].strip("`"): row[1:] for row in rows("optimizers.md", "Name")}
    assert list(told) == list(KNOWN)
    for name, (path, package, notes) in told.items():
        assert path == KNOWN[name].path and package.replace("-", "_") == path.split(".")[0]
        assert notes.startswith("finds the rate") == finds_rate_itself(OptimizerOptions(optimizer_type=name)), name
        for word, value in KNOWN[name].fills:
            assert name != "SGDNesterov" or f"{word}={value}" in notes
        assert resolve(OptimizerOptions(optimizer_type=name)).kind.__name__ == path.rsplit(".", 1)[1]


def test_the_tables_of_schedules_are_the_curves() -> None:
    told = {row[0].strip("`"): set(re.findall(r"--(\w+)", row[2])) for row in rows("schedulers.md", "Name")}
    assert told == {name: set(curve.options) for name, curve in CURVES.items()}
    words = {row[0].strip("`"): set(re.findall(r"`(\w+)=", row[1])) for row in rows("schedulers.md", "Schedule")}
    assert words == {name: set(curve.words) for name, curve in CURVES.items() if curve.words}
    assert "1-sqrt" in RAMPS


def test_the_drawing_is_that_of_the_curves() -> None:
    """python tools/draw_schedules.py makes it anew."""
    assert set(SHOWN) == set(CURVES)
    assert DRAWING.read_text(encoding="utf-8") == drawing()
