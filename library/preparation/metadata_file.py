"""Metadata files that the tools of preparation read and write: whole or not at all, and nothing of the old is lost."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.core.atomic_io import remove_left_overs, why_not_writable, write_whole
from library.core.errors import Problems, UserError
from library.data.index.metadata_json import check_object, read_entries

__all__ = ["check_output", "read_entries", "write_entries"]

# JSON can spell what UTF-8 cannot: in this form Python holds those bytes of a file's name that are no text.
_HALVES = re.compile("[\ud800-\udfff]")
_NUMBER = r"\.backup-([0-9]{1,9})"


def check_output(path: Path, order: str, problems: Problems) -> None:
    """Whether a metadata file can be written, before any work is done. Missing folders are made when it is written.

    Args:
        path: the file.
        order: the words without a flag that the script takes, for who mixed them up.
        problems: receives what is wrong: it is a folder, something else than metadata stands there, nothing can be
            written in its folder.
    """
    if path.is_dir():
        what = "this is a folder; here the name of the metadata file to write is expected"
        problems.add(what, str(path), f"the order is {order}")
        return
    if path.exists() and (reason := _why_not_metadata(path)):
        what = f"something else than metadata stands there already, and is not written over ({reason})"
        problems.add(what, str(path), f"name another file, or take that one away; the order is {order}")
        return
    home = Path(os.path.realpath(path)).parent
    nearest = next((folder for folder in (home, *home.parents) if folder.exists()), home)
    refusal = why_not_writable(nearest) if nearest.is_dir() else NotADirectoryError(0, f"{nearest} is a file")
    if refusal is not None:
        what = f"nothing can be written in {home}: {refusal.strerror or refusal}"
        problems.add(what, str(path), "name another place, or change its rights")


def write_entries(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """Writes a metadata file, where it changes: UTF-8, indented by 2, in the order of `entries`.

    A file that is there and holds something else stays beside it as NAME.backup-1.json, -2 and so on, unless the newest
    of these holds the same. So a run that was killed and started again leaves the files of a clean one. Where the
    name is a link, the file that it leads to is written.

    Args:
        path: the file.
        entries: what JSON can hold, by key.

    Returns:
        The backup that holds what was there; None where nothing was there, or nothing changed.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    remove_left_overs(path.parent, path.suffix)
    try:
        content = _as_json(entries)
        old = path.read_bytes() if path.exists() else None
        if old == content:
            return None
        backup = None if old is None else _keep(path, old)
        write_whole(path, lambda temporary: _write(temporary, content))
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UserError.of(what, str(path), "make room there, or name another place") from None
    except RecursionError:
        what = "cannot be written: objects in it are nested too deep"
        raise UserError.of(what, str(path), "take the deep ones out of the file that was read") from None
    return backup


def _why_not_metadata(path: Path) -> str | None:
    if not path.is_file():
        return "it is no ordinary file"
    try:
        check_object(path)
    except UserError as error:
        return error.problems[0].what
    return None


def _as_json(entries: Mapping[str, Mapping[str, Any]]) -> bytes:
    text = json.dumps(entries, ensure_ascii=False, indent=2) + "\n"
    return _HALVES.sub(lambda found: f"\\u{ord(found.group()):04x}", text).encode()


def _keep(path: Path, content: bytes) -> Path:
    """The newest backup of a file if it holds `content`, or else a new one."""
    pattern = re.compile(re.escape(path.stem) + _NUMBER + re.escape(path.suffix), re.IGNORECASE)
    found = {int(match[1]): known for known in path.parent.iterdir() if (match := pattern.fullmatch(known.name))}
    newest = max(found, default=0)
    if newest and found[newest].is_file() and found[newest].read_bytes() == content:
        return found[newest]
    backup = path.with_name(f"{path.stem}.backup-{newest + 1}{path.suffix}")
    write_whole(backup, lambda temporary: _write(temporary, content))
    return backup


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
