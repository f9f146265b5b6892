"""Where a tagger lies: in a folder of the user's, or in one that is filled from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from library.captioning.model_files import fetch
from library.captioning.tag_list import ONNX, WD_LIST, TaggerFiles, find_tagger, holds_files, holds_tagger
from library.core.errors import UserError, printable
from library.core.hub_names import is_repo_id
from library.core.log import get_logger
from library.options.captioning import TaggerOptions

_LOG = get_logger(__name__)
_MODEL = "model.onnx"  # on the Hub; further files of a large model begin with its name
_AGAIN = "give --force_download, which fetches what is missing or broken"
_OWN_COPY = "put a whole copy into that folder, or name a tagger on the Hub with --repo_id"


@dataclass(frozen=True)
class TaggerPlace:
    """Where a tagger lies, or will lie.

    Attributes:
        folder: of this tagger alone.
        repo_id: its name on the Hub; None where it is the user's own.
        lacks: the folder that the user named, in which no tagger lies, so that the usual one of the Hub is meant.
    """

    folder: Path
    repo_id: str | None
    lacks: Path | None = None


def find_place(options: TaggerOptions, given: Collection[str]) -> TaggerPlace:
    """Where the tagger that the options mean lies or will lie.

    Args:
        options: a tagger in `model_dir` itself is meant where no `repo_id` was given.
        given: names of the options that the user gave.

    Raises:
        UserError: the name of the repository is none; a tagger that came from nowhere should be fetched anew; what the
            user named is a file, or a folder with something else in it.
    """
    top, where = Path(options.model_dir), f"--model_dir {options.model_dir}"
    if _is_file(top):
        raise UserError.of("is a file, not a folder", where, "name the folder it lies in")
    if "repo_id" not in given and holds_tagger(top):
        if options.force_download:
            what = f"the tagger in {top} was put there by hand"
            raise UserError.of(what, "--force_download", "leave it out, or name a tagger on the Hub with --repo_id")
        return TaggerPlace(top, None)
    if not is_repo_id(options.repo_id):
        what = f"{options.repo_id!r} is no name of a repository on the Hugging Face Hub"
        fix = "write owner/name; for a tagger in a folder give --model_dir FOLDER without --repo_id"
        raise UserError.of(what, "--repo_id", fix)
    folder = top / options.repo_id.replace("/", "_")
    if "model_dir" not in given or "repo_id" in given:
        return TaggerPlace(folder, options.repo_id)
    if holds_files(top) and not folder.exists():
        fix = "name the folder of a tagger, or an empty or new one, which is filled from the Hub"
        raise UserError.of(f"holds files, but no tagger (no {ONNX} file and no list of tags)", where, fix)
    return TaggerPlace(folder, options.repo_id, lacks=top)


def bring_tagger(place: TaggerPlace, force_download: bool) -> TaggerFiles:
    """The files of the tagger; the network is asked only where some are missing, or when it is forced.

    Raises:
        UserError: they cannot be had.
    """
    if place.repo_id is None:
        return find_tagger(place.folder, f"--model_dir {place.folder}", _OWN_COPY)
    where, needed = f"--repo_id {place.repo_id}", (_MODEL, WD_LIST)
    if force_download or not all((place.folder / name).is_file() for name in needed):
        if place.lacks is not None:
            what = f"no tagger lies in {place.lacks}: {place.repo_id} of the Hub is put into {place.folder}"
            _LOG.info("%s", printable(f"{what}; --repo_id names another"))
        fetch(place.repo_id, lambda names: _choose(names, where), place.folder, where, needed=needed)
    return find_tagger(place.folder, where, _AGAIN)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system, or a place that may not be looked into
        return False


def _choose(names: Sequence[str], where: str) -> list[str]:
    missing = [name for name in (_MODEL, WD_LIST) if name not in names]
    if missing:
        what = f"the repository is no WD tagger in ONNX form: it has no {' and no '.join(missing)}"
        raise UserError.of(what, where, "name another; SmilingWolf/wd-vit-tagger-v3 is one")
    return [name for name in names if name == WD_LIST or name.startswith(_MODEL)]
