"""Whether what is saved can be uploaded as it is asked for, and the state on the Hub that a run goes on from."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from library.checkpoint.hub_client import Hub, HubError, Repository, found_token, is_offline, waiting_at_most
from library.checkpoint.naming import STATE_MANIFEST, has_foreign_names
from library.core.errors import Problems, UserError, nearest_name
from library.core.hub_names import is_repo_id
from library.core.log import get_logger
from library.core.secrets import taken_secret
from library.core.wording import some_of
from library.options.keeping import KeepingOptions
from library.options.upload import REPO_TYPES, TOKEN_PLACES, UploadOptions

log = get_logger(__name__)

REFERENCE_FORM = "{repo_id}/{path_in_repo}:{revision}:{repo_type}"
PUBLIC = "public"
_REPO, _FOLDER, _TOKEN = "--huggingface_repo_id", "--huggingface_path_in_repo", "--huggingface_token"
_PROBE_SECONDS, _FETCH_SECONDS = 5.0, 60.0
_EXAMPLES = 3


@dataclass(frozen=True)
class UploadTarget:
    """A place on the Hugging Face Hub; it holds no token.

    Attributes:
        repo_type: "model", "dataset" or "space".
        folder: inside the repository; empty for its top.
        is_public: of a repository that is made new.
    """

    repo_id: str
    repo_type: str
    folder: str
    is_public: bool
    with_states: bool


@dataclass(frozen=True)
class StateReference:
    """A folder on the Hub, as `--resume` names it."""

    repository: Repository
    path: str
    revision: str = "main"


def check_uploads(options: UploadOptions, keeping: KeepingOptions, problems: Problems) -> UploadTarget | None:
    """The place; None where nothing is to be uploaded.

    Where nothing else is wrong, the main process makes the repository if it is missing, so that a token which the Hub
    refuses is told now. A Hub that cannot be reached is a warning: what is saved waits in the queue.
    """
    token = given_token(options)
    repo_id = options.huggingface_repo_id
    if repo_id is None:
        _refuse_idle(options, problems)
        return None
    is_named = is_repo_id(repo_id)
    if not is_named:
        what = f"is no name of a repository: {repo_id!r}"
        problems.add(what, _REPO, "give OWNER/NAME, such as my-name/my-lora, without the address of the Hub")
    folder = options.huggingface_path_in_repo or ""
    if folder and not _is_folder(folder):
        problems.add(
            f"is no folder of a repository: {folder!r}", _FOLDER, "give names with / between them: loras/style"
        )
    if options.save_state_to_huggingface and not (keeping.save_state or keeping.save_state_on_train_end):
        problems.add("no states are saved", "--save_state_to_huggingface", "add --save_state, or leave it out")
    target = UploadTarget(
        repo_id=repo_id,
        repo_type=options.huggingface_repo_type,
        folder=folder,
        is_public=options.huggingface_repo_visibility == PUBLIC,
        with_states=options.save_state_to_huggingface,
    )
    if is_offline() and is_named:
        fix = f"unset it, or leave out {_REPO} and upload the files later: hf upload {repo_id} FILE"
        problems.add("the environment variable HF_HUB_OFFLINE forbids every upload", _REPO, fix)
    elif not is_offline() and _has_token(token, problems) and not problems and os.environ.get("RANK", "0") == "0":
        _check_hub(target, token, problems)
    return target


def given_token(options: UploadOptions) -> str | None:
    """The token of `--huggingface_token`, hidden where the system shows command lines; None where it is not given."""
    return taken_secret(options.huggingface_token, _TOKEN, TOKEN_PLACES)


def fetch_resumed_state(upload: UploadOptions, keeping: KeepingOptions, problems: Problems) -> Path | None:
    """The state on the Hub that `--resume` names, fetched into the Hub's cache; it is not looked into.

    None where none is asked for, or it could not be fetched: then `problems` tells why.
    """
    if not upload.resume_from_huggingface:
        return None
    if keeping.resume is None:
        fix = f"add --resume {REFERENCE_FORM}"
        problems.add("no state is named", "--resume_from_huggingface", fix)
        return None
    text, token = keeping.resume, given_token(upload)
    return problems.attempt(lambda: _fetch(parse_reference(text), Hub(token), f"--resume {text}"))


def parse_reference(text: str) -> StateReference:
    """Reads `{repo_id}/{path_in_repo}:{revision}:{repo_type}`; main and model where the ends are left out.

    A slash after the path is nothing.

    Raises:
        UserError: it has another form.
    """
    place, *ends = text.split(":")
    parts = place.removesuffix("/").split("/")
    repo_id, path = "/".join(parts[:2]), "/".join(parts[2:])
    if not is_repo_id(repo_id):
        raise _misformed(text, "it does not begin with OWNER/NAME of a repository")
    if not _is_folder(path):
        raise _misformed(text, "it names no folder inside the repository")
    if len(ends) > 2:
        raise _misformed(text, "there are more than two colons")
    revision, repo_type = [*ends, *("main", "model")[len(ends) :]]
    if not revision.strip():
        raise _misformed(text, "the revision between the colons is empty")
    if repo_type not in REPO_TYPES:
        raise _misformed(text, f"the kind {repo_type!r} of the repository is none of {', '.join(REPO_TYPES)}")
    return StateReference(Repository(repo_id, repo_type), path, revision)


# --- options ----------------------------------------------------------------------------------------------------------


def _refuse_idle(options: UploadOptions, problems: Problems) -> None:
    """Without a repository nothing is uploaded, and options about uploads would do nothing."""
    given = {
        "--huggingface_repo_type": options.huggingface_repo_type != REPO_TYPES[0],
        _FOLDER: options.huggingface_path_in_repo is not None,
        "--huggingface_repo_visibility": options.huggingface_repo_visibility is not None,
        _TOKEN: options.huggingface_token is not None and not options.resume_from_huggingface,
        "--save_state_to_huggingface": options.save_state_to_huggingface,
        "--async_upload": options.async_upload,
    }
    for flag, is_given in given.items():
        if is_given:
            problems.add("nothing is uploaded", flag, f"add {_REPO} OWNER/NAME, or leave it out")


def _is_folder(text: str) -> bool:
    parts = text.split("/")
    return (
        text.isprintable()
        and not any(mark in text for mark in '\\:*?"<>|')
        and all(part.strip() == part and part not in ("", ".", "..", ".git") for part in parts)
    )


def _has_token(given: str | None, problems: Problems) -> bool:
    token = given or found_token()
    if token is None:
        fix = "log in once with hf auth login, or set the environment variable HF_TOKEN"
        problems.add("there is no access token to upload with", _REPO, fix)
        return False
    if not (token.isascii() and token.isprintable()) or " " in token:
        # not shown: most of it may be a token
        problems.add(
            "the access token holds a character that none has", _TOKEN if given else "HF_TOKEN", "copy it again"
        )
        return False
    return True


# --- the Hub ----------------------------------------------------------------------------------------------------------


def _check_hub(target: UploadTarget, token: str | None, problems: Problems) -> None:
    """Whether the token may write there; makes the repository."""
    hub, repository = Hub(token), Repository(target.repo_id, target.repo_type)
    where = f"{_REPO} {target.repo_id}"
    try:
        with waiting_at_most(_PROBE_SECONDS):
            account = hub.account()
            if account.role == "read":
                fix = "make a token that may write: https://huggingface.co/settings/tokens"
                problems.add("the access token may only read", where, fix)
                return
            owner = target.repo_id.split("/")[0]
            if account.role == "write" and owner.casefold() not in (name.casefold() for name in account.owners):
                what = f"the access token may write for {', '.join(account.owners)} only"
                problems.add(what, where, "name a repository of yours, or take another token")
                return
            is_public = hub.open(repository, target.is_public)
    except HubError as error:
        if error.is_final:
            problems.add(error.what, where, error.fix)
        else:
            log.warning("%s: uploads wait until it can be", error.what)
        return
    if is_public != target.is_public:
        kind, asked = ("public", "private") if is_public else ("private", "public")
        log.warning("%s is %s and stays so; only a new repository would be made %s", target.repo_id, kind, asked)


def _misformed(text: str, why: str) -> UserError:
    example = "my-name/my-model/style-000002-state:main:model"
    return UserError.of(
        f"{text!r} is no state on the Hub: {why}", "--resume", f"give {REFERENCE_FORM}, such as {example}"
    )


def _fetch(reference: StateReference, hub: Hub, where: str) -> Path:
    patterns = [f"{glob.escape(reference.path)}/*"]
    repository, revision = reference.repository, reference.revision
    try:
        with waiting_at_most(_FETCH_SECONDS):
            if is_offline():
                return _cached(hub.fetch(repository, revision, patterns, only_cached=True), reference, where)
            _refuse_what_is_none(reference, hub.names(repository, revision), where)
            log.info("fetching %s of %s", reference.path, repository.repo_id)
            return hub.fetch(repository, revision, patterns) / reference.path
    except HubError as error:
        raise UserError.of(error.what, where, error.fix) from None


def _cached(snapshot: Path, reference: StateReference, where: str) -> Path:
    folder = snapshot / reference.path
    if not folder.is_dir():
        what = "is not in the cache of the Hub on this machine, and HF_HUB_OFFLINE forbids to fetch it"
        raise UserError.of(what, where, "start once without HF_HUB_OFFLINE")
    return folder


def _refuse_what_is_none(reference: StateReference, names: list[str], where: str) -> None:
    """Refuses a folder that holds no state, before anything is fetched; `names` are all files of the repository."""
    contents: dict[str, set[str]] = {}
    for folder, _, name in (name.rpartition("/") for name in names):
        contents.setdefault(folder, set()).add(name)
    contents.pop("", None)  # the top of the repository, which cannot be named
    states = sorted(
        folder for folder, inside in contents.items() if STATE_MANIFEST in inside or has_foreign_names(inside)
    )
    if reference.path in states:
        return
    below = [folder for folder in states if folder.startswith(f"{reference.path}/")]
    is_there = any(folder == reference.path or folder.startswith(f"{reference.path}/") for folder in contents)
    what = f"{reference.path} is no state" if is_there else f"the repository has no folder {reference.path}"
    nearest = None if below else nearest_name(reference.path, states)
    if nearest:
        fix = f"did you mean {_written(reference, nearest)}?"
    elif states:
        found = below or states
        shown = some_of([_written(reference, state) for state in found[-_EXAMPLES:]], len(found))
        fix = f"the states {'in it' if below else 'there'}: {shown}"
    else:
        fix = "no state is there; --save_state_to_huggingface uploads them"
    raise UserError.of(f"{what}, but holds some" if below else what, where, fix)


def _written(reference: StateReference, path: str) -> str:
    """A state of the same repository, as --resume takes it."""
    repository = reference.repository
    return REFERENCE_FORM.format(
        repo_id=repository.repo_id, path_in_repo=path, revision=reference.revision, repo_type=repository.repo_type
    )
