"""Captions and tags of metadata entries, cleaned by rules. Everything else of an entry stays as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from library.core.wording import some_of
from library.data.index.metadata_json import TEXT_KEYS
from library.preparation.patterns import REMEMBERED, tags_in
from library.preparation.rules import Rules
from library.preparation.tag_actions import JOINT

CAPTION, TAGS = TEXT_KEYS

_LINE_END = re.compile(r"(\r\n|\r|\n)")
_NAMES_TOLD = 5


class Cleaned(NamedTuple):
    """A cleaned entry, and by the name of each rule that changed something, at how many places it did."""

    entry: dict[str, Any]
    changes: Mapping[str, int]


class Cleaner:
    """Applies rules to entries, one entry after another. What it remembers makes it fast, and changes nothing."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._concerned: dict[str, int] = {}  # by tag: a bit for each rule that it can make do something

    def clean(self, entry: Mapping[str, Any]) -> Cleaned:
        """Applies the rules to the caption and the tags of an entry, once each and in the order of the file.

        Each line of a text is cleaned on its own, since it is a caption of its own for a training with wildcards; one
        of which nothing is left goes away. A text that no rule changes stays as it is to the letter.

        Args:
            entry: of a metadata file; the texts may be missing. It is not changed.
        """
        cleaned, changes = dict(entry), Counter[str]()
        if CAPTION in entry:
            cleaned[CAPTION] = _clean_lines(entry[CAPTION], lambda line: self._clean_caption(line, changes))
        if TAGS in entry:
            cleaned[TAGS] = _clean_lines(entry[TAGS], lambda line: self._clean_tags(line, changes))
        return Cleaned(cleaned, changes)

    def _clean_caption(self, line: str, changes: Counter[str]) -> str:
        for rule in self._rules.captions:
            line, count = rule.change(line)
            if count:
                changes[rule.name] += count
        return line

    def _clean_tags(self, line: str, changes: Counter[str]) -> str:
        tags = tags_in(line)
        concerned = self._concerned_by(tags)
        for number, rule in enumerate(self._rules.tags):
            new, count = rule.action.change(tags) if concerned >> number & 1 else (tags, 0)
            if count:
                tags, concerned = new, self._concerned_by(new)
            if count or (rule.lays_out and line != JOINT.join(tags)):
                line = JOINT.join(tags)
                changes[rule.name] += count or 1
        return line

    def _concerned_by(self, tags: Iterable[str]) -> int:
        bits = 0
        for tag in tags:
            known = self._concerned.get(tag)
            if known is None:
                known = sum(rule.action.concerns(tag) << number for number, rule in enumerate(self._rules.tags))
                if len(self._concerned) >= REMEMBERED:
                    self._concerned.clear()
                self._concerned[tag] = known
            bits |= known
        return bits


def _clean_lines(text: str, clean: Callable[[str], str]) -> str:
    if "\n" not in text and "\r" not in text:
        return clean(text)
    pieces = _LINE_END.split(text)
    kept: list[tuple[str, str]] = []  # lines and what ends them
    for line, end in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        new = clean(line)
        if new.strip() or not line.strip():
            kept.append((new, end))
    if kept and kept[-1][1]:  # the last line is gone, and this one is the last now
        kept[-1] = (kept[-1][0], "")
    return "".join(line + end for line, end in kept)


class Tally:
    """What cleaning did to a whole file, for the log."""

    def __init__(self) -> None:
        self.entries = 0
        self.changed = 0
        self.emptied = 0
        self._emptied_names: list[str] = []
        self._texts: Counter[str] = Counter()  # by rule
        self._places: Counter[str] = Counter()

    def add(self, key: str, before: Mapping[str, Any], cleaned: Cleaned) -> None:
        """Counts one entry.

        Args:
            key: of the entry.
            before: the entry as it was.
            cleaned: what came of it.
        """
        self.entries += 1
        self.changed += cleaned.entry != before
        self._texts.update(cleaned.changes.keys())
        self._places.update(cleaned.changes)
        if _has_text(before) and not _has_text(cleaned.entry):
            self.emptied += 1
            if len(self._emptied_names) < _NAMES_TOLD:
                self._emptied_names.append(key)

    def told(self, rules: Rules) -> Iterator[str]:
        """A line for each rule in the order of the file, also for those that changed nothing, and one for all."""
        yield from (f"{rule.name}: tags of {self._counted(rule.name, 'picture')}" for rule in rules.tags)
        yield from (f"{rule.name}: {self._counted(rule.name, 'caption')}" for rule in rules.captions)
        yield f"{self.changed} of {self.entries} entries changed"

    def warning(self) -> str | None:
        """What to know of entries that had texts and have none now."""
        if not self.emptied:
            return None
        names = some_of(self._emptied_names, self.emptied)
        what = "1 of them has" if self.emptied == 1 else f"{self.emptied} of them have"
        return f"{what} neither caption nor tags any more, and a training asks for one of these: {names}"

    def _counted(self, rule: str, noun: str) -> str:
        texts, places = self._texts[rule], self._places[rule]
        return f"{texts} {noun}{'' if texts == 1 else 's'}" + (f" ({places} places)" if places != texts else "")


def _has_text(entry: Mapping[str, Any]) -> bool:
    return any(str(entry.get(key, "")).strip() for key in TEXT_KEYS)
