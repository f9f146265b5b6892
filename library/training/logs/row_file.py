"""The JSONL log: one row of numbers a line, which a resumed run goes on with."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from library.core.log import get_logger

log = get_logger(__name__)

# differ between equal runs, so they are no part of what tells a log from another
SPEED, PEAK_MEMORY = "speed", "memory/peak_mib"


class RowFile:
    """A file that grows by rows. A disk that refuses one does not stop anybody: it waits, and is tried again.

    The file is opened with its first row. What an earlier run left under the name is kept as NAME-log.1.jsonl (or the
    next free number), unless it may be overwritten or is what this run goes on with.

    Args:
        path: its folder is made.
        overwrite: an earlier run's may be lost.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self._path = path
        self._overwrite = overwrite
        self._file: IO[bytes] | None = None
        self._length: int | None = None  # bytes of whole rows; None before it was opened
        self._waiting: list[bytes] = []
        self._rows = self._checksum = 0
        self._goes_on_with: tuple[int, int] | None = None  # rows and checksum
        self._has_failed = self._was_removed = False

    def add(self, row: Mapping[str, float]) -> None:
        """Takes a row; `flush` writes it. Numbers that are not finite become null: JSON has none."""
        finite = {tag: value if math.isfinite(value) else None for tag, value in row.items()}
        self._waiting.append((json.dumps(finite, allow_nan=False) + "\n").encode())
        self._rows += 1
        self._checksum = _checksum_with(finite, self._checksum)

    def flush(self, to_disk: bool = False) -> None:
        """Writes what waits; with `to_disk` it also outlives a power cut."""
        if self._file is None and not self._waiting:
            return
        try:
            self._write(to_disk)
        except OSError as error:
            if not self._has_failed:  # once is enough, it may go on for hours
                reason = error.strerror or error
                log.warning("cannot write %s: %s; its rows wait in memory, training goes on", self._path, reason)
            self._has_failed = True
            self._let_go()

    def _write(self, to_disk: bool) -> None:
        self._look_after_removal()
        if self._file is None and not self._waiting:
            return
        file = self._opened()
        content = b"".join(self._waiting)
        file.write(content)
        file.flush()
        if to_disk:
            os.fsync(file.fileno())
        self._length = (self._length or 0) + len(content)
        self._waiting.clear()
        if self._has_failed:
            log.info("%s is written again, nothing of it is missing", self._path)
            self._has_failed = False

    def state_dict(self) -> dict[str, int]:
        """What tells these rows from others, and how many there are; the same for equal runs. They are on the disk."""
        self.flush(to_disk=True)
        return {"rows": self._rows, "checksum": self._checksum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on after the rows of `state`; called before the first row."""
        self._rows, self._checksum = self._goes_on_with = int(state["rows"]), int(state["checksum"])

    def close(self) -> None:
        """Writes what waits, if it can be written."""
        self.flush()
        self._let_go()

    def told(self) -> str:
        """Where the rows stand and which do not, for the summary."""
        lost = " without its beginning, which was removed" if self._was_removed else ""
        left = f"; its last {len(self._waiting)} rows could not be written" if self._waiting else ""
        return f"log: {self._path}{lost}{left}"

    def _look_after_removal(self) -> None:
        """What is written into a file that somebody removed is lost without an error, so another one is begun."""
        if self._file is None or os.fstat(self._file.fileno()).st_nlink > 0:
            return
        with suppress(FileNotFoundError):  # some file systems count no links
            if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                return
        if not self._was_removed:
            log.warning("%s was removed, its rows up to here are lost; later ones go to a new file", self._path)
        self._was_removed = True
        self._let_go()
        self._length = self._goes_on_with = None

    def _let_go(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk refuses once more what is still in the buffer
                self._file.close()
            self._file = None

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            if self._length is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._length = self._begin()
            if not self._path.exists():  # perhaps not any more
                self._length = 0
            # not "a": what a full disk took of a row must go before the row is written again
            self._file = self._path.open("r+b" if self._path.exists() else "w+b")
            self._file.truncate(self._length)
            self._file.seek(self._length)
        return self._file

    def _begin(self) -> int:
        """Makes room under the name; how many bytes of the file there stay."""
        if self._goes_on_with is not None:
            return self._go_on(*self._goes_on_with)
        if not self._overwrite:
            aside = self._set_aside()
            if aside is not None:
                log.info("the log of an earlier run is kept as %s", aside)
        return 0

    def _go_on(self, rows: int, expected: int) -> int:
        """How many bytes the rows take that this run goes on with; what is there instead of them is set aside."""
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        checksum: int | None = 0
        for line in lines[:rows]:
            checksum = _checksum_of(line, checksum)
        if len(lines) >= rows and checksum == expected:
            if len(lines) > rows:
                log.info("%s: %d rows after the state go, they are made again", self._path, len(lines) - rows)
            return sum(map(len, lines[:rows]))
        aside = self._set_aside()
        kept = f"; what was there is kept as {aside}" if aside is not None else ""
        log.warning("%s does not hold the first %d rows of this run, it begins with the next%s", self._path, rows, kept)
        return 0

    def _set_aside(self) -> Path | None:
        """Moves what is there to a free name; None where there is nothing."""
        if not self._path.exists() or self._path.stat().st_size == 0:
            return None
        number = 1
        while (aside := self._path.with_name(f"{self._path.stem}.{number}{self._path.suffix}")).exists():
            number += 1
        os.replace(self._path, aside)
        return aside


def _checksum_with(row: Mapping[str, Any], before: int) -> int:
    steady = {tag: value for tag, value in row.items() if tag not in (SPEED, PEAK_MEMORY)}
    return zlib.crc32(json.dumps(steady).encode(), before)


def _checksum_of(line: bytes, before: int | None) -> int | None:
    """As `_checksum_with`, of a row as it stands in a file; None where it, or one before it, is no whole row."""
    try:
        row = json.loads(line)
    except ValueError:  # torn; bytes that are no text raise one, too
        return None
    whole = isinstance(row, dict) and line.endswith(b"\n")
    return _checksum_with(row, before) if whole and before is not None else None
