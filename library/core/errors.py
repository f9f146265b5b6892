"""User mistakes as data: what is wrong, where, and what to do.

Checks gather `Problem`s and raise one `UserError` for all of them; the scripts show it without a traceback.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

EXIT_USER_ERROR = 1
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: come again

ResultT = TypeVar("ResultT")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Problem:
    """One mistake: `what` is wrong, `where` it stands (flag, file and key, image), and how to `fix` it."""

    what: str
    where: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n    -> {self.fix}"


class UserError(Exception):
    """One or more problems a person can mend. Shown as text, never with a traceback.

    Attributes:
        had_begun: whether the run was under way, so that it ended and did not merely fail to start; see `once_begun`.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        self.had_begun = False
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def of(cls, what: str, where: str, fix: str) -> UserError:
        """The common case of a single problem."""
        return cls([Problem(what, where, fix)])


class Incomplete(UserError):  # noqa: N818 (the run came to its end)
    """The run came to its end, and something that it was asked to make, to save or to upload is missing."""

    def __init__(self, problems: Iterable[Problem], end: str = "training is over", count: int | None = None) -> None:
        """`count` is how many things are missing, where the problems name only the first of them."""
        super().__init__(problems)
        self.end = end
        self.count = len(self.problems) if count is None else count


class Stopped(Exception):  # noqa: N818 (nothing is wrong)
    """The run was asked to stop before its end, and what it had learned is saved."""


@contextmanager
def once_begun() -> Iterator[None]:
    """Problems that show inside are told as those of a run that was under way."""
    try:
        yield
    except UserError as error:
        error.had_begun = True
        raise


class Problems:
    """Collects problems so that all of them are told at once."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def add(self, what: str, where: str, fix: str) -> None:
        self._found.append(Problem(what, where, fix))

    def extend(self, problems: Iterable[Problem]) -> None:
        self._found.extend(problems)

    def attempt(self, check: Callable[[], ResultT]) -> ResultT | None:
        """The result of a check, or None with its problems gathered."""
        try:
            return check()
        except UserError as error:
            self.extend(error.problems)
            return None

    def raise_if_any(self) -> None:
        """Raises `UserError` with everything gathered so far; does nothing when there is nothing."""
        if self._found:
            raise UserError(self._found)


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` was most likely meant to be, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return matches[0] if matches else None


def suggest_name(name: str, valid: Iterable[str], where_to_look: str) -> str:
    """The mend for an unknown name: the nearest valid one, else where the valid names are listed."""
    nearest = nearest_name(name, valid)
    return f"did you mean {nearest}?" if nearest else where_to_look


def printable(text: str) -> str:
    """A line for a console: control characters, which file names may hold, as their codes.

    They could break the line, or make a terminal hide or colour what is said.
    """
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def format_user_error(error: UserError) -> str:
    """The text a script prints for `error`."""
    count = len(error.problems)
    head = "1 problem" if count == 1 else f"{count} problems"
    tail = "ended the run" if error.had_begun else "to mend before anything can run"
    return "\n".join([f"{head} {tail}:", *_bullets(error)])


def _bullets(error: UserError) -> list[str]:
    shown_problems = (Problem(printable(p.what), printable(p.where), printable(p.fix)) for p in error.problems)
    return [f"  * {shown}" for shown in shown_problems]


def format_incomplete(error: Incomplete) -> str:
    """The text a script prints where its work is over, and not all of it could be done."""
    head = "1 thing" if error.count == 1 else f"{error.count} things"
    return "\n".join([f"{error.end}, but {head} could not be done:", *_bullets(error)])


def run_script(main: Callable[[], None]) -> int:
    """Runs a script's `main` and turns user mistakes into a message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a Windows console may not know every character of a file name
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except Incomplete as error:
        _tell(format_incomplete(error))
        return EXIT_INCOMPLETE
    except UserError as error:
        _tell(format_user_error(error))
        return EXIT_USER_ERROR
    except Stopped as stop:
        _tell(str(stop))
        return EXIT_STOPPED
    except KeyboardInterrupt:
        _tell("interrupted")
        return EXIT_INTERRUPTED
    return 0


def _tell(text: str) -> None:
    """Of several processes that all have the same to say, one says it."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)
