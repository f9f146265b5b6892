"""Where a BLIP model comes from: a folder as transformers saves it, given by the user or fetched from the Hub.

All that can be said of it without torch, so that mistakes are told before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.captioning.model_files import fetch
from library.core.errors import Problem, UserError
from library.core.hub_names import is_repo_id, stays_below
from library.core.json_files import read_json_object
from library.options.captioning import DEFAULT_BLIP, BlipOptions

CONFIG = "config.json"
_MODEL_TYPE, _CLASS = "blip", "BlipForConditionalGeneration"
_PICTURE_FORMS = ("preprocessor_config.json", "processor_config.json")
_VOCABULARIES = ("tokenizer.json", "vocab.txt")
_WORD_FILES = (*_VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the better first; each whole, or as an index and its pieces
_NEEDED = (CONFIG, _PICTURE_FORMS[0], _VOCABULARIES[0], _WEIGHTS[0])  # to tell those who download by hand
_SINGLE_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".onnx")
_FLAG = "--caption_weights"
_GIVE = f"leave it out for {DEFAULT_BLIP}, or give a folder as transformers saves BLIP, or owner/name of one on the Hub"
_ANOTHER = f"give a BLIP model that writes captions, such as {DEFAULT_BLIP}"


@dataclass(frozen=True)
class Source:
    """The folder that holds the model, or will hold it once it is fetched as `repo_id` from the Hub."""

    folder: Path
    repo_id: str | None


def option_problems(options: BlipOptions, given: Collection[str]) -> list[Problem]:
    """Options that contradict each other, or that were `given` and would do nothing."""
    found = []
    if options.min_length >= options.max_length:
        what = f"the shortest caption ({options.min_length}) is not shorter than the longest ({options.max_length})"
        found.append(Problem(what, "--min_length, --max_length", "lower --min_length, or raise --max_length"))
    if "num_beams" in given and not options.beam_search:
        what = "does nothing where captions are drawn"
        found.append(Problem(what, "--num_beams", "add --beam_search, or leave it out"))
    if "top_p" in given and options.beam_search:
        what = "does nothing with --beam_search, which draws nothing"
        found.append(Problem(what, "--top_p", "leave out one of the two"))
    return found


def find_source(options: BlipOptions, given: Collection[str]) -> Source:
    """The model that the options name; a folder of the user's is checked, the Hub is asked nothing.

    Args:
        options: the options.
        given: names of the options that were given.

    Raises:
        UserError: the text names neither a folder with BLIP in it nor a model of the Hub, or options about the Hub
            come with a folder.
    """
    name = options.caption_weights
    path, where = Path(name), f"{_FLAG} {name}"
    if "://" in name or name.startswith("www.") or "huggingface.co/" in name:
        raise UserError.of("is a web address, from which nothing is loaded", where, _GIVE)
    if name.strip() and _is_folder(path):
        _refuse_hub_options(options, given)
        check_folder(path, where)
        return Source(path, None)
    if name.lower().endswith(_SINGLE_FILES):
        raise UserError.of("is a single file; BLIP's original files (.pth) cannot be read", where, _GIVE)
    if not is_repo_id(name):
        raise UserError.of("no such folder", where, _GIVE)
    return Source(_kept_in(options, name), name)


def bring(source: Source, force_download: bool) -> Path:
    """The folder with the model, which is fetched first when it is not all there; otherwise no network is used.

    Raises:
        UserError: it cannot be fetched, or is no BLIP model.
    """
    where = f"{_FLAG} {source.repo_id or source.folder}"
    if source.repo_id is not None and (force_download or what_is_missing(source.folder)):
        # what tells the kind of the model comes first, so that nobody waits for gigabytes of another
        fetch(source.repo_id, lambda names: choose_files(names, where)[:1], source.folder, where, _NEEDED)
        _check_kind(source.folder, where)
        fetch(source.repo_id, lambda names: choose_files(names, where), source.folder, where, _NEEDED)
    check_folder(source.folder, where)
    return source.folder


def choose_files(names: Sequence[str], where: str) -> list[str]:
    """Of the files of a repository those that make the model, the weights last.

    `.safetensors` comes before PyTorch's own format, one file before several.

    Raises:
        UserError: the repository holds no such model.
    """
    weights = next((found for stem in _WEIGHTS if (found := _weights_among(names, stem))), None)
    if CONFIG not in names or weights is None:
        missing = CONFIG if CONFIG not in names else f"weights ({' or '.join(_WEIGHTS)})"
        raise UserError.of(f"the repository has no {missing}: it is no model for transformers", where, _ANOTHER)
    small = (CONFIG, *_PICTURE_FORMS, *_WORD_FILES)
    return [name for name in small if name in names] + weights


def what_is_missing(folder: Path) -> str | None:
    """What the folder lacks to be a whole model; None when it has everything."""
    if not (folder / CONFIG).is_file():
        return CONFIG
    for names in (_PICTURE_FORMS, _VOCABULARIES):
        if not any((folder / name).is_file() for name in names):
            return " or ".join(names)
    if weights_of(folder) is None:
        return f"whole weights ({' or '.join(_WEIGHTS)})"
    return None


def weights_of(folder: Path) -> str | None:
    """Which weights a folder holds: `model.safetensors` or `pytorch_model.bin`; None when they are not all there."""
    for stem in _WEIGHTS:
        index = folder / f"{stem}.index.json"
        pieces = _pieces(index) if index.is_file() else {stem}
        if (folder / stem).is_file() or all((folder / name).is_file() for name in pieces):
            return stem
    return None


def check_folder(folder: Path, where: str) -> None:
    """Whether the folder holds a BLIP model that writes captions, all of it.

    Raises:
        UserError: with what is missing, or which other kind of model it is.
    """
    missing = what_is_missing(folder)
    if missing == CONFIG:
        raise UserError.of(f"{folder} holds no {CONFIG}: it is no model as transformers saves it", where, _GIVE)
    _check_kind(folder, where)
    if missing is not None:
        raise UserError.of(f"{folder} holds no {missing}", where, "copy or fetch the whole model again")


def _check_kind(folder: Path, where: str) -> None:
    refusal = _why_refused(folder, read_json_object(folder / CONFIG))
    if refusal is not None:
        raise UserError.of(refusal, where, _ANOTHER)


def _why_refused(folder: Path, config: dict[str, Any]) -> str | None:
    kind, classes = config.get("model_type"), config.get("architectures")
    if kind != _MODEL_TYPE:
        return f"the model is of type {kind!r}, not {_MODEL_TYPE!r}"
    if isinstance(classes, list) and classes and _CLASS not in classes:
        return f"this BLIP is a {', '.join(map(str, classes))}, which writes no captions ({_CLASS} does)"
    if "quantization_config" in config:
        return "its weights are quantised, which needs code of others to read"
    if (folder / "adapter_config.json").exists():
        return "an adapter (adapter_config.json) lies in its folder, which is not supported"
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long for the file system, or a place that may not be looked into
        return False


def _refuse_hub_options(options: BlipOptions, given: Collection[str]) -> None:
    flags = [f"--{name}" for name in ("model_dir", "force_download") if name in given and getattr(options, name)]
    if flags:
        what = f"nothing is fetched, because {options.caption_weights} is a folder"
        raise UserError.of(what, ", ".join(flags), f"leave it out, or give {_FLAG} as owner/name")


def _kept_in(options: BlipOptions, repo_id: str) -> Path:
    """The folder of a model of the Hub: below `--model_dir`, else in the Hub's cache."""
    name = repo_id.replace("/", "_")
    if options.model_dir is not None:
        return Path(options.model_dir) / name
    from huggingface_hub import constants, try_to_load_from_cache  # here, because it is slow to import

    cached = try_to_load_from_cache(repo_id, CONFIG)
    if isinstance(cached, str) and not options.force_download and what_is_missing(Path(cached).parent) is None:
        return Path(cached).parent  # other programs fetched it
    return Path(constants.HF_HOME) / "sd_atelier" / name


def _weights_among(names: Sequence[str], stem: str) -> list[str]:
    if stem in names:
        return [stem]
    index, (start, end) = f"{stem}.index.json", stem.rsplit(".", 1)
    pieces = re.compile(rf"{start}-\d+-of-\d+\.{end}")
    return [*sorted(name for name in names if pieces.fullmatch(name)), index] if index in names else []


def _pieces(index: Path) -> set[str]:
    """The files that an index of weights names; one that no folder holds where it names none, or some elsewhere."""
    try:
        table = read_json_object(index).get("weight_map")
    except UserError:
        table = None
    names = set(map(str, table.values())) if isinstance(table, dict) else set()
    return names if names and all(stays_below(name) and "/" not in name for name in names) else {"?"}
