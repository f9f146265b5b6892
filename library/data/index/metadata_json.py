"""Metadata files as they are: a JSON object with an entry for each picture. Every mistake is told with file and key.

Training and the tools that write such files read them here, so that both accept the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.core.errors import Problem, Problems, UserError

TEXT_KEYS = (
    "caption",
    "tags",
)  # of an entry, in the order in which they are joined; the others are no business of ours

_MOST_TOLD = 20  # problems of one kind; the rest is counted


def read_entries(path: Path, problems: Problems) -> dict[str, dict[str, Any]]:
    """The entries of a metadata file by their keys. All that they hold is kept, in its order.

    Args:
        path: the metadata file, UTF-8 with or without a byte order mark.
        problems: receives what is wrong: the file cannot be read, is no JSON object, is empty, gives a key twice, or
            has entries of a wrong type, which are left out.
    """
    twice: list[str] = []
    try:
        content = _read_json(path, twice)
        if not isinstance(content, dict) or not content:
            raise _no_metadata(path, content)
    except UserError as error:
        problems.extend(error.problems)
        return {}
    wrong = [wrong_key(path, key, "stands twice in one object", "keep one of them") for key in twice]
    entries: dict[str, dict[str, Any]] = {}
    for key, entry in content.items():
        complaint = _complaint_about(entry)
        if complaint:
            wrong.append(wrong_key(path, key, *complaint))
        else:
            entries[key] = entry
    problems.extend(first_of(wrong, path))
    return entries


def check_object(path: Path) -> None:
    """Whether a file can be metadata at all; its entries are not looked at, and there may be none.

    Raises:
        UserError: when it cannot be read, or is no JSON object.
    """
    content = _read_json(path, [])
    if not isinstance(content, dict):
        raise _no_metadata(path, content)


def wrong_key(path: Path, key: str, what: str, fix: str) -> Problem:
    """What is wrong with a key, or with its entry."""
    return Problem(what, f"{path}, key {key}", fix)


def first_of(found: Sequence[Problem], path: Path) -> list[Problem]:
    """The first problems of one kind, and how many follow."""
    rest = len(found) - _MOST_TOLD
    more = [Problem(f"{rest} more like these", str(path), found[-1].fix)] if rest > 0 else []
    return [*found[:_MOST_TOLD], *more]


def _read_json(path: Path, twice: list[str]) -> Any:
    """What the file holds; `twice` receives the keys that an object of it gives several times."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return built

    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=build)
    except FileNotFoundError:
        raise UserError.of("the metadata file does not exist", str(path), "check the path") from None
    except IsADirectoryError:
        raise UserError.of("it is a folder, a .json file is needed", str(path), "name the file itself") from None
    except OSError as error:
        raise UserError.of(f"cannot read the file: {error.strerror}", str(path), "check its rights") from None
    except UnicodeDecodeError as error:
        what = f"the metadata is not UTF-8 text (byte {error.start})"
        raise UserError.of(what, str(path), "save it again as UTF-8") from None
    except (ValueError, RecursionError) as error:
        what = f"the metadata is not valid JSON: {error}"
        raise UserError.of(what, str(path), "mend that place, or make the file again") from None


def _no_metadata(path: Path, content: Any) -> UserError:
    what = "the metadata holds no entries" if content == {} else "the metadata is no JSON object"
    fix = 'it must be {"picture": {"caption": "a text", "tags": "one, two"}} with an entry for each picture'
    return UserError.of(what, str(path), fix)


def _complaint_about(entry: Any) -> tuple[str, str] | None:
    """What is wrong with an entry, and its mend."""
    if not isinstance(entry, dict):
        return f"the entry must be an object, got {_shown(entry)}", 'write {"caption": "a text", "tags": "one, two"}'
    for key in TEXT_KEYS:
        text = entry.get(key, "")
        if not isinstance(text, str):
            mend = "write one text, tags separated by commas, or leave it out"
            return f"{key} must be text, got {_shown(text)}", mend
        if not _can_be_written(text):
            return f"{key} holds half of a character ({text!r})", "write that character again"
    return None


def _can_be_written(text: str) -> bool:
    """JSON can spell one half of a surrogate pair, which is no text."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else f"{shown[:40]} …"
