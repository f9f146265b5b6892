"""Wildcards in captions: `{a|b|c}` stands for one of its parts, drawn anew at each use. Pure functions.

Braces pair up like brackets, a closing one with the nearest open one before it, and wildcards may stand inside each
other. A pair directly inside another, `{{a}}`, is one pair of braces as text, and so is a pair of such pairs. Of three,
`{{{a|b}}}`, the inner one is a wildcard in braces. A brace without a partner is text; doubled, it is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

_MARKS = re.compile(r"[{}|]|[^{}|]+")
_OPEN, _CLOSE, _BAR = "open", "close", "bar"  # what a mark does; all else is text


def draw_wildcards(text: str, draws: np.random.Generator) -> str:
    """The text with each wildcard replaced by one of its parts, all equally likely, and `{{`, `}}` by single braces.

    Parts are taken as they are written, blanks included; `{a|}` is `a` or nothing, and a pair of braces without a bar
    has one part. Bars outside wildcards are text. Any text is valid, so nothing is raised.

    Args:
        text: one line of a caption.
        draws: one number is drawn for each wildcard, in the order in which they close.
    """
    open_parts = [[""]]  # of the text itself, then of each wildcard that is open: its parts so far
    for kind, mark in _read(text):
        if kind == _OPEN:
            open_parts.append([""])
        elif kind == _BAR and len(open_parts) > 1:
            open_parts[-1].append("")
        elif kind == _CLOSE:
            parts = open_parts.pop()
            open_parts[-1][-1] += parts[int(draws.integers(len(parts)))]
        else:
            open_parts[-1][-1] += mark
    return open_parts[0][0]


def _read(text: str) -> Iterator[tuple[str, str]]:
    """The kind of each mark and what it is as text; only braces that have a partner open and close."""
    partners = _pair_braces(text)
    as_text = _literal_braces(text, partners)
    for found in _MARKS.finditer(text):
        mark, position = found.group(), found.start()
        if mark == "|":
            yield _BAR, mark
        elif position in as_text:
            yield "", as_text[position]
        elif position in partners:
            yield (_OPEN if mark == "{" else _CLOSE), mark
        else:
            yield "", mark


def _pair_braces(text: str) -> dict[int, int]:
    """The partner of every brace that has one, both ways."""
    partners: dict[int, int] = {}
    unpaired: list[int] = []
    for found in re.finditer("[{}]", text):
        position = found.start()
        if found.group() == "{":
            unpaired.append(position)
        elif unpaired:
            start = unpaired.pop()
            partners[start], partners[position] = position, start
    return partners


def _literal_braces(text: str, partners: dict[int, int]) -> dict[int, str]:
    """What doubled braces are as text, by position: the first of two is a brace, the second nothing."""
    as_text: dict[int, str] = {}
    for found in re.finditer("[{}]", text):
        position, following = found.start(), found.start() + 1
        if position in as_text or text[following : following + 1] != found.group():
            continue
        end = partners.get(position)
        if end is None and following not in partners:
            as_text |= {position: found.group(), following: ""}
        elif end is not None and end > position and partners.get(following) == end - 1:
            as_text |= {position: "{", following: "", end - 1: "}", end: ""}
    return as_text
