"""What would change in a metadata file, as text in the manner of a unified diff."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from library.core.errors import UserError, once_begun, printable


def diff_head(old: str, new: str) -> Iterator[str]:
    """The two lines that name the files."""
    yield printable(f"--- {old}")
    yield printable(f"+++ {new}")


def diff_entry(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The lines of one entry: its key, then each text that differs, old and new; none where nothing differs.

    Line breaks and other control characters in the texts are written as codes, so that a text is one line.
    """
    changed = [field for field in after if after[field] != before.get(field)]
    if changed:
        yield printable(f"@@ {key} @@")
    for field in changed:
        yield printable(f"-{field}: {before.get(field, '')}")
        yield printable(f"+{field}: {after[field]}")


def print_lines(lines: Iterable[str]) -> None:
    """Prints to standard output, as far as whoever reads it wants to: `| head` closes it before the end.

    Raises:
        UserError: when standard output takes no more for another reason, such as a full disk.
    """
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what Python still holds back, which it would complain about
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError) or error.errno == errno.EINVAL:  # Windows calls a closed pipe so
            return
        what = f"the changes cannot be written: {error.strerror or error}"
        with once_begun():
            raise UserError.of(what, "standard output", "make room, or send them to another place") from None
