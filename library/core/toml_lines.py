"""On which line of a TOML text each key stands. The parser of the standard library does not tell.

The text is known to be valid, so only what bears on places is looked at: strings, comments, brackets and key names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

Keys = tuple[str | int, ...]  # ("datasets", 0, "subsets", 1, "image_dir")

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRINGS = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_PLAIN_VALUE = re.compile(r"[^,\]}#\n]*")


def find_key_lines(text: str) -> Mapping[Keys, int]:
    """The line, from 1, of every key and of every table of a list."""
    return _Scanner(text).scan()


class _Scanner:
    """Goes through the text once; `_at` is where it stands."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lines: dict[Keys, int] = {}
        self._lengths: Counter[Keys] = Counter()  # of the lists of tables written with double brackets

    def scan(self) -> Mapping[Keys, int]:
        table: Keys = ()
        while self._skip_blank() < len(self._text):
            if self._text[self._at] == "[":
                table = self._read_head()
            else:
                self._read_entry(table)
        return self._lines

    def _skip_blank(self) -> int:
        found = _BLANK.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._at

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _read_head(self) -> Keys:
        """[table] or [[list of tables]]; returns what its entries belong to."""
        line, is_list = self._line(), self._text.startswith("[[", self._at)
        self._at += 2 if is_list else 1
        names = self._read_names()
        self._at += 2 if is_list else 1
        path: Keys = ()
        for number, name in enumerate(names, 1):
            path = (*path, name)
            if number == len(names) and is_list:
                self._lines.setdefault(path, line)
                self._lengths[path] += 1
            if path in self._lengths:
                path = (*path, self._lengths[path] - 1)
        self._lines.setdefault(path, line)
        return path

    def _read_entry(self, table: Keys) -> None:
        """key = value"""
        line = self._line()
        path = (*table, *self._read_names())
        self._lines.setdefault(path, line)
        self._skip_blank()
        self._at += 1  # the equals sign
        self._read_value(path)

    def _read_names(self) -> list[str]:
        """Names joined by dots."""
        names: list[str] = []
        while True:
            self._skip_blank()
            found = _STRINGS.match(self._text, self._at) or _BARE_KEY.match(self._text, self._at)
            if found is None:
                return names
            names.append(found.group().strip("\"'"))
            self._at = found.end()
            if self._text[self._skip_blank() : self._at + 1] != ".":
                return names
            self._at += 1

    def _read_value(self, path: Keys) -> None:
        self._skip_blank()
        mark = self._text[self._at : self._at + 1]
        if mark == "[":
            self._read_parts(path, "]")
        elif mark == "{":
            self._read_parts(path, "}")
        else:
            found = _STRINGS.match(self._text, self._at) or _PLAIN_VALUE.match(self._text, self._at)
            self._at = found.end() if found else len(self._text)

    def _read_parts(self, path: Keys, closing: str) -> None:
        """The values of a list, or the entries of a table in one line."""
        self._at += 1
        number = 0
        while self._skip_blank() < len(self._text) and self._text[self._at] != closing:
            if closing == "]":
                self._lines.setdefault((*path, number), self._line())
                self._read_value((*path, number))
                number += 1
            else:
                self._read_entry(path)
            if self._text[self._skip_blank() : self._at + 1] == ",":
                self._at += 1
        self._at += 1
