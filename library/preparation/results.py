"""Where the result of a search is written: never over a file that is no earlier result."""

from __future__ import annotations

import os
import re
from pathlib import Path

from library.core.atomic_io import why_not_writable
from library.core.errors import Problems
from library.data.pictures.picture_kinds import is_other_picture_name, is_picture_name

PAGE_MARK = '<meta name="generator" content="sd-atelier find_duplicates">'
_HEAD = 1000  # bytes in which a file shows what it is
_JSON_HEAD = re.compile(rb'\{\s*"pictures":\s*\d+,\s*"groups":\s*\[')


def check_result_file(name: str, flag: str, captions: tuple[str, ...], problems: Problems) -> None:
    """Complains about a file to which no result may or can be written. It is tried; nothing is left there.

    Args:
        name: the file as it stands on the command line.
        flag: its option, `--json` or `--html`.
        captions: endings of caption files, with the dot.
        problems: receives what is wrong.
    """
    path = Path(name)
    where = f"{flag} {name}"
    if not name.strip() or is_picture_name(path.name) or is_other_picture_name(path.name):
        problems.add("this is no name for a result", where, f"give a name that ends in .{flag.removeprefix('--')}")
    elif path.name.lower().endswith(tuple(ending.lower() for ending in captions)):
        problems.add("files with this ending hold captions", where, f"let it end in .{flag.removeprefix('--')}")
    elif path.is_dir():
        problems.add("this is a folder; a file is expected", where, "name a file in it")
    elif os.path.lexists(path) and not _is_result(path, flag):
        problems.add("this file is no earlier result, and stays as it is", where, "name another file, or delete it")
    else:
        above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), Path.cwd())
        error = why_not_writable(above)
        if error is not None:
            problems.add(f"cannot be written: {error.strerror or error}", where, "name another place")


def _is_result(path: Path, flag: str) -> bool:
    if not path.is_file():  # a pipe would wait for its other end
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return bool(_JSON_HEAD.match(head)) if flag == "--json" else PAGE_MARK.encode() in head
