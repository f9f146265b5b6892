"""Reading TOML so that every complaint can name file, line and key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from library.core.errors import UserError
from library.core.toml_lines import Keys, find_key_lines

BACKSLASH_HINT = "Windows paths: use single quotes ('C:\\pictures') or forward slashes"


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file together with its text, which knows the line numbers."""

    path: Path
    text: str
    content: dict[str, Any]

    def where(self, keys: Keys) -> str:
        """File, line and key, as messages name a place.

        Args:
            keys: the way to the value, such as ("datasets", 0, "batch_size"); tables of a list count from 0.
        """
        line = self._lines.get(keys)
        named = next((str(key) for key in reversed(keys) if isinstance(key, str)), "")
        return f"{self.path}, line {line}, key {named}" if line else f"{self.path}, key {named}"

    @cached_property
    def _lines(self) -> Mapping[Keys, int]:
        return find_key_lines(self.text)


def read_toml(path: Path, flag: str) -> TomlFile:
    """Reads a TOML file (UTF-8, with or without a byte order mark).

    Args:
        path: the file.
        flag: the option that named it, for the message.

    Raises:
        UserError: when the file is missing, is not UTF-8 or is not valid TOML; line and column are named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError.of(f"the file {path} does not exist", flag, "check the path") from None
    except IsADirectoryError:
        raise UserError.of(f"{path} is a folder, a .toml file is needed", flag, "name the file itself") from None
    except UnicodeDecodeError as error:
        raise UserError.of(
            f"the file is not UTF-8 text (byte {error.start})", f"{flag} {path}", "save it again as UTF-8"
        ) from None
    except OSError as error:
        raise UserError.of(f"cannot read the file: {error.strerror}", f"{flag} {path}", "check its rights") from None
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError.of(f"not valid TOML: {error}", f"{flag} {path}", _mend(str(error))) from None
    except (RecursionError, ValueError):  # Python's own limits: tables in tables, numbers of thousands of digits
        what = "its tables are nested too deeply, or a number is too long"
        raise UserError.of(what, f"{flag} {path}", "make it simpler") from None
    return TomlFile(path, text, content)


def _mend(message: str) -> str:
    if "hex value" in message or "escape" in message or "Unescaped" in message:
        return f"mend that line; {BACKSLASH_HINT}"
    return "mend that line; text stands in quotes, true and false are lower case, lists in [ ]"
