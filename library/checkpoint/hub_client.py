"""What a run asks of the Hugging Face Hub to keep its files there; whatever goes wrong is said in one line.

Address, cache and stored token are those of `huggingface_hub`, which also obeys HF_ENDPOINT and HF_HUB_OFFLINE. Its
messages quote addresses, headers and answers, so none of them is passed on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.core.hub_errors import LOG_IN_AGAIN, REFUSED, Fault, FaultKind, told_as

_SPACE_KIND = "static"  # of a Space that is made new: costs nothing and runs nothing
_CONNECT_SECONDS = 10.0
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub; `repo_type` is "model", "dataset" or "space"."""

    repo_id: str
    repo_type: str = "model"


@dataclass(frozen=True)
class RemoteFile:
    """A file of this machine (`stored`) and where it goes in the repository."""

    path_in_repo: str
    stored: Path
    size: int


@dataclass(frozen=True)
class Account:
    """Whose a token is, and what it may do: "read", "write", or another word for finer rights.

    Attributes:
        owners: names below which it may have repositories: the user's own, and those of organisations.
    """

    owners: tuple[str, ...]
    role: str


class HubError(Exception):
    """Something that the Hub did not do: `what`, and how to `fix` it, without a word of what was sent.

    Attributes:
        is_final: trying again changes nothing.
        is_away: nothing came back, so whatever else is asked will fail as well.
        is_absent: what was asked for is not there.
    """

    def __init__(
        self, what: str, fix: str, *, is_final: bool = False, is_away: bool = False, is_absent: bool = False
    ) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.is_final = is_final
        self.is_away = is_away
        self.is_absent = is_absent


def found_token() -> str | None:
    """The token of the environment (HF_TOKEN), else of the login store (`hf auth login`); None where there is none."""
    from huggingface_hub import get_token

    return get_token()


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids every question."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def address_of(repository: Repository) -> str:
    """Where a browser finds it."""
    from huggingface_hub import constants

    prefix = "" if repository.repo_type == "model" else f"{repository.repo_type}s/"
    return f"{constants.ENDPOINT}/{prefix}{repository.repo_id}"


@contextmanager
def waiting_at_most(seconds: float) -> Iterator[None]:
    """Inside, no answer (and no move of a transfer) is waited for longer than this; by itself the client has no limit.

    Afterwards no connection is left that a forked process could inherit.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def make_client() -> Any:
        client = default_client_factory()
        client.timeout = (min(seconds, _CONNECT_SECONDS), seconds, seconds, seconds)  # connect, read, write, pool
        return client

    set_client_factory(make_client)  # both close the clients of before
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def silence() -> None:
    """Ends the client's own talk for the rest of the process: progress bars, and lines with signed addresses."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


class Hub:
    """Questions to the Hub in the name of a token; each raises `HubError`.

    Args:
        token: None for that of the environment or the login store, if there is one.
    """

    def __init__(self, token: str | None) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi(token=token)

    def account(self) -> Account:
        """Whose the token is."""
        with _told():
            answer = self._api.whoami()
            owners = [answer["name"], *(organisation["name"] for organisation in answer.get("orgs") or ())]
            role = ((answer.get("auth") or {}).get("accessToken") or {}).get("role") or ""
            return Account(tuple(map(str, owners)), str(role))

    def open(self, repository: Repository, is_public: bool) -> bool:
        """Makes the repository if it is missing; returns whether everybody can see it (one that was there stays as it
        was)."""
        with _told():
            self._api.create_repo(
                repository.repo_id,
                repo_type=repository.repo_type,
                visibility="public" if is_public else "private",
                space_sdk=_SPACE_KIND if repository.repo_type == "space" else None,
                exist_ok=True,
            )
            info = self._api.repo_info(repository.repo_id, repo_type=repository.repo_type)
            return info.private is False

    def commit(
        self, repository: Repository, name: str, files: Sequence[RemoteFile], digests: dict[Path, bytes], is_set: bool
    ) -> None:
        """Uploads the files, and shows them in the repository all at once.

        Args:
            name: the file or folder they are, for the message of the commit.
            digests: SHA-256 of stored files; what is missing is computed and added.
            is_set: whether they are all that the remote folder `name` is to hold; other files there are deleted.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with _told():
            additions = []
            for file in files:
                addition = CommitOperationAdd(path_in_repo=file.path_in_repo, path_or_fileobj=str(file.stored))
                addition.upload_info.sha256 = _digest(file.stored, digests)
                # one by one: several at once would take threads that Python waits for at its end
                self._api.preupload_lfs_files(
                    repository.repo_id, [addition], repo_type=repository.repo_type, free_memory=False, num_threads=1
                )
                additions.append(addition)
            kept = {file.path_in_repo for file in files}
            obsolete = sorted(set(self.files_below(repository, name)) - kept) if is_set else []
            self._api.create_commit(
                repository.repo_id,
                [*additions, *(CommitOperationDelete(path) for path in obsolete)],
                commit_message=f"Add {name}",
                repo_type=repository.repo_type,
                num_threads=1,
            )

    def differing(self, repository: Repository, files: Sequence[RemoteFile], digests: dict[Path, bytes]) -> list[str]:
        """The files that the Hub holds with another size or checksum than ours, or not at all; none where it does not
        tell."""
        try:
            with _told():
                paths = [file.path_in_repo for file in files]
                answer = self._api.get_paths_info(repository.repo_id, paths, repo_type=repository.repo_type)
        except HubError as error:
            if error.is_absent:
                return []
            raise
        there = {info.path: info for info in answer}
        return [file.path_in_repo for file in files if not _is_same(file, there.get(file.path_in_repo), digests)]

    def files_below(self, repository: Repository, folder: str) -> list[str]:
        """The files below a remote folder; none where it is not there."""
        try:
            with _told():
                tree = self._api.list_repo_tree(
                    repository.repo_id, folder, recursive=True, repo_type=repository.repo_type
                )
                return [item.path for item in tree if hasattr(item, "blob_id")]  # folders have none
        except HubError as error:
            if error.is_absent:
                return []
            raise

    def names(self, repository: Repository, revision: str) -> list[str]:
        """The names of all files at a branch, tag or commit."""
        with _told():
            info = self._api.repo_info(repository.repo_id, revision=revision, repo_type=repository.repo_type)
            return [str(sibling.rfilename) for sibling in getattr(info, "siblings", None) or ()]

    def fetch(self, repository: Repository, revision: str, patterns: Sequence[str], only_cached: bool = False) -> Path:
        """Brings the files whose names match into the Hub's cache; returns the folder that stands for the repository.

        What was fetched before is not fetched again, also the first part of a file. By the name of a branch, and not
        by its commit: the cache then knows the name, also without the Hub.
        """
        from huggingface_hub import snapshot_download

        with _told():
            return Path(
                snapshot_download(
                    repository.repo_id,
                    revision=revision,
                    repo_type=repository.repo_type,
                    allow_patterns=list(patterns),
                    token=self._api.token,
                    local_files_only=only_cached,
                )
            )


def _digest(path: Path, known: dict[Path, bytes]) -> bytes:
    """In blocks, for which Python's lock is given up: training goes on beside it."""
    if path not in known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        known[path] = digest.digest()
    return known[path]


def _is_same(file: RemoteFile, remote: Any, digests: dict[Path, bytes]) -> bool:
    if remote is None or getattr(remote, "size", None) != file.size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == _digest(file.stored, digests).hex())
    # small files are plain git objects, whose name is a checksum of kind, length and content
    content = file.stored.read_bytes()
    return bool(remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


# --- what can go wrong ------------------------------------------------------------------------------------------------


def _told() -> AbstractContextManager[None]:
    return told_as(_explained, passing=(HubError,))


def _explained(fault: Fault) -> HubError:
    if fault.kind is FaultKind.OFFLINE:
        what = "the Hub may not be asked, because HF_HUB_OFFLINE is set"
        return HubError(what, "start without HF_HUB_OFFLINE", is_final=True)
    if fault.kind is FaultKind.NOT_CACHED:
        return HubError("is not in the cache of the Hub on this machine", "start without HF_HUB_OFFLINE", is_final=True)
    if fault.kind is FaultKind.GATED:
        fix = "accept the licence on its page, then log in: hf auth login"
        return HubError("the Hub gives it only to those who accepted its licence", fix, is_final=True)
    if fault.kind is FaultKind.NO_REPOSITORY:
        what = "the Hub knows no repository of that name and kind, or it is private"
        fix = "check name and kind; for a private one log in first: hf auth login"
        return HubError(what, fix, is_final=True, is_absent=True)
    if fault.kind is FaultKind.NO_REVISION:
        what = "the repository has no such revision"
        return HubError(what, "name a branch, tag or commit that it has", is_final=True, is_absent=True)
    if fault.kind is FaultKind.NO_FILE:
        return HubError("the repository has no such file", "check the path", is_final=True, is_absent=True)
    if fault.kind is FaultKind.STATUS:
        return _explained_status(fault)
    return _explained_other(fault)


def _explained_status(fault: Fault) -> HubError:
    if fault.status in REFUSED:
        what = f"the Hub refuses the access token (status {fault.status})"
        return HubError(what, "log in with a token that is valid and may write there: hf auth login", is_final=True)
    if fault.status == 413:
        return HubError("the Hub finds it too large (status 413)", "look at the limits of your account", is_final=True)
    is_final = 400 <= fault.status < 500 and not fault.is_passing
    what = f"the Hub answers with an error (status {fault.status})"
    return HubError(what, "try again later", is_final=is_final, is_absent=fault.status in (404, 405, 501))


def _explained_other(fault: Fault) -> HubError:
    if fault.kind is FaultKind.STORE_STATUS:  # an address that was signed for a time may be refused; the next is not
        return HubError(f"the Hub's store answers with an error (status {fault.status})", "try again later")
    if fault.kind is FaultKind.TOKEN:
        return HubError("the access token holds a character that none has", LOG_IN_AGAIN, is_final=True)
    if fault.kind is FaultKind.NAME:
        return HubError("the Hub allows no such name", "choose another name", is_final=True)
    if fault.kind is FaultKind.DISK:
        return HubError(f"a file cannot be read or written: {fault.detail}", "mend the disk", is_final=True)
    if fault.kind is FaultKind.ANSWER:
        return HubError(f"the answer of the Hub is not understood ({fault.detail})", "try again later")
    what = f"the Hub cannot be reached ({fault.detail})"
    return HubError(what, "check the network and, if it is set, HF_ENDPOINT", is_away=True)
