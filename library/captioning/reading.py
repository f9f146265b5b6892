"""Pictures decoded by threads, a bounded number of them ahead of who takes them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from library.captioning.describer import Decoded
from library.captioning.work import Target
from library.core.ahead import in_order
from library.core.errors import Problem, UserError


class Read(NamedTuple):
    """A picture that was decoded, the how-manieth."""

    number: int
    target: Target
    picture: Decoded


class Unread(NamedTuple):
    """A picture that could not be decoded, the how-manieth, and why."""

    number: int
    problem: Problem


def read_ahead(
    targets: Iterable[Target], read: Callable[[Path], Decoded], threads: int, ahead: int
) -> Generator[Read | Unread, None, None]:
    """Decodes pictures in the order of `targets`.

    Args:
        targets: what to decode.
        read: decodes one; called from several threads at once. Whatever it raises concerns that picture alone.
        threads: that decode.
        ahead: pictures that are decoded, or being decoded, and not taken yet; at least 1.

    Closing the iterator lets the threads end; pictures that nobody will take are not begun.
    """
    return in_order(partial(_read, read), enumerate(targets), threads, ahead)


def _read(read: Callable[[Path], Decoded], numbered: tuple[int, Target]) -> Read | Unread:
    number, target = numbered
    try:
        return Read(number, target, read(target.picture))
    except UserError as error:
        return Unread(number, error.problems[0])
    except Exception as error:  # decoders fail in many ways on broken files
        fix = "replace the file or take it out of the folder"
        return Unread(number, Problem(f"it cannot be read ({described(error)})", str(target.picture), fix))


def described(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
