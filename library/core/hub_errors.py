"""What goes wrong with the Hugging Face Hub, told apart once for all who ask it.

The client passes on whatever its network and file layers raise, and its messages quote addresses, headers and answers:
here an error becomes a kind and at most a number or a word, and nothing else of it is passed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from library.core.log import get_logger

log = get_logger(__name__)

ResultT = TypeVar("ResultT")
LOG_IN_AGAIN = "log in again: hf auth login"
REFUSED = (401, 403)
_PASSING = (408, 409, 412, 425, 429)  # too slow, somebody else commits, too many questions: later it may go well


class FaultKind(Enum):
    """What went wrong."""

    OFFLINE = auto()  # HF_HUB_OFFLINE forbids to ask
    NOT_CACHED = auto()  # only the cache was to be looked at
    GATED = auto()  # there is a licence to accept
    NO_REPOSITORY = auto()  # or it is private
    NO_REVISION = auto()
    NO_FILE = auto()
    STATUS = auto()  # another answer than the one wanted
    STORE_STATUS = auto()  # such an answer of the place where the Hub keeps large files
    TOKEN = auto()  # it cannot even be sent
    NAME = auto()  # the Hub allows no such name
    DISK = auto()  # a file of this machine cannot be read or written
    ANSWER = auto()  # it is not what the Hub answers
    AWAY = auto()  # nothing came back, or the line was cut


@dataclass(frozen=True)
class Fault:
    """What went wrong, without a word of what was sent.

    Attributes:
        status: of the answer, where there was one; else 0.
        detail: for `DISK` the system's word for it, else the name of the error's class.
    """

    kind: FaultKind
    status: int
    detail: str

    @property
    def is_passing(self) -> bool:
        """Whether it may go well when it is asked again soon."""
        return self.kind is FaultKind.AWAY or (self.status > 0 and (self.status >= 500 or self.status in _PASSING))


@contextmanager
def told_as(explain: Callable[[Fault], Exception], passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns whatever goes wrong inside into the error that `explain` makes of it.

    Args:
        passing: errors that say already what is to be said.
    """
    try:
        yield
    except passing:
        raise
    except Exception as error:  # the client passes on what its network and file layers raise, of many kinds
        # not "from error": a traceback could show the access token
        raise explain(fault_of(error)) from None


def fault_of(error: BaseException) -> Fault:
    """What an error of huggingface_hub, its network layer or the disk means."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # "not in the cache", because of …
    cause = error.__cause__
    if isinstance(error, RuntimeError) and cause is not None:  # so the transfer of a single file ends
        if isinstance(cause, HfHubHTTPError):
            return Fault(FaultKind.STORE_STATUS, cause.response.status_code, type(cause).__name__)
        return fault_of(cause)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    kind = _kind_of(error)
    return Fault(kind, status, str(getattr(error, "strerror", "")) if kind is FaultKind.DISK else type(error).__name__)


def _kind_of(error: BaseException) -> FaultKind:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OSError) and error.errno and not isinstance(error, (ConnectionError, TimeoutError)):
        return FaultKind.DISK
    kinds: tuple[tuple[type[BaseException], FaultKind], ...] = (  # the first that fits
        (OfflineModeIsEnabled, FaultKind.OFFLINE),
        (LocalEntryNotFoundError, FaultKind.NOT_CACHED),
        (GatedRepoError, FaultKind.GATED),
        (RepositoryNotFoundError, FaultKind.NO_REPOSITORY),
        (RevisionNotFoundError, FaultKind.NO_REVISION),
        (RemoteEntryNotFoundError, FaultKind.NO_FILE),
        (HfHubHTTPError, FaultKind.STATUS),
        (UnicodeEncodeError, FaultKind.TOKEN),  # of all that is sent, only the token may be anything
        (HFValidationError, FaultKind.NAME),
        (ValueError, FaultKind.ANSWER),
        (KeyError, FaultKind.ANSWER),
        (TypeError, FaultKind.ANSWER),
    )
    return next((kind for of_class, kind in kinds if isinstance(error, of_class)), FaultKind.AWAY)


def asked_again(
    ask: Callable[[], ResultT],
    shown: str,
    pauses: Sequence[float],
    may_pass: Callable[[Fault], bool],
    progress: Callable[[], int] = int,
) -> ResultT:
    """The result of a question to the Hub, which is asked again after a pause where that may help.

    Args:
        shown: what is asked for, for the log.
        pauses: seconds before each further try.
        may_pass: whether another try makes sense after what went wrong.
        progress: how far it is; who is farther than ever before has all the tries again.
    """
    tries, farthest = 0, progress()
    while True:
        try:
            return ask()
        except Exception as error:  # of many kinds, see `fault_of`
            fault = fault_of(error)
            if progress() > farthest:
                tries, farthest = 0, progress()
            if tries == len(pauses) or not may_pass(fault):
                raise
            what = f"status {fault.status}" if fault.status else fault.detail
            log.warning("%s: the Hub is busy or the line was cut (%s); again in %g s", shown, what, pauses[tries])
            time.sleep(pauses[tries])
            tries += 1


def explain_for_model(fault: Fault, repo_id: str, by_hand: str) -> tuple[str, str]:
    """(what, fix) for somebody who wanted a model from the Hub.

    Args:
        by_hand: how else the model can be had, as the end of a sentence: "or download …".
    """
    if fault.kind is FaultKind.OFFLINE:
        return (
            "the Hub may not be asked, because HF_HUB_OFFLINE is set",
            f"start once without HF_HUB_OFFLINE, {by_hand}",
        )
    if fault.kind is FaultKind.GATED:
        what = "the Hub gives this model only to those who accepted its licence"
        return what, f"accept it on https://huggingface.co/{repo_id}, then log in: hf auth login"
    if fault.kind is FaultKind.NO_REPOSITORY:
        what = "the Hub knows no model of that name, or it is private"
        return what, "check the name; for a private model log in first: hf auth login"
    if fault.status in REFUSED:
        what = f"the Hub refuses access (status {fault.status})"
        return what, "log in with a token that is valid: hf auth login"
    if fault.status:
        return f"the Hub answers with an error (status {fault.status})", f"try again later, {by_hand}"
    if fault.kind is FaultKind.TOKEN:
        return "the access token on this machine holds a character that none has", LOG_IN_AGAIN
    what = f"the Hub cannot be reached ({fault.detail})"
    return what, f"check the network and, if it is set, HF_ENDPOINT, {by_hand}"
