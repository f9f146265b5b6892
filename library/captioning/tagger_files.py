"""Where a tagger lies: in a folder of the user's, or in one that is filled from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.captioning.model_files import fetch
from library.captioning.tag_list import WD_LIST, TaggerFiles, find_tagger, holds_tagger
from library.core.errors import UserError
from library.core.hub_names import is_repo_id
from library.options.captioning import TaggerOptions

_MODEL = "model.onnx"  # on the Hub; further files of a large model begin with its name
_AGAIN = "give --force_download, which fetches what is missing or broken"
_OWN_COPY = "put a whole copy into that folder, or name a tagger on the Hub with --repo_id"


@dataclass(frozen=True)
class TaggerPlace:
    """The folder of a tagger, and its name on the Hub; None where it is the user's own."""

    folder: Path
    repo_id: str | None


def find_place(options: TaggerOptions, given: Collection[str]) -> TaggerPlace:
    """Where the tagger that the options mean lies or will lie.

    Args:
        options: a tagger in `model_dir` itself is meant where no `repo_id` was given.
        given: names of the options that the user gave.

    Raises:
        UserError: the name of the repository is none; a tagger that came from nowhere should be fetched anew.
    """
    top = Path(options.model_dir)
    if "repo_id" not in given and holds_tagger(top):
        if options.force_download:
            what = f"the tagger in {top} was put there by hand"
            raise UserError.of(what, "--force_download", "leave it out, or name a tagger on the Hub with --repo_id")
        return TaggerPlace(top, None)
    if not is_repo_id(options.repo_id):
        what = f"{options.repo_id!r} is no name of a repository on the Hugging Face Hub"
        fix = "write owner/name; for a tagger in a folder give --model_dir FOLDER without --repo_id"
        raise UserError.of(what, "--repo_id", fix)
    return TaggerPlace(top / options.repo_id.replace("/", "_"), options.repo_id)


def bring_tagger(place: TaggerPlace, force_download: bool) -> TaggerFiles:
    """The files of the tagger; the network is asked only where some are missing, or when it is forced.

    Raises:
        UserError: they cannot be had.
    """
    if place.repo_id is None:
        return find_tagger(place.folder, f"--model_dir {place.folder}", _OWN_COPY)
    where, needed = f"--repo_id {place.repo_id}", (_MODEL, WD_LIST)
    if force_download or not all((place.folder / name).is_file() for name in needed):
        fetch(place.repo_id, lambda names: _choose(names, where), place.folder, where, needed=needed)
    return find_tagger(place.folder, where, _AGAIN)


def _choose(names: Sequence[str], where: str) -> list[str]:
    missing = [name for name in (_MODEL, WD_LIST) if name not in names]
    if missing:
        what = f"the repository is no WD tagger in ONNX form: it has no {' and no '.join(missing)}"
        raise UserError.of(what, where, "name another; SmilingWolf/wd-vit-tagger-v3 is one")
    return [name for name in names if name == WD_LIST or name.startswith(_MODEL)]
