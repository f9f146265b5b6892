"""What rules do with the words of a caption. Each action is built once and takes one line.

An action returns the new line and at how many places it differs; 0 means that the line is as before. What stands
between < and > is a name that somebody taught a model, and no word of it is touched; a rule may name it whole. A
caption may come from anywhere and be of any length, so no regular expression here can go back over what it has read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from library.preparation.patterns import PLACEHOLDER, outside_placeholders

CaptionAction = Callable[[str], tuple[str, int]]

_NOT_IN_A_WORD, _NOT_GOING_ON = r"(?<![\w-])", r"(?![\w-])"  # "man" is no part of "human" or "spider-man"
_BLANK_BEFORE_MARK = re.compile(r" (?=,|\.(?: |\Z))")
_LEFT_IN_FRONT = re.compile(r"\A(?:[,\s]++|\.++(?=[\s,]|\Z))++")
_WORD = re.compile(rf"(?:{PLACEHOLDER}|\S)++")
_MARKS = ".,;:!?"
_CLOSING = frozenset(")]}\"'’”")
_BRACKETS = frozenset("()[]{}|<>")
_LONGEST_REPEAT = 8  # words


def tidy() -> CaptionAction:
    """One blank where there are several, none at the ends and in front of commas and full stops."""

    def change(line: str) -> tuple[str, int]:
        new = _BLANK_BEFORE_MARK.sub("", " ".join(line.split()))
        return new, int(new != line)

    return change


def lower_case() -> CaptionAction:
    """Small letters."""

    def change(line: str) -> tuple[str, int]:
        new = outside_placeholders(line, str.lower)
        return new, int(new != line)

    return change


def replace(phrases: Mapping[str, str]) -> CaptionAction:
    """Other words for words or phrases, in one go: what was put in is not looked at again.

    Of several phrases that begin at one word the longest counts. Capitals stay: Woman becomes Girl.
    """
    ordered = _longest_first(phrases)
    choice = "|".join(f"({_phrase(phrase)})" for phrase in ordered)
    pattern = re.compile(rf"{_NOT_IN_A_WORD}(?:{choice}){_NOT_GOING_ON}|{PLACEHOLDER}", re.IGNORECASE)
    new_words = [phrases[phrase] for phrase in ordered]

    def change(line: str) -> tuple[str, int]:
        count = 0

        def put(found: re.Match[str]) -> str:
            nonlocal count
            old = found.group()
            new = old if found.lastindex is None else _in_case_of(old, new_words[found.lastindex - 1])
            count += new != old
            return new

        return pattern.sub(put, line), count

    return change


def remove(words: Sequence[str]) -> CaptionAction:
    """Takes words or phrases out that stand between blanks, commas and ends of sentences."""
    ends = r"(?=[,.;!?]*+(?:\s|\Z)|,(?![.;!?]))"
    pattern = re.compile(rf"(?<![^\s,])({_one_of(words)}){ends}|{PLACEHOLDER}", re.IGNORECASE)

    def change(line: str) -> tuple[str, int]:
        places = [found.span() for found in pattern.finditer(line) if found.group(1) is not None]
        if not places:
            return line, 0
        around = zip([0, *(end for _, end in places)], [*(start for start, _ in places), len(line)], strict=True)
        return _joined([line[start:end] for start, end in around]), len(places)

    return change


def remove_before(words: Sequence[str], before: Sequence[str]) -> CaptionAction:
    """Takes words out where they stand, one or several of them, in front of one of the words of `before`."""
    run = rf"{_NOT_IN_A_WORD}(?>(?:{_one_of(words)})\s++)++"
    # a run in front of other words is found as well, and stays: it is read once, not again from each word of it
    follows = rf"((?=(?:{_one_of(before)}){_NOT_GOING_ON}))?"
    pattern = re.compile(rf"{run}{follows}|{PLACEHOLDER}", re.IGNORECASE)

    def change(line: str) -> tuple[str, int]:
        count = 0

        def put(found: re.Match[str]) -> str:
            nonlocal count
            count += found.group(1) is not None
            return found.group() if found.group(1) is None else ""

        return pattern.sub(put, line), count

    return change


def remove_start(phrases: Sequence[str]) -> CaptionAction:
    """Takes phrases out with which a caption begins, also several behind one another. Something must be left."""
    pattern = re.compile(rf"\s*+(?>(?:{_one_of(phrases)})\s++(?=\S))++", re.IGNORECASE)

    def change(line: str) -> tuple[str, int]:
        found = pattern.match(line)
        return (line[found.end() :], 1) if found else (line, 0)

    return change


def remove_repeats(words: Sequence[str] | None = None) -> CaptionAction:
    """Says once what stands twice or more at a stretch: a word, or up to eight. Numbers and weights stay.

    Args:
        words: of which a repeat must be made, or None for any. Names repeat themselves, too: Duran Duran.
    """
    counted = None if words is None else frozenset(word.casefold() for word in words)

    def change(line: str) -> tuple[str, int]:
        said: list[str] = []  # as they stand; never holds a repeat that counts: one look behind each word is enough
        cores: list[str] = []  # to compare: in small letters, without the mark behind
        count = 0
        for word in _WORD.findall(line):
            said.append(word)
            cores.append(word.casefold().rstrip(_MARKS))
            length = _repeat_at_end(said, cores)
            if length and (counted is None or counted.issuperset(cores[-length:])):
                del said[-length:], cores[-length:]
                said[-1] = word  # it may have the mark
                count += 1
        return (" ".join(said), count) if count else (line, 0)

    return change


def remove_full_stop() -> CaptionAction:
    """Takes the full stop behind the last word away; not one of an abbreviation (U.S.), and not three dots."""

    def change(line: str) -> tuple[str, int]:
        text = line.rstrip()
        last = text.rsplit(None, 1)[-1] if text else ""
        ends = last.endswith(".") and last.count(".") == 1 and (last[-2:-1].isalnum() or last[-2:-1] in _CLOSING)
        return (text[:-1], 1) if ends else (line, 0)

    return change


def _repeat_at_end(said: Sequence[str], cores: Sequence[str]) -> int:
    """How many of the last words say again what the words before them say; 0 for none."""
    end = len(said)
    for length in range(1, min(_LONGEST_REPEAT, end // 2) + 1):
        middle = end - length
        if cores[-1] != cores[middle - 1] or cores[middle - length : middle] != cores[middle:]:
            continue
        earlier, later = said[middle - length : middle], said[middle:]
        same_inside = [word.casefold() for word in earlier[:-1]] == [word.casefold() for word in later[:-1]]
        goes_on = earlier[-1].casefold() == cores[-1]  # "girl, girl" lists; "girl girl" repeats
        is_text = all(_BRACKETS.isdisjoint(word) for word in (*earlier, *later))
        if same_inside and goes_on and is_text and any(letter.isalpha() for letter in "".join(later)):
            return length
    return 0


def _joined(pieces: Sequence[str]) -> str:
    """A line from what stood around removed words: no blank, comma or gap of theirs stays."""
    joined: list[str] = []
    for number, piece in enumerate(pieces):
        text = piece.rstrip() if number == 0 else piece.lstrip() if number == len(pieces) - 1 else piece.strip()
        if number and not joined:
            text = _LEFT_IN_FRONT.sub("", text)
        if not text:
            continue
        goes_on = text[0] in _MARKS
        if joined and goes_on:
            joined[-1] = joined[-1].rstrip(", ")
        joined.append(text if not joined or goes_on else f" {text}")
    line = "".join(joined)
    return line if pieces[-1].strip() else line.rstrip(", ")


def _in_case_of(old: str, new: str) -> str:
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _one_of(phrases: Iterable[str]) -> str:
    return "|".join(_phrase(phrase) for phrase in _longest_first(phrases))


def _phrase(phrase: str) -> str:
    return r"\s++".join(re.escape(word) for word in phrase.split())


def _longest_first(phrases: Iterable[str]) -> list[str]:
    """The phrase of most letters first; equal ones by name, so that the order of a file never matters."""
    return sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
