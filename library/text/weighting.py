"""Weights in captions, in the Web UI's notation.

`(x)` counts 1.1 times, `[x]` 1/1.1 times, `(x:1.3)` 1.3 times; nesting multiplies; a backslash before a bracket or
another backslash makes plain text of it. An opening bracket without a partner counts to the end of the text, a closing
one is text. Round and square brackets are paired each on their own, so that `(a [b) c]` weighs `b` by both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

PLAIN_WEIGHT = 1.0
BRACKET_WEIGHT = 1.1

_PARTNERS = {")": "(", "]": "["}
_MARK = re.compile(r"\\(?P<escaped>[()\[\]\\])|(?P<bracket>[()\[\]])|:\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
_TO_ESCAPE = re.compile(r"[()\[\]\\]")


@dataclass(frozen=True)
class WeightedText:
    """A piece of a caption, without marks, and what its text states are multiplied by."""

    text: str
    weight: float


@dataclass(frozen=True)
class _Mark:
    """What the text holds at one place: text, or a bracket; a closing round one may bring a number."""

    text: str
    bracket: str = ""
    number: float | None = None


def parse_weights(text: str) -> list[WeightedText]:
    """The pieces of a caption from left to right; neighbours of equal weight are one piece, no piece is empty.

    Any text is valid, so nothing is raised.
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # how many pieces stood before each bracket that is still open
    for mark in _marks(text):
        if mark.bracket in opened:
            opened[mark.bracket].append(len(texts))
            continue
        starts = opened[_PARTNERS[mark.bracket]] if mark.bracket else []
        if starts:
            _multiply(weights, starts.pop(), _factor(mark))
        else:
            texts.append(mark.text)
            weights.append(PLAIN_WEIGHT)
    for bracket, starts in opened.items():
        for start in starts:
            _multiply(weights, start, _factor(_Mark(bracket, bracket)))
    return _merge(texts, weights)


def print_weights(pieces: list[WeightedText]) -> str:
    """The caption that `parse_weights` reads as these pieces; weights must be finite.

    Backslashes and brackets of the text are escaped. Reading gives the very same list when no piece is empty and no two
    neighbours have equal weights, otherwise the list with such pieces dropped and joined.
    """
    return "".join(_print_piece(piece) for piece in pieces)


def has_unbalanced_brackets(text: str) -> bool:
    """Does an opening or closing bracket have no partner? Escaped ones do not count."""
    depths = {"(": 0, "[": 0}
    for mark in _marks(text):
        if mark.bracket in depths:
            depths[mark.bracket] += 1
        elif mark.bracket:
            depths[_PARTNERS[mark.bracket]] -= 1
            if depths[_PARTNERS[mark.bracket]] < 0:
                return True
    return any(depths.values())


def _marks(text: str) -> Iterator[_Mark]:
    """The text taken apart. A number before a closing bracket is the weight, in any other place it is text."""
    position = 0
    for match in _MARK.finditer(text):
        if match.start() > position:
            yield _Mark(text[position : match.start()])
        position = match.end()
        if match["escaped"]:
            yield _Mark(match["escaped"])
        elif match["bracket"]:
            yield _Mark(match["bracket"], match["bracket"])
        else:
            yield _Mark(match[0], ")", float(match["number"]))
    if position < len(text):
        yield _Mark(text[position:])


def _factor(mark: _Mark) -> float:
    if mark.number is not None:
        return mark.number
    return BRACKET_WEIGHT if mark.bracket in "()" else 1 / BRACKET_WEIGHT


def _multiply(weights: list[float], start: int, factor: float) -> None:
    for index in range(start, len(weights)):
        weights[index] *= factor


def _merge(texts: list[str], weights: list[float]) -> list[WeightedText]:
    pieces: list[WeightedText] = []
    for text, weight in zip(texts, weights, strict=True):
        if pieces and pieces[-1].weight == weight:
            pieces[-1] = WeightedText(pieces[-1].text + text, weight)
        else:
            pieces.append(WeightedText(text, weight))
    return pieces


def _print_piece(piece: WeightedText) -> str:
    text = _TO_ESCAPE.sub(r"\\\g<0>", piece.text)
    if piece.weight == PLAIN_WEIGHT or not text:
        return text
    number = format(Decimal(repr(piece.weight)), "f")  # all digits and never an exponent, which is no number here
    return f"({text}:{number})"
