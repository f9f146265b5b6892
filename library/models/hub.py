"""Models named by their id on the Hugging Face Hub, `owner/name`.

What is in the Hub's cache on this machine is taken from there, and nothing is asked of the network. Otherwise the few
small configuration files come first, so that a run can be checked, and the gigabytes only when it starts. Cache and
access token are those of `huggingface_hub`, which also obeys HF_HUB_OFFLINE and HF_ENDPOINT; as its messages may
quote addresses and headers, none of them is passed on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from library.core.errors import UserError, nearest_name
from library.core.hub_errors import Fault, FaultKind, explain_for_model, told_as
from library.core.hub_names import MODEL_ENDINGS, is_repo_id
from library.models.files.folder_weights import STEMS, weights_files

PARTS = ("unet", "vae", "text_encoder")

_MODEL_INDEX = "model_index.json"
_OWN_CONFIG = "config.json"  # at the root of a repository that holds one network, such as a VAE
_CONFIGS = {**{part: f"{part}/config.json" for part in PARTS}, "scheduler": "scheduler/scheduler_config.json"}
_PROBE_SECONDS = 5.0
_EXAMPLES = 3


@dataclass(frozen=True)
class Located:
    """Where a model is on this machine; `repo_id` is its name on the Hub if it comes from there, else None."""

    path: Path
    repo_id: str | None


def locate(name: str, flag: str) -> Located:
    """Finds what the user named: a file or folder here, else the Diffusers model of that id on the Hub.

    A model of the Hub may be there with its configuration only; `fetch_weights` brings the rest.

    Args:
        name: path, or `owner/name`.
        flag: the option that named it, for messages.

    Raises:
        UserError: no such path, and no such model on the Hub or no way to get it.
    """
    path = Path(name)
    if name.strip() and _exists(path):
        return Located(path, None)
    if not is_repo_id(name):
        raise _no_such_path(path, name, flag)
    folder = _cached_folder(name)
    if folder is None or not _has_configs(folder):
        folder = _fetch_configs(name, flag)
    return Located(folder, name)


def fetch_weights(repo_id: str, flag: str, parts: Sequence[str] = PARTS) -> Path:
    """The folder of a model of the Hub with its configuration and one set of weights for each of `parts`.

    Weights that are in the cache are taken as they are. Of those on the Hub plain files come before variants (fp16),
    one file before several, `.safetensors` before `.bin`: what the loading code chooses in a folder.

    Raises:
        UserError: the Hub has not all of it, or there is no way to get it.
    """
    folder = _cached_folder(repo_id)
    if folder is not None and _has_configs(folder) and not _parts_without_weights(folder, parts):
        return folder
    where = f"{flag} {repo_id}"
    # the version whose configuration was checked, also when there is a newer one by now
    commit = folder.name if folder is not None else None
    names = _ask_hub(repo_id, commit, where, "")
    wanted, absent = _configs_among(names), []
    for part in _parts_without_weights(folder, parts) if folder is not None else parts:
        place = f"{part}/" if _MODEL_INDEX in names else ""
        chosen = _choose_weights(names, place, STEMS[part])
        wanted += chosen
        if not chosen:
            absent.append(place or part)
    if absent:
        fix = "choose another model, or ask its owner for weights as .safetensors"
        raise UserError.of(f"the model on the Hub has no PyTorch weights in {', '.join(absent)}", where, fix)
    return _download(repo_id, commit, wanted, where)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system, or a folder that may not be looked into
        return False


def _no_such_path(path: Path, name: str, flag: str) -> UserError:
    if "huggingface.co/" in name:
        fix = "give the id alone, as owner/name, or download the file and give its path"
        return UserError.of("is a web address", f"{flag} {name}", fix)
    fix = "check the path; a model of the Hugging Face Hub is given as owner/name"
    if _exists(path.parent) and path.parent.is_dir():
        nearest = nearest_name(path.name, [other.name for other in path.parent.iterdir()])
        fix = f"did you mean {path.parent / nearest}?" if nearest else fix
    return UserError.of("no such file or folder", f"{flag} {name}", fix)


# --- what the cache holds ---------------------------------------------------------------------------------------------


def _cached_folder(repo_id: str) -> Path | None:
    """The snapshot of the model in the cache, whole or not; its name is that of the version (commit)."""
    from huggingface_hub import try_to_load_from_cache

    for name in (_MODEL_INDEX, _OWN_CONFIG):
        found = try_to_load_from_cache(repo_id, name)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _has_configs(folder: Path) -> bool:
    """Whether the configuration of every part that the model says it has is there."""
    if not (folder / _MODEL_INDEX).is_file():
        return True
    try:
        index = json.loads((folder / _MODEL_INDEX).read_text(encoding="utf-8"))
    except ValueError:
        return True  # whoever reads the folder complains of it
    return all((folder / config).is_file() for part, config in _CONFIGS.items() if part in index)


def _parts_without_weights(folder: Path, parts: Sequence[str]) -> list[str]:
    is_model = (folder / _MODEL_INDEX).is_file()
    return [part for part in parts if not _has_weights(folder / part if is_model else folder, part)]


def _has_weights(folder: Path, part: str) -> bool:
    try:
        return bool(weights_files(folder, STEMS[part]))
    except UserError:
        return False


# --- what the Hub holds -----------------------------------------------------------------------------------------------


def _fetch_configs(repo_id: str, flag: str) -> Path:
    where = f"{flag} {repo_id}"
    names = _ask_hub(repo_id, None, where, "no such folder here, and ")
    wanted = _configs_among(names)
    if _MODEL_INDEX not in wanted and _OWN_CONFIG not in wanted:
        files = [name for name in names if name.lower().endswith(MODEL_ENDINGS)]
        what = "no such folder here, and what the Hub has under that name is no Diffusers model"
        fix = "choose another model"
        if files:
            what += f", but has {', '.join(files[:_EXAMPLES])}"
            fix = f"download one file and give its path: hf download {repo_id} {files[0]} --local-dir ."
        raise UserError.of(what, where, fix)
    return _download(repo_id, None, wanted, where)


def _configs_among(names: Sequence[str]) -> list[str]:
    own = _MODEL_INDEX if _MODEL_INDEX in names else _OWN_CONFIG
    return [name for name in (own, *_CONFIGS.values()) if name in names]


def _choose_weights(names: Sequence[str], place: str, stem: str) -> list[str]:
    """One set of weights among the names of a repository's files, as few files as there are; empty if there is none.

    Args:
        place: the folder of the part with a slash, or nothing for the root.
        stem: the name of its weights files, see `STEMS`.
    """
    stems = {".safetensors": stem, ".bin": "pytorch_model" if stem == STEMS["text_encoder"] else stem}
    here = sorted(name.removeprefix(place) for name in names if name.startswith(place))
    plain, variants = [], []
    for ending, own in stems.items():
        plain.append([name for name in here if name == own + ending])
        shards = rf"{re.escape(own)}-\d{{5}}-of-\d{{5}}{re.escape(ending)}"
        index = f"{own}{ending}.index.json"
        plain.append([name for name in here if name == index or re.fullmatch(shards, name)] if index in here else [])
        variants += [[name] for name in here if re.fullmatch(rf"{re.escape(own)}\.[^./-]+{re.escape(ending)}", name)]
    chosen = next((files for files in (*plain, *variants) if files), [])
    return [place + name for name in chosen]


def _ask_hub(repo_id: str, commit: str | None, where: str, so_far: str) -> list[str]:
    """The names of the model's files; one question with a short wait, before anything that would be tried again."""
    from huggingface_hub import HfApi

    with _told_plainly(repo_id, where, so_far):
        info = HfApi().model_info(repo_id, revision=commit, timeout=_PROBE_SECONDS)
        return [sibling.rfilename for sibling in info.siblings or []]


def _download(repo_id: str, commit: str | None, names: Sequence[str], where: str) -> Path:
    from huggingface_hub import snapshot_download

    with _told_plainly(repo_id, where, ""):
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=list(names)))


def _told_plainly(repo_id: str, where: str, so_far: str) -> AbstractContextManager[None]:
    """Turns whatever goes wrong with the Hub into one line that says what to do."""

    def explain(fault: Fault) -> UserError:
        what, fix = _explain(fault, repo_id)
        return UserError.of(so_far + what, where, fix)

    return told_as(explain)


def _explain(fault: Fault, repo_id: str) -> tuple[str, str]:
    """(what, fix)."""
    from huggingface_hub import constants

    if fault.kind is FaultKind.NO_REVISION:
        what = "the Hub no longer has the version whose configuration is in the cache"
        return what, f"delete the model from the cache ({constants.HF_HUB_CACHE}) and start again"
    if fault.kind is FaultKind.DISK:
        what = f"the model cannot be kept in the cache {constants.HF_HUB_CACHE}: {fault.detail}"
        return what, "make room there, or set HF_HOME to a folder elsewhere"
    what, fix = explain_for_model(fault, repo_id, "or download the model by other means and give its path")
    if fault.kind is FaultKind.OFFLINE:
        what += "; the cache does not hold all of the model"
    return what, fix
