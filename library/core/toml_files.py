"""Reading TOML so that every complaint can name file, line and key."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.core.errors import UserError

_BACKSLASH_HINT = "Windows paths: use single quotes ('C:\\pictures') or forward slashes"


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file together with its text, which knows the line numbers."""

    path: Path
    text: str
    content: dict[str, Any]

    def where(self, key: str, occurrence: int = 0) -> str:
        """File, line and key, as messages name a place. `occurrence` counts from 0 when a key stands several times."""
        line = self._line_of(key, occurrence)
        return f"{self.path}, line {line}, key {key}" if line else f"{self.path}, key {key}"

    def _line_of(self, key: str, occurrence: int) -> int | None:
        pattern = re.compile(rf"""^\s*(?:\[+\s*)?["']?{re.escape(key)}["']?\s*(?:=|\]|\.)""")
        lines = [number for number, line in enumerate(self.text.splitlines(), 1) if pattern.match(line)]
        if not lines:
            return None
        return lines[min(occurrence, len(lines) - 1)]


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
    return TomlFile(path, text, content)


def _mend(message: str) -> str:
    if "hex value" in message or "escape" in message or "Unescaped" in message:
        return f"mend that line; {_BACKSLASH_HINT}"
    return "mend that line; text stands in quotes, true and false are lower case, lists in [ ]"
