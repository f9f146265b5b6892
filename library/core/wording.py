"""Pieces of sentences that several messages share."""

from __future__ import annotations

from collections.abc import Sequence


def some_of(first: Sequence[str], total: int) -> str:
    """The first names of many, and how many follow: "a.png, b.png and 7 more"."""
    more = f" and {total - len(first)} more" if total > len(first) else ""
    return ", ".join(first) + more
