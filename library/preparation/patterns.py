"""Which tags a rule means: whole tags in any case, an underscore like a blank, * and ** for what may differ.

And what no rule means: words that somebody taught a model, such as <my_cat>, which stand between < and >.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from library.data.captions.caption_changes import split_tags

WILDCARD = "*"
PLACEHOLDER = "<[^<>]*+>"  # <my_cat>, <lora:my_cat:0.8>: a name, whatever words it is made of

_ESCAPED_BRACKET = re.compile(r"\\([()\[\]])")
_PLACEHOLDERS = re.compile(f"({PLACEHOLDER})")
_PARTS = re.compile(r"\*+|[^*]")
_HOLDS_NO_COMMA = re.compile(r"\\[\\()\[\]]|\([^()\[\],\\]*\)|\[[^()\[\],\\]*\]")  # escaped brackets, and pairs
REMEMBERED = 1 << 16  # tags repeat from picture to picture; names of characters alone are tens of thousands


@lru_cache(maxsize=REMEMBERED)
def tag_key(tag: str) -> str:
    r"""What two spellings of one tag share: `Long_Hair` and `long hair`, `mira \(game\)` and `mira_(game)`."""
    plain = _ESCAPED_BRACKET.sub(r"\1", tag) if "\\" in tag else tag
    return " ".join(plain.replace("_", " ").casefold().split()) or tag


def tags_in(line: str) -> list[str]:
    """The tags of a line as training tells them apart: a comma within a pair of brackets does not split."""
    if "(" in line or "[" in line:
        others = _HOLDS_NO_COMMA.sub("", line)  # most are names such as mira (game), and counting brackets is slow
        if "(" in others or "[" in others:
            return split_tags(line)
    return [tag for tag in (piece.strip() for piece in line.split(",")) if tag]


def outside_placeholders(text: str, change: Callable[[str], str]) -> str:
    """The text, changed but for what stands between < and >."""
    if "<" not in text:
        return change(text)
    pieces = _PLACEHOLDERS.split(text)  # every other one is a placeholder
    return "".join(piece if number % 2 else change(piece) for number, piece in enumerate(pieces))


def tag_test(patterns: Iterable[str], exceptions: Iterable[str] = ()) -> Callable[[str], bool]:
    """A question to a tag: does it fit one of the patterns, and none of the exceptions?

    Args:
        patterns: whole tags. `*` stands for any letters of one word, none included, `**` for any letters and blanks.
        exceptions: patterns as well.
    """
    wanted, unwanted = Patterns(patterns), Patterns(exceptions)

    @lru_cache(maxsize=REMEMBERED)
    def test(tag: str) -> bool:
        key = tag_key(tag)
        return wanted.fit(key) and not unwanted.fit(key)

    return test


class Patterns:
    """Patterns of which one must fit: those without wildcards are looked up."""

    def __init__(self, patterns: Iterable[str]) -> None:
        keys = [tag_key(pattern) for pattern in patterns]
        self._whole = frozenset(key for key in keys if WILDCARD not in key)
        self._wild = tuple(_WildPattern(key) for key in keys if WILDCARD in key)

    def fit(self, key: str) -> bool:
        """Whether one of them fits a tag, given by its `tag_key`."""
        return key in self._whole or any(pattern.fits(key) for pattern in self._wild)


class _WildPattern:
    """A pattern with wildcards, followed along all its ways at once (the shift-and method of Baeza-Yates and Gonnet).

    The time is that of one look at each letter, whatever pattern and tag are: there is no going back, as there is in
    regular expressions. Bit n of a state says that the first n parts of the pattern can stand for what was read.
    """

    def __init__(self, key: str) -> None:
        parts = _PARTS.findall(key)
        self._head, self._tail = key.split(WILDCARD, 1)[0], key.rsplit(WILDCARD, 1)[1]
        self._end = 1 << len(parts)
        self._letters: dict[str, int] = {}
        self._words = self._blanks = 0  # parts that take any letter, and those of them that take a blank as well
        for number, part in enumerate(parts):
            if not part.startswith(WILDCARD):
                self._letters[part] = self._letters.get(part, 0) | 1 << number
                continue
            self._words |= 1 << number
            if len(part) > 1:
                self._blanks |= 1 << number

    def fits(self, key: str) -> bool:
        if not (key.startswith(self._head) and key.endswith(self._tail)):
            return False
        state = self._with_skipped(1)
        for letter in key:
            stays = state & (self._blanks if letter == " " else self._words)
            state = self._with_skipped(stays | (state & self._letters.get(letter, 0)) << 1)
        return bool(state & self._end)

    def _with_skipped(self, state: int) -> int:
        """A wildcard may stand for nothing; two never stand side by side."""
        return state | (state & self._words) << 1
