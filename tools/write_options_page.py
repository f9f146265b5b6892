"""Writes docs/options.md from the option dataclasses. Usage: python tools/write_options_page.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from library.core.atomic_io import write_text_whole  # noqa: E402
from library.options.scripts import SCRIPTS  # noqa: E402
from library.options.write import options_page  # noqa: E402


def main() -> None:
    """Writes the page."""
    write_text_whole(ROOT / "docs" / "options.md", options_page(SCRIPTS))


if __name__ == "__main__":
    main()
