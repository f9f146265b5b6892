"""Texts to files, by threads of their own: bringing a file to the disk is mostly waiting."""

from __future__ import annotations

import errno
import re
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from library.captioning.describer import Describer
from library.captioning.drafts import Draft, put_in_place
from library.captioning.texts_there import holds_text
from library.captioning.work import Target, Work
from library.core.errors import Problem, UserError
from library.data.captions.caption_files import read_caption, split_lines

_THREADS = 4
_MOST_WAITING = 16  # groups
_GROUP = 16  # texts that are brought to the disk together
_MOST_PATIENCE = 0.25  # seconds without writing; a slow model has each text written at once
_DISK_FAILURES_IN_A_ROW = 5  # of kinds that concern the disk, not one file: then it takes no more
_FAILURES_IN_A_ROW = 50  # of any kind
_OF_THE_DISK = {errno.ENOSPC, errno.EROFS, errno.EIO, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_OF_THE_DISK_ON_WINDOWS = {19, 21, 39, 112, 1117, 1167, 1295}  # protected, not ready, full (twice), error, gone, quota
_TOO_LONG_ON_WINDOWS = {123, 206}
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


class DiskTakesNoMore(Exception):  # noqa: N818 (it is no mistake, and not told as one)
    """Several texts in a row could not be written; `problem` says why the last of them could not."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


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
        self._failures_in_a_row, self._disk_failures_in_a_row = 0, 0

    def put(self, number: int, target: Target, text: str) -> None:
        """Writes a text soon: as one line, and not where it is empty.

        Raises:
            DiskTakesNoMore: several texts in a row could not be written.
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
            DiskTakesNoMore: several texts in a row could not be written.
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
        is_over = self._disk_failures_in_a_row >= _DISK_FAILURES_IN_A_ROW
        if last is not None and (is_over or self._failures_in_a_row >= _FAILURES_IN_A_ROW):
            what = f"{self._failures_in_a_row} texts in a row could not be written, so the run was stopped: {last.what}"
            raise DiskTakesNoMore(Problem(what, last.where, last.fix))

    def _count_first(self) -> Problem | None:
        """Counts the texts of the first group; why its last one could not be written."""
        group, future = self._waiting.popleft()
        problem = None
        for (number, target, _), result in zip(group, future.result(), strict=True):
            problem = None
            if isinstance(result, UserError):  # the text is empty, or the old one cannot be read
                self.failed.append((number, result.problems[0]))
            elif isinstance(result, OSError):
                problem = Problem(f"cannot be written: {result.strerror or result}", str(target.file), _fix_of(result))
                self.failed.append((number, problem))
                self._failures_in_a_row += 1
                self._disk_failures_in_a_row += _is_of_the_disk(result)
            else:
                self._failures_in_a_row, self._disk_failures_in_a_row = 0, 0
                self.written += result is _Fate.WRITTEN
                self.kept += result is _Fate.KEPT
        return problem

    def _write_group(self, group: Sequence[_Text]) -> Sequence[_Result]:
        """Several texts, in a thread of their own; what became of each."""
        results: list[_Result] = []
        drafts: list[tuple[int, Draft]] = []
        try:
            for place, (_, target, text) in enumerate(group):
                try:
                    content = self._content(target, text)
                    if content is not None:
                        drafts.append((place, Draft(target.file, content)))
                    results.append(_Fate.KEPT if content is None else _Fate.WRITTEN)
                except (UserError, OSError) as error:
                    results.append(error)
            for place, reason in put_in_place([draft for _, draft in drafts]).items():
                results[drafts[place][0]] = reason
        finally:
            for _, draft in drafts:
                draft.discard()
        return results

    def _content(self, target: Target, text: str) -> str | None:
        """What the file shall hold; None where it stays as it is.

        Raises:
            UserError: the text is empty, or the old one cannot be read.
            OSError: the old one cannot be read.
        """
        line = one_line(text)
        if not self._work.overwrites and holds_text(target.file):
            return self._appended(target.file, line) if self._work.appends else None
        if not line:
            what, fix = self._describer.why_empty()
            stays = "; the old text stays" if holds_text(target.file) else ""
            raise UserError.of(what + stays, str(target.picture), fix)
        return f"{line}\n"

    def _appended(self, file: Path, line: str) -> str | None:
        """The first line of a file, which is the one that counts, with what is added to it; the others stay."""
        old = read_caption(file, whole=False) or ""
        new = one_line(self._describer.joined(old, line)) if old and line else old or line
        if new == old:
            return None
        rest = split_lines(file.read_bytes().decode("utf-8-sig"))[1:]
        return "\n".join([new, *rest]).rstrip("\n") + "\n"


def _is_of_the_disk(error: OSError) -> bool:
    return error.errno in _OF_THE_DISK or getattr(error, "winerror", None) in _OF_THE_DISK_ON_WINDOWS


def _fix_of(error: OSError) -> str:
    if _is_of_the_disk(error):
        return "make room or look at the disk; the same command goes on from here"
    if error.errno == errno.ENAMETOOLONG or getattr(error, "winerror", None) in _TOO_LONG_ON_WINDOWS:
        return "shorten the name of the picture"
    if error.errno == errno.EISDIR:
        return "a folder has this name; rename it"
    return "check its rights, and whether another program has it open; the same command tries again"
