"""Rules of cleaning in a TOML file: [[tags.rule]] and [[captions.rule]], each with a name and one action.

finetune/cleaning_rules.toml is the file that counts by default, and its comments describe the format. Regular
expressions are left out on purpose: one such as (a+)+ can take longer than anybody lives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import voluptuous as vol

from library.core.errors import Problems, suggest_name
from library.core.toml_files import TomlFile, read_toml
from library.core.toml_lines import Keys
from library.preparation import caption_actions, tag_actions
from library.preparation.caption_actions import CaptionAction
from library.preparation.patterns import WILDCARD, tag_key
from library.preparation.tag_actions import TagAction

TAGS, CAPTIONS = "tags", "captions"
_NAME = "name"
_LONGEST = 200  # letters of a name, a pattern or a phrase


@dataclass(frozen=True)
class TagRule:
    """A rule for tags; `lays_out` when it also puts one comma and one blank between them."""

    name: str
    action: TagAction
    lays_out: bool = False


@dataclass(frozen=True)
class CaptionRule:
    """A rule for captions."""

    name: str
    change: CaptionAction


@dataclass(frozen=True)
class Rules:
    """The rules of a file in their order. No two have one name."""

    tags: tuple[TagRule, ...]
    captions: tuple[CaptionRule, ...]


@dataclass(frozen=True)
class _Key:
    """A key of a rule: what its value must be, and how it is written."""

    read: Callable[[Any], Any]
    example: str

    def __call__(self, value: Any) -> Any:
        """As voluptuous wants it."""
        try:
            return self.read(value)
        except ValueError as error:
            raise vol.Invalid(str(error)) from None


def read_rules(path: Path, flag: str) -> Rules:
    """Reads a rules file.

    Args:
        path: the file.
        flag: the option that named it, for messages.

    Raises:
        UserError: with every mistake in the file, each with its line.
    """
    file = read_toml(path, flag)
    problems = Problems()
    rules = _Reader(file, problems).read()
    problems.raise_if_any()
    return rules


def _switched_on(value: Any) -> bool:
    if value is not True:
        raise ValueError("must be true; leave the rule out to do without it")
    return True


def _one_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"text in quotes is needed, got {_shown(value)}")
    if not value.strip():
        raise ValueError("an empty text means nothing")
    if len(value) > _LONGEST:
        raise ValueError(f"{_shown(value)} has more than {_LONGEST} letters")
    if any(ord(letter) < ord(" ") for letter in value):
        raise ValueError(f"{_shown(value)} holds a line break, a tab or another control character")
    return value.strip()


def _pattern(value: Any) -> str:
    text = _one_text(value)
    if "," in text:
        raise ValueError(f"{text!r} holds a comma, and no tag does; write each tag in quotes of its own")
    return text


def _phrase(value: Any) -> str:
    text = _one_text(value)
    if WILDCARD in text:
        raise ValueError(f"{text!r} holds a *, which has its meaning in patterns of tags only")
    return text


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def read_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ValueError(f"a list in [ ] is needed, got {_shown(value)}")
        if not value:
            raise ValueError("an empty list means nothing")
        return tuple(read(item) for item in value)

    return read_list


def _condition(value: Any) -> tuple[str, ...]:
    """A pattern, or several that must all be met."""
    found: tuple[str, ...] = _list_of(_pattern)(value) if isinstance(value, list) else (_pattern(value),)
    return found


def _one_thing(value: Any) -> str | tuple[str, ...]:
    """A pattern, or several that say one thing."""
    found: tuple[str, ...] = _list_of(_pattern)(value) if isinstance(value, list) else ()
    return found or _pattern(value)


def _word(value: Any) -> str:
    text = _phrase(value)
    if len(text.split()) > 1:
        raise ValueError(f"{text!r} is more than one word; write each in quotes of its own")
    return text


def _any_or_words(value: Any) -> tuple[str, ...] | None:
    """Words, or None for any."""
    if isinstance(value, list):
        words: tuple[str, ...] = _list_of(_word)(value)
        return words
    _switched_on(value)
    return None


def _pairs(read: Callable[[Any], str], key_of: Callable[[str], str]) -> Callable[[Any], dict[str, str]]:
    """Old texts with new ones; `key_of` tells which old ones are the same."""

    def read_pairs(value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not value:
            raise ValueError(f"old and new texts in {{ }} are needed, got {_shown(value)}")
        found: dict[str, str] = {}
        seen: dict[str, str] = {}
        for old, new in value.items():
            name = read(old)
            if WILDCARD in name:
                raise ValueError(f"{old!r} holds a *, but only whole texts can be replaced")
            if new == "":
                raise ValueError(f"nothing stands in place of {old!r}; use remove for it")
            if key_of(name) in seen:
                raise ValueError(f"{old!r} and {seen[key_of(name)]!r} are the same")
            seen[key_of(name)] = old
            found[name] = _one_text(new)
        return found

    return read_pairs


def _phrase_key(phrase: str) -> str:
    return " ".join(phrase.casefold().split())


_ON = _Key(_switched_on, "true")
_PATTERNS = _Key(_list_of(_pattern), '["rating:*", "watermark"]')
_PHRASES = _Key(_list_of(_phrase), '["anime", "there is"]')
_TAG_ACTIONS: Mapping[str, _Key] = MappingProxyType(
    {
        "tidy": _ON,
        "lower_case": _ON,
        "underscores_to_blanks": _ON,
        "replace": _Key(_pairs(_pattern, tag_key), '{ "gray hair" = "grey hair" }'),
        "remove": _PATTERNS,
        "remove_if_several": _Key(_list_of(_list_of(_one_thing)), '[["* hair"], ["* eyes"]]'),
        "remove_covered": _ON,
        "deduplicate": _ON,
    }
)
_CAPTION_ACTIONS: Mapping[str, _Key] = MappingProxyType(
    {
        "tidy": _ON,
        "lower_case": _ON,
        "replace": _Key(_pairs(_phrase, _phrase_key), '{ "woman" = "girl" }'),
        "remove": _PHRASES,
        "remove_start": _PHRASES,
        "remove_repeats": _Key(_any_or_words, '["a", "the"]'),
        "remove_full_stop": _ON,
    }
)
_ACTIONS = MappingProxyType({TAGS: _TAG_ACTIONS, CAPTIONS: _CAPTION_ACTIONS})
_MORE_KEYS: Mapping[str, Mapping[str, _Key]] = MappingProxyType(
    {
        TAGS: {"when_any": _Key(_list_of(_condition), '["2girls", ["1girl", "1boy"]]'), "except": _PATTERNS},
        CAPTIONS: {"before": _Key(_list_of(_phrase), '["girl", "boy"]')},
    }
)
_NAME_KEY = _Key(_one_text, "'ratings'")


def _tag_rule(values: Mapping[str, Any], action: str) -> TagRule:
    value, exceptions = values[action], values.get("except", ())
    built: TagAction
    if action == "tidy":
        built = tag_actions.tidy()
    elif action == "replace":
        built = tag_actions.replace(value, exceptions)
    elif action == "remove":
        built = tag_actions.remove(value, exceptions)
    elif action == "remove_if_several":
        built = tag_actions.remove_if_several(value, exceptions)
    else:
        switched = {
            "lower_case": tag_actions.lower_case,
            "underscores_to_blanks": tag_actions.underscores_to_blanks,
            "remove_covered": tag_actions.remove_covered,
            "deduplicate": tag_actions.deduplicate,
        }
        built = switched[action](exceptions)
    if "when_any" in values:
        built = tag_actions.only_when(built, values["when_any"])
    return TagRule(values[_NAME], built, lays_out=action == "tidy")


def _caption_rule(values: Mapping[str, Any], action: str) -> CaptionRule:
    value = values[action]
    change: CaptionAction
    if action == "replace":
        change = caption_actions.replace(value)
    elif action == "remove" and "before" in values:
        change = caption_actions.remove_before(value, values["before"])
    elif action == "remove":
        change = caption_actions.remove(value)
    elif action == "remove_start":
        change = caption_actions.remove_start(value)
    elif action == "remove_repeats":
        change = caption_actions.remove_repeats(value)
    else:
        switched = {
            "tidy": caption_actions.tidy,
            "lower_case": caption_actions.lower_case,
            "remove_full_stop": caption_actions.remove_full_stop,
        }
        change = switched[action]()
    return CaptionRule(values[_NAME], change)


class _Reader:
    """Goes through the tables of a file."""

    def __init__(self, file: TomlFile, problems: Problems) -> None:
        self._file = file
        self._problems = problems
        self._names: dict[str, str] = {}  # by name in small letters, where it stands first

    def read(self) -> Rules:
        for key, value in self._file.content.items():
            if key not in _ACTIONS:
                inner = tuple(value)[:1] if isinstance(value, dict) else ()  # [[tag.rule]] is the line of both
                fix = suggest_name(key, _ACTIONS, "rules stand below [[tags.rule]] and [[captions.rule]]")
                self._problems.add(f"{key} is not a part of a rules file", self._file.where((key, *inner)), fix)
        tags = [_tag_rule(*rule) for rule in self._read_part(TAGS)]
        captions = [_caption_rule(*rule) for rule in self._read_part(CAPTIONS)]
        if not tags and not captions and not self._problems:
            fix = "write [[tags.rule]] or [[captions.rule]]; finetune/cleaning_rules.toml shows how"
            self._problems.add("the file has no rules", str(self._file.path), fix)
        return Rules(tuple(tags), tuple(captions))

    def _read_part(self, part: str) -> list[tuple[Mapping[str, Any], str]]:
        """The good rules of a part: their values, and their action."""
        table = self._file.content.get(part, {})
        if not isinstance(table, dict):
            self._problems.add(f"{part} must be a table", self._file.where((part,)), f"write [[{part}.rule]]")
            return []
        for key in table:
            if key != "rule":
                fix = suggest_name(key, ["rule"], f"each rule stands below [[{part}.rule]]")
                self._problems.add(f"{key} is not a key of {part}", self._file.where((part, key)), fix)
        entries = table.get("rule", [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            what = "rule must be a list of tables"
            self._problems.add(what, self._file.where((part, "rule")), f"write [[{part}.rule]] with double brackets")
            return []
        rules = [self._read_rule(part, number, entry) for number, entry in enumerate(entries)]
        return [rule for rule in rules if rule is not None]

    def _read_rule(self, part: str, number: int, entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
        way, before = (part, "rule", number), len(self._problems)
        known = {_NAME: _NAME_KEY, **_ACTIONS[part], **_MORE_KEYS[part]}
        for key in entry:
            if key not in known:
                self._problems.add(f"{key} is not a key of [[{part}.rule]]", *self._unknown(part, (*way, key), known))
        values: dict[str, Any] = {}
        try:
            schema = vol.Schema({vol.Optional(key): kind for key, kind in known.items()})
            values = schema({key: value for key, value in entry.items() if key in known})
        except vol.MultipleInvalid as error:
            for invalid in error.errors:
                key = str(invalid.path[0])
                fix = f"write for example {key} = {known[key].example}"
                self._problems.add(f"{key}: {invalid.msg}", self._place((*way, key), entry), fix)
        self._check_name(entry, way)
        action = self._check_action(part, entry, way, len(self._problems) > before)
        return (values, action) if action and len(self._problems) == before else None

    def _unknown(self, part: str, way: Keys, known: Mapping[str, _Key]) -> tuple[str, str]:
        """Where an unknown key stands, and the mend."""
        key = str(way[-1])
        other = CAPTIONS if part == TAGS else TAGS
        if key in _ACTIONS[other] or key in _MORE_KEYS[other]:
            return self._file.where(way), f"it belongs to [[{other}.rule]]"
        return self._file.where(way), suggest_name(key, known, f"valid here: {', '.join(known)}")

    def _check_name(self, entry: Mapping[str, Any], way: Keys) -> None:
        name, place = entry.get(_NAME), self._file.where((*way, _NAME))
        if name is None:
            self._problems.add("the rule has no name", self._file.where(way), "add name = 'ratings' for the counts")
        elif isinstance(name, str) and name.strip():
            first = self._names.setdefault(name.strip().casefold(), place)
            if first != place:
                self._problems.add(f"the name {name!r} stands twice, first in {first}", place, "give it another one")

    def _check_action(self, part: str, entry: Mapping[str, Any], way: Keys, has_mistakes: bool) -> str | None:
        """The one action of a rule."""
        found = [key for key in entry if key in _ACTIONS[part]]
        if len(found) > 1:
            what = f"one rule has {len(found)} actions: {', '.join(found)}"
            self._problems.add(what, self._place((*way, found[1]), entry), "make a rule of each, in their order")
        elif not found and not has_mistakes:
            self._problems.add(
                "the rule does nothing", self._place(way, entry), f"add one of: {', '.join(_ACTIONS[part])}"
            )
        elif part == CAPTIONS and "before" in entry and found and found[0] != "remove":
            place = self._place((*way, "before"), entry)
            self._problems.add(f"before does nothing beside {found[0]}", place, "it belongs to remove; leave it out")
        elif part == TAGS and "except" in entry and found == ["tidy"]:
            place = self._place((*way, "except"), entry)
            self._problems.add("except does nothing beside tidy", place, "leave it out")
        return found[0] if len(found) == 1 else None

    def _place(self, way: Keys, entry: Mapping[str, Any]) -> str:
        name = entry.get(_NAME)
        return f"{self._file.where(way)} ({name})" if isinstance(name, str) and name else self._file.where(way)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]} …"
