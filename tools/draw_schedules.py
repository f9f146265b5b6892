"""Draws the schedules of docs/schedulers.md into docs/schedules.svg. Usage: python tools/draw_schedules.py"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from library.core.atomic_io import write_text_whole  # noqa: E402
from library.optim.curves import CURVES, Bends, read_rules  # noqa: E402

DRAWING = ROOT / "docs" / "schedules.svg"
UPDATES = 1000
COLUMNS, WIDTH, HEIGHT, MARGIN, HEAD = 3, 250, 110, 20, 34

# what each picture shows beside the defaults: the words of the command, and what they make of the curve
SHOWN: Mapping[str, tuple[str, Bends]] = {
    "constant": ("", Bends(UPDATES)),
    "constant_with_warmup": ("warm-up 100", Bends(UPDATES, warmup=100)),
    "linear": ("warm-up 100", Bends(UPDATES, warmup=100)),
    "cosine": ("warm-up 100", Bends(UPDATES, warmup=100)),
    "cosine_with_restarts": ("warm-up 100, 3 cycles", Bends(UPDATES, warmup=100, restarts=3)),
    "polynomial": ("warm-up 100, power 2", Bends(UPDATES, warmup=100, power=2.0)),
    "inverse_sqrt": ("warm-up 100", Bends(UPDATES, warmup=100)),
    "cosine_with_min_lr": ("warm-up 100, lowest 0.2", Bends(UPDATES, warmup=100, low=0.2)),
    "warmup_stable_decay": ("warm-up 100, decay 300", Bends(UPDATES, warmup=100, decay=300)),
    "piecewise_constant": ("1:400,0.3:700,0.1", Bends(UPDATES, rules=read_rules("1:400,0.3:700,0.1"))),
}


def drawing() -> str:
    """The SVG: one small diagram for each schedule, the rate over the updates of a run."""
    rows = -(-len(CURVES) // COLUMNS)
    width, height = COLUMNS * (WIDTH + MARGIN) + MARGIN, rows * (HEIGHT + HEAD + MARGIN) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, name in enumerate(CURVES):
        row, column = divmod(number, COLUMNS)
        parts += _diagram(name, MARGIN + column * (WIDTH + MARGIN), MARGIN + row * (HEIGHT + HEAD + MARGIN))
    return "\n".join([*parts, "</svg>", ""])


def _diagram(name: str, left: int, top: int) -> list[str]:
    shown, bends = SHOWN[name]
    bottom = top + HEAD + HEIGHT
    points = (
        f"{left + WIDTH * update / UPDATES:g},{bottom - HEIGHT * CURVES[name].curve(update, bends):.1f}"
        for update in range(0, UPDATES + 1, 5)
    )
    return [
        f'<text x="{left}" y="{top + 12}" font-weight="bold">{name}</text>',
        f'<text x="{left}" y="{top + 27}" fill="#666666">{shown}</text>',
        f'<rect x="{left}" y="{top + HEAD}" width="{WIDTH}" height="{HEIGHT}" fill="#f6f6f6" stroke="#cccccc"/>',
        f'<polyline fill="none" stroke="#1f5fa8" stroke-width="1.5" points="{" ".join(points)}"/>',
    ]


def main() -> None:
    """Writes the drawing."""
    write_text_whole(DRAWING, drawing())


if __name__ == "__main__":
    main()
