"""Files of a model that writes texts for pictures, fetched from the Hugging Face Hub into a folder of the user's.

Access token and address are those of `huggingface_hub`, which also obeys HF_HUB_OFFLINE and HF_ENDPOINT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from library.core.errors import UserError, printable
from library.core.hub_errors import Fault, FaultKind, asked_again, explain_for_model, told_as
from library.core.hub_names import stays_below
from library.core.hub_transfer import PAUSES, HubFile, NoRoom, WrongContent, bring
from library.core.log import get_logger
from library.core.wording import some_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

log = get_logger(__name__)

_ANSWER_SECONDS = 10.0
_EXAMPLES = 5
_OTHER = "choose another model"
_GOES_ON = "what has arrived is kept, and the next start goes on there"


def fetch(
    repo_id: str,
    choose: Callable[[Sequence[str]], Sequence[str]],
    folder: Path,
    where: str,
    needed: Sequence[str] = (),
    pauses: Sequence[float] = PAUSES,
) -> None:
    """Brings files of a repository of the Hub into a folder, under their names there.

    Each is whole and checked, by its size and the checksum that the Hub tells, or absent. What was cut goes on where it
    stopped when it is started again, and what is there already with the right content is not fetched again. The network
    is always asked: what should work without it does not call this.

    Args:
        repo_id: `owner/name`.
        choose: picks names among those of the repository's files, which have forward slashes.
        folder: is made where it is missing; besides the files it holds only `.part` files of what was cut.
        where: the option and its value, for messages.
        needed: names that the model must have, for the message that tells what to download by hand.
        pauses: seconds before each further try, where the Hub is busy or the line is cut.

    Raises:
        UserError: nothing was picked, or something cannot be had; also those of `choose`.
    """
    files = _listed(repo_id, folder, where, needed, pauses)
    chosen = list(dict.fromkeys(choose(list(files))))
    if not chosen:
        has = printable(some_of(list(files)[:_EXAMPLES], len(files))) or "no files at all"
        raise UserError.of(f"the model on the Hub has none of the files that are needed; it has {has}", where, _OTHER)
    for name in chosen:
        if not stays_below(name):
            what = f"the Hub names a file that cannot be put into a folder on every system: {printable(name)}"
            raise UserError.of(what, where, _OTHER)
    log.info("fetching %s from the Hub into %s", repo_id, printable(str(folder)))
    for name in chosen:
        _bring(files[name], folder, where, chosen, pauses)


def _listed(
    repo_id: str, folder: Path, where: str, needed: Sequence[str], pauses: Sequence[float]
) -> dict[str, HubFile]:
    """The files of the newest version, by their names."""
    from huggingface_hub import HfApi

    def ask() -> dict[str, HubFile]:
        info = HfApi().model_info(repo_id, files_metadata=True, timeout=_ANSWER_SECONDS)
        if not info.sha:
            raise ValueError("no version")
        return {item.rfilename: _as_file(item, repo_id, info.sha) for item in info.siblings or []}

    def explain(fault: Fault) -> UserError:
        what, fix = explain_for_model(fault, repo_id, _by_hand(repo_id, folder, needed))
        return UserError.of(what, where, fix)

    with told_as(explain):
        return asked_again(ask, repo_id, pauses, _is_busy)


def _as_file(item: RepoSibling, repo_id: str, commit: str) -> HubFile:
    sha256 = item.lfs.sha256 if item.lfs else None
    blob_id = None if item.lfs else item.blob_id  # of a large file, it is that of a text that stands for it
    return HubFile(repo_id, commit, item.rfilename, item.size, sha256, blob_id)


def _is_busy(fault: Fault) -> bool:
    """Whether something came back; nobody waits where there is no network at all."""
    return fault.is_passing and fault.kind is not FaultKind.AWAY


def _bring(file: HubFile, folder: Path, where: str, chosen: Sequence[str], pauses: Sequence[float]) -> None:
    shown, place = printable(file.name), printable(str(folder))
    by_hand = _by_hand(file.repo_id, folder, chosen)

    def explain(fault: Fault) -> UserError:
        if fault.kind is FaultKind.DISK:
            what = f"{shown} cannot be kept in {place}: {fault.detail}"
            return UserError.of(what, where, f"make room or mend the rights there; {_GOES_ON}")
        if fault.status == 404:  # the version of the list is asked for, so it was there a moment ago
            return UserError.of(f"the Hub no longer has {shown} as it told", where, "start again")
        what, fix = explain_for_model(fault, file.repo_id, by_hand)
        return UserError.of(f"{shown}: {what}", where, f"{fix}; {_GOES_ON}")

    try:
        with told_as(explain, passing=(WrongContent, NoRoom)):
            bring(file, folder / file.name, pauses)
    except WrongContent:
        what = f"{shown} did not arrive as the Hub says it is (its size or checksum differs), and was deleted"
        raise UserError.of(what, where, f"start again, {by_hand}") from None
    except NoRoom as error:
        raise UserError.of(f"{shown} {error} in {place}", where, f"make room there; {_GOES_ON}") from None


def _by_hand(repo_id: str, folder: Path, names: Sequence[str]) -> str:
    files = printable(" and ".join(names)) or "its files"
    return f"or download {files} from https://huggingface.co/{repo_id}/tree/main and put them into {folder}"
