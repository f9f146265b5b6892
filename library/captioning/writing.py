"""Texts to files, by threads of their own: bringing a file to the disk is mostly waiting."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from library.captioning.describer import Describer
from library.captioning.work import Target, Work
from library.core.atomic_io import flush_folder, temporary_name
from library.core.errors import Problem, UserError
from library.data.captions.caption_files import read_caption, split_lines

_THREADS = 4
_MOST_WAITING = 16  # groups
_GROUP = 16  # texts, whose names are brought to the disk together: half of the work of a file is that
_MOST_PATIENCE = 0.25  # seconds without writing; a slow model has each text written at once
_FAILURES_IN_A_ROW = 5  # then it is not the file, but the disk
# Control characters, the marks that Unicode has for ends of lines and paragraphs, and halves of characters.
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_HALVES = re.compile("[\ud800-\udfff]")


class _Fate(Enum):
    """What became of a text."""

    WRITTEN = "written"
    KEPT = "kept"


class _Text(NamedTuple):
    """A text, the how-manieth, and where it belongs."""

    number: int
    target: Target
    text: str


_Result = _Fate | UserError | OSError


def one_line(text: str) -> str:
    """A text as one line of a UTF-8 file: what would break the line, or control a terminal, becomes a blank."""
    return _HALVES.sub("\ufffd", _NOT_IN_A_LINE.sub(" ", text)).strip()


class Writer:
    """Writes texts, and counts.

    Args:
        work: what is to be done with files that are there already.
        describer: says what is to be written where texts are added, and why a text is empty.

    Attributes:
        written: files that were written.
        kept: files that appeared meanwhile, or to which there was nothing to add.
        failed: numbers of texts, and why they were not written.
    """

    def __init__(self, work: Work, describer: Describer) -> None:
        self.written, self.kept = 0, 0
        self.failed: list[tuple[int, Problem]] = []
        self._work, self._describer = work, describer
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="write")
        self._group: list[_Text] = []
        self._waiting = deque[tuple[Sequence[_Text], Future[Sequence[_Result]]]]()
        self._last_begun = 0.0
        self._failures_in_a_row = 0

    def put(self, number: int, target: Target, text: str) -> None:
        """Writes a text soon: as one line, and not where it is empty.

        Raises:
            UserError: several texts in a row could not be written.
        """
        self._group.append(_Text(number, target, text))
        if len(self._group) >= _GROUP:
            self._begin()
        while self._waiting and (len(self._waiting) > _MOST_WAITING or self._waiting[0][1].done()):
            self._take_first()

    def end_batch(self) -> None:
        """The next text may take a while, so those that are there are written where the last were some time ago."""
        if time.monotonic() - self._last_begun > _MOST_PATIENCE:
            self._begin()

    def finish(self) -> None:
        """Waits until all is written.

        Raises:
            UserError: several texts in a row could not be written.
        """
        self._begin()
        while self._waiting:
            self._take_first()

    def close(self) -> None:
        """Waits until all is written and counts it, whatever became of it; the threads end."""
        self._begin()
        self._pool.shutdown()
        while self._waiting:
            self._count_first()

    def _begin(self) -> None:
        if self._group:
            self._waiting.append((self._group, self._pool.submit(self._write_group, self._group)))
            self._group = []
            self._last_begun = time.monotonic()

    def _take_first(self) -> None:
        last = self._count_first()
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW and last is not None:
            what = f"{self._failures_in_a_row} texts in a row could not be written: {last.what}"
            raise UserError.of(what, last.where, last.fix)

    def _count_first(self) -> Problem | None:
        """Counts the texts of the first group; why its last one could not be written."""
        group, future = self._waiting.popleft()
        problem = None
        for (number, target, _), result in zip(group, future.result(), strict=True):
            problem = None
            if isinstance(result, UserError):  # the text is empty, or the old one cannot be read
                self.failed.append((number, result.problems[0]))
            elif isinstance(result, OSError):
                fix = "check rights and free space; the same command goes on from here"
                problem = Problem(f"cannot be written: {result.strerror or result}", str(target.file), fix)
                self.failed.append((number, problem))
                self._failures_in_a_row += 1
            else:
                self._failures_in_a_row = 0
                self.written += result is _Fate.WRITTEN
                self.kept += result is _Fate.KEPT
        return problem

    def _write_group(self, group: Sequence[_Text]) -> Sequence[_Result]:
        """Several texts, in a thread of its own; what became of each."""
        results: list[_Result] = []
        for _, target, text in group:
            try:
                results.append(self._write(target, text))
            except (UserError, OSError) as error:
                results.append(error)
        written = [target for (_, target, _), result in zip(group, results, strict=True) if result is _Fate.WRITTEN]
        try:
            for folder in {target.file.parent for target in written}:
                flush_folder(folder)
        except OSError as error:  # nobody knows which of them are on the disk
            return [error if result is _Fate.WRITTEN else result for result in results]
        return results

    def _write(self, target: Target, text: str) -> _Fate:
        """One text.

        Raises:
            UserError: the text is empty, or the old one cannot be read.
            OSError: it cannot be written.
        """
        line = one_line(text)
        if not self._work.overwrites and target.file.is_file():
            if not self._work.appends:
                return _Fate.KEPT
            if read_caption(target.file, whole=True) is not None:
                return self._append(target.file, line)
        if not line:
            what, fix = self._describer.why_empty()
            raise UserError.of(what, str(target.picture), fix)
        _replace(target.file, f"{line}\n")
        return _Fate.WRITTEN

    def _append(self, file: Path, line: str) -> _Fate:
        """Adds to the first line of a file, which is the one that counts; the others stay."""
        old = read_caption(file, whole=False) or ""
        new = one_line(self._describer.joined(old, line)) if old and line else old or line
        if new == old:
            return _Fate.KEPT
        rest = split_lines(file.read_bytes().decode("utf-8-sig"))[1:]
        _replace(file, "\n".join([new, *rest]).rstrip("\n") + "\n")
        return _Fate.WRITTEN


def _replace(file: Path, text: str) -> None:
    """As `atomic_io.write_text_whole`, but for the name, which is on the disk only after `flush_folder`."""
    temporary = file.with_name(temporary_name(file.suffix))
    try:
        with temporary.open("wb") as opened:
            opened.write(text.encode("utf-8"))
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
