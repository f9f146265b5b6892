from __future__ import annotations

import errno
import traceback

import httpx2
import pytest
from huggingface_hub import errors

from library.core.hub_errors import Fault, FaultKind, asked_again, explain_for_model, fault_of, told_as

TOKEN = "hf_doNotTellAnybodyThisToken"


def answered(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    request = httpx2.Request("GET", f"https://huggingface.co/?{TOKEN}", headers={"authorization": TOKEN})
    return kind(f"secret {TOKEN}", response=httpx2.Response(status, request=request))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FAULTS = {
    FaultKind.OFFLINE: (errors.OfflineModeIsEnabled(TOKEN), 0, False),
    FaultKind.NOT_CACHED: (errors.LocalEntryNotFoundError(TOKEN), 0, False),
    FaultKind.GATED: (answered(errors.GatedRepoError, 403), 403, False),
    FaultKind.NO_REPOSITORY: (answered(errors.RepositoryNotFoundError, 401), 401, False),
    FaultKind.NO_REVISION: (answered(errors.RevisionNotFoundError, 404), 404, False),
    FaultKind.NO_FILE: (answered(errors.RemoteEntryNotFoundError, 404), 404, False),
    FaultKind.STATUS: (answered(errors.HfHubHTTPError, 429), 429, True),
    FaultKind.STORE_STATUS: (caused(RuntimeError(TOKEN), answered(errors.HfHubHTTPError, 503)), 503, True),
    FaultKind.TOKEN: (UnicodeEncodeError("ascii", TOKEN, 0, 1, "no"), 0, False),
    FaultKind.NAME: (errors.HFValidationError(TOKEN), 0, False),
    FaultKind.DISK: (OSError(errno.ENOSPC, "No space left on device"), 0, False),
    FaultKind.ANSWER: (KeyError(TOKEN), 0, False),
    FaultKind.AWAY: (httpx2.ConnectError(TOKEN), 0, True),
}


@pytest.mark.parametrize("kind", FaultKind, ids=lambda kind: kind.name)
def test_errors_are_told_apart_and_say_nothing_of_what_was_sent(kind: FaultKind) -> None:
    error, status, is_passing = FAULTS[kind]
    fault = fault_of(error)
    assert (fault.kind, fault.status, fault.is_passing) == (kind, status, is_passing)
    assert fault_of(caused(errors.LocalEntryNotFoundError("not here"), error)) == fault
    assert all("\n" not in text and text for text in explain_for_model(fault, "owner/name", "or fetch it"))

    def explain(fault: Fault) -> ValueError:
        return ValueError(*explain_for_model(fault, "owner/name", "or fetch it"))

    with pytest.raises(ValueError) as caught, told_as(explain):
        raise error
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert TOKEN not in str(caught.value) + repr(fault)


def test_errors_that_say_it_already_pass() -> None:
    with pytest.raises(LookupError, match="mine"), told_as(lambda _: ValueError(), passing=(LookupError,)):
        raise LookupError("mine")


def test_it_is_asked_again_as_long_as_there_is_progress() -> None:
    """The place after each try: forward, no further, back and up to where it was; then no try is left."""
    places = iter([10, 10, 20, 0, 20, 99])
    reached = [0]

    def ask() -> str:
        reached.append(next(places))
        raise httpx2.ReadTimeout("cut")

    with pytest.raises(httpx2.ReadTimeout):
        asked_again(ask, "it", (0.0, 0.0), lambda fault: fault.is_passing, lambda: reached[-1])
    assert reached == [0, 10, 10, 20, 0, 20]


def test_what_cannot_pass_is_not_asked_again() -> None:
    tries = []

    def ask() -> str:
        tries.append(None)
        raise answered(errors.GatedRepoError, 403)

    with pytest.raises(errors.GatedRepoError):
        asked_again(ask, "it", (0.0, 0.0), lambda fault: fault.is_passing)
    assert len(tries) == 1
    assert asked_again(lambda: "answer", "it", (), lambda fault: False) == "answer"
