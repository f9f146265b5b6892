"""The prompts of sample pictures, read from a file.

A .txt file has one prompt in each line, a .json file a list of texts or tables, a .toml file tables. The letters in
lines and the keys in tables are those of the public training tools. All mistakes of a file are told at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.core.errors import Problems, UserError, nearest_name, suggest_name
from library.core.sizes import Size
from library.core.toml_files import TomlFile, read_toml
from library.options.checks import multiple_of
from library.options.samples import DDIM, SAMPLERS
from library.preview.sampler_names import all_names, sampler_named

FLAG = "--sample_prompts"
SIDE_STEP = 8  # pixels in a latent cell, along each side
SHORTEST_SIDE, LONGEST_SIDE = 64, 4096
LARGEST_SEED = 2**63 - 1  # what TOML can hold
_MOST_STEPS = 500  # some samplers run out of diffusion times with more
_LARGEST_SCALE = 100

_DEFAULT_SIZE = Size(512, 512)
_OPTION = re.compile(r"(?:^|(?<=\s))--(?P<name>[^\s-]\S*)")
_SHORTEST_WORD = 4  # letters: options of other tools have fewer, and one letter is near to anything
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_JSON_FORM = 'write [{"prompt": "…"}, …]'
_PROMPT, _SUBSETS = "prompt", "subset"


@dataclass(frozen=True)
class SamplePrompt:
    """One picture to make.

    Attributes:
        size: in pixels; both sides divisible by 8.
        seed: of the noise that the picture grows from.
        scale: guidance; 1 is none, and the negative prompt has no part then.
        sampler: one of `SAMPLERS`.
    """

    prompt: str
    negative_prompt: str = ""
    size: Size = _DEFAULT_SIZE
    seed: int = 0
    scale: float = 7.5
    steps: int = 30
    sampler: str = DDIM


@dataclass(frozen=True)
class PromptDefaults:
    """What prompts get that do not say it themselves.

    Attributes:
        seed: of the first prompt of a file; each following one has one more.
    """

    size: Size = _DEFAULT_SIZE
    seed: int = 0
    sampler: str = DDIM


def read_prompts(path: Path, defaults: PromptDefaults) -> tuple[SamplePrompt, ...]:
    """The prompts of a file (UTF-8, with or without a byte order mark), in its order.

    Raises:
        UserError: with every mistake of the file: file, line or number of the prompt, and option.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        what = f"{path} is no file of prompts: its name ends with {path.suffix or 'nothing'}"
        raise UserError.of(what, FLAG, f"give it one of the endings {', '.join(_READERS)}")
    problems = Problems()
    try:
        entries = list(reader(path, problems))
        prompts = [_prompt_of(entry, number, defaults, problems) for number, entry in enumerate(entries)]
    except RecursionError:
        what = "lists or tables are nested too deeply"
        raise UserError.of(what, f"{FLAG} {path}", "write one plain table for each prompt") from None
    if not entries and not problems:
        problems.add(f"there is no prompt in {path}", FLAG, "write one in each line")
    problems.raise_if_any()
    return tuple(prompts)


@dataclass(frozen=True)
class _Entry:
    """One prompt as its file has it.

    Attributes:
        given: by the keys of tables.
        where: the place of a key, for messages.
    """

    given: Mapping[str, Any]
    where: Callable[[str], str]


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write one; no tokenizer and no file takes it
        raise ValueError(f"holds half a character (a lone surrogate, at place {error.start + 1})") from None
    return value.strip()


def _within(low: int, high: int) -> Callable[[float], str | None]:
    """A check of a number of any length, whose message gives the limits to the last digit."""
    return lambda number: None if low <= number <= high else f"must be between {low} and {high}, got {number}"


def _whole_number(*checks: Callable[[int], str | None]) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"must be a whole number, got {value!r}")
        _require(number, *checks)
        return number

    return read


def _read_scale(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be a number, got {value!r}") from None
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {value!r}")
    _require(number, _within(1, _LARGEST_SCALE))
    return number


def _read_sampler(value: Any) -> str:
    name = _read_text(value)
    meant = sampler_named(name)
    if meant is None:
        listed = f"there are {', '.join(SAMPLERS)}"
        raise ValueError(f"there is no sampler {value!r}; {suggest_name(name.lower(), all_names(), listed)}")
    return meant


def _require(number: Any, *checks: Callable[[Any], str | None]) -> None:
    for check in checks:
        if complaint := check(number):
            raise ValueError(complaint)


_read_side = _whole_number(multiple_of(SIDE_STEP), _within(SHORTEST_SIDE, LONGEST_SIDE))
_FIELDS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (  # key in tables, letters in lines
    (_PROMPT, "", _read_text),
    ("negative_prompt", "n", _read_text),
    ("width", "w", _read_side),
    ("height", "h", _read_side),
    ("seed", "d", _whole_number(_within(0, LARGEST_SEED))),
    ("scale", "l", _read_scale),
    ("sample_steps", "s", _whole_number(_within(1, _MOST_STEPS))),
    ("sample_sampler", "ss", _read_sampler),
)


_TEXT_KEYS = (_PROMPT, "negative_prompt")


def _keys_by_letter() -> dict[str, str]:
    return {letter: key for key, letter, _ in _FIELDS if letter}


def _prompt_of(entry: _Entry, number: int, defaults: PromptDefaults, problems: Problems) -> SamplePrompt:
    """The prompt; what is wrong with it goes to `problems`, and has its default."""
    found: dict[str, Any] = {}
    for key, _, read in _FIELDS:
        if key in entry.given:
            try:
                found[key] = read(entry.given[key])
            except ValueError as error:
                problems.add(str(error), entry.where(key), "correct it")
    if _PROMPT not in entry.given:
        problems.add("there is no prompt", entry.where(_PROMPT), "say what the picture should show")
    return SamplePrompt(
        prompt=found.get(_PROMPT, ""),
        negative_prompt=found.get("negative_prompt", SamplePrompt.negative_prompt),
        size=Size(found.get("width", defaults.size.width), found.get("height", defaults.size.height)),
        seed=found.get("seed", (defaults.seed + number) % (LARGEST_SEED + 1)),
        scale=found.get("scale", SamplePrompt.scale),
        steps=found.get("sample_steps", SamplePrompt.steps),
        sampler=found.get("sample_sampler", defaults.sampler),
    )


def _of_lines(path: Path, problems: Problems) -> Iterator[_Entry]:
    """The prompts of a text file; blank lines and those that begin with # are none."""
    for number, line in enumerate(_text_of(path).split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _of_line(line, f"{path}, line {number}", problems)


def _of_line(line: str, place: str, problems: Problems) -> _Entry:
    """A prompt and its options, each up to the next one. Two dashes with a blank behind them are text."""
    keys, marks = _keys_by_letter(), list(_OPTION.finditer(line))
    text = line[: marks[0].start()] if marks else line
    given: dict[str, Any] = {_PROMPT: text} if text.strip() else {}
    ends = [*(mark.start() for mark in marks), len(line)][1:]
    for mark, end in zip(marks, ends, strict=True):
        name = mark["name"]
        key = keys.get(name.lower())
        if key is None:
            problems.add(f"there is no option --{name}", place, _suggest_letter(name))
        elif key in given:
            problems.add(f"--{name} is given twice", place, "remove one of them")
        else:
            given[key] = line[mark.end() : end].strip()
    letters = {key: letter for letter, key in keys.items()}
    return _Entry(given, lambda key: f"{place}, --{letters[key]}" if key in letters else place)


def _suggest_letter(name: str) -> str:
    """The option of a line that is meant; people write w512, w=512, W or width."""
    keys = _keys_by_letter()
    known = {**{key: letter for letter, key in keys.items()}, **{letter: letter for letter in keys}}
    plain = re.sub(r"[=:0-9.].*", "", name.lower())
    meant = plain if f"sample_{plain}" not in known else f"sample_{plain}"
    if meant not in known and len(plain) >= _SHORTEST_WORD:
        meant = nearest_name(plain, [name for name in known if len(name) >= _SHORTEST_WORD]) or plain
    if meant not in known:
        return f"there are {', '.join(f'--{letter}' for letter in keys)}"
    return f"did you mean --{known[meant]}? A blank stands before its value"


class _JsonTable(dict[str, Any]):
    """A table of a JSON file.

    Attributes:
        twice: keys that it has more than once; the last value of each is kept.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def _of_json(path: Path, problems: Problems) -> Iterator[_Entry]:
    """A list; texts in it are read as lines of a text file, and what is null is not given."""
    try:
        content = json.loads(_text_of(path), object_pairs_hook=_JsonTable)
    except ValueError as error:
        raise UserError.of(f"not valid JSON: {error}", f"{FLAG} {path}", "mend that place") from None
    if not isinstance(content, list):
        raise UserError.of("holds no list of prompts", f"{FLAG} {path}", _JSON_FORM)
    for number, item in enumerate(content, 1):
        place = f"{path}, prompt {number}"
        if isinstance(item, str):
            yield _of_line(item, place, problems)
        elif isinstance(item, _JsonTable):
            for key in item.twice:
                problems.add(f"{key} is given twice", _place_in(place)(key), "remove one of them")
            given = {key: value for key, value in item.items() if value is not None}
            yield _of_table(given, _place_in(place), problems)
        else:
            problems.add(f"must be a text or a table, got {item!r}", place, 'write {"prompt": "…"}')


def _of_toml(path: Path, problems: Problems) -> Iterator[_Entry]:
    """[prompt] holds what the prompts have in common, each [[prompt.subset]] is one of them."""
    file = read_toml(path, FLAG)
    form = "write [prompt] and below it a [[prompt.subset]] for each prompt"
    for key in file.content:
        if key != _PROMPT:
            problems.add(f"unknown key {key}", file.where((key,)), suggest_name(key, (_PROMPT,), form))
    shared = file.content.get(_PROMPT, {})
    subsets = shared.get(_SUBSETS, []) if isinstance(shared, dict) else None
    if not isinstance(subsets, list) or not all(isinstance(subset, dict) for subset in subsets):
        problems.add("these are no tables of prompts", file.where((_PROMPT,)), form)
        return
    common = {key: value for key, value in shared.items() if key != _SUBSETS}
    _check_table(common, lambda key: file.where((_PROMPT, key)), problems)
    if common and not subsets:
        problems.add("[prompt] holds only what prompts share, and there are none", file.where((_PROMPT,)), form)
    for number, subset in enumerate(subsets):
        yield _of_table(subset, _place_of_subset(file, number, subset), problems, common)


def _of_table(
    table: Mapping[str, Any], where: Callable[[str], str], problems: Problems, common: Mapping[str, Any] | None = None
) -> _Entry:
    _check_table(table, where, problems)
    return _Entry({**(common or {}), **table}, where)


def _check_table(table: Mapping[str, Any], where: Callable[[str], str], problems: Problems) -> None:
    """Refuses keys that mean nothing, and options of lines, which would be words of the picture here."""
    known = [key for key, _, _ in _FIELDS]
    for key in table:
        if key not in known:
            meant = f"sample_{key}"  # as two of them begin
            nearest = suggest_name(meant if meant in known else key, known, f"there are {', '.join(known)}")
            problems.add(f"unknown key {key}", where(key), nearest)
        elif key in _TEXT_KEYS and isinstance(table[key], str):
            for mark in _OPTION.finditer(table[key]):
                problems.add(f"{mark[0]} would be read as text here", where(key), _suggest_key(mark["name"]))


def _suggest_key(name: str) -> str:
    """How a table says what an option of a line says."""
    key = _keys_by_letter().get(name.lower())
    if key is None:
        return "take it out; two dashes with a blank behind them are text"
    return f"take it out and write {key} = ... beside it, as a key of its own"


def _place_in(place: str) -> Callable[[str], str]:
    return lambda key: f"{place}, key {key}"


def _place_of_subset(file: TomlFile, number: int, subset: Mapping[str, Any]) -> Callable[[str], str]:
    """Where a key of a subset stands: in it, or above all of them; one that stands nowhere belongs in it."""

    def where(key: str) -> str:
        own = (_PROMPT, _SUBSETS, number)
        if key in subset:
            return file.where((*own, key))
        return file.where((_PROMPT, key) if key in file.content[_PROMPT] else own)

    return where


def _text_of(path: Path) -> str:
    """The file's text.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"the file is not UTF-8 text (byte {error.start})"
        raise UserError.of(what, f"{FLAG} {path}", "save it again as UTF-8") from None
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror or error}"
        raise UserError.of(what, FLAG, "check the path, and the rights of the file") from None


_READERS: Mapping[str, Callable[[Path, Problems], Iterator[_Entry]]] = {
    ".txt": _of_lines,
    ".json": _of_json,
    ".toml": _of_toml,
}
