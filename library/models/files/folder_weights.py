"""Which files hold the weights of a network in a Diffusers folder: one file, or several with an index, or a variant.

Names as Diffusers and Transformers write them, for STEM and ENDING of the network:
`STEM.ENDING`; `STEM.ENDING.index.json` with `STEM-00001-of-00002.ENDING` and so on; and, for a variant such as fp16,
`STEM.fp16.ENDING` or `STEM.ENDING.index.fp16.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from library.core.errors import UserError

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}

_ENDINGS = (".safetensors", ".bin")
_PICKLED_TEXT_STEM = "pytorch_model"  # Transformers' name for what is not safetensors
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_COPY_AGAIN = "copy the whole model folder again"


def weights_files(folder: Path, stem: str) -> tuple[Path, ...]:
    """The weights of the network in `folder`: one file or all shards.

    Plain ones come before a variant, and of either safetensors come first.

    Args:
        folder: of the network, such as `MODEL/unet`.
        stem: one of `STEMS`.

    Raises:
        UserError: none there, a choice between several variants, or shards missing.
    """
    plain = [file for ending in _ENDINGS for file in _plain(folder, stem, ending)]
    if plain:
        return _with_shards(plain[0])
    variants = [found for ending in _ENDINGS for found in _variants(folder, stem, ending)]
    names = sorted({variant for variant, _ in variants})
    if len(names) > 1:
        what = f"only variants of the weights are there, and several: {', '.join(names)}"
        fix = f"copy the one to use to {_stem_for(stem, _ENDINGS[0])}{_ENDINGS[0]} (its name without the variant)"
        raise UserError.of(what, str(folder), fix)
    if variants:
        return _with_shards(variants[0][1])
    raise _nothing(folder, stem)


def _nothing(folder: Path, stem: str) -> UserError:
    names = [f"{_stem_for(stem, ending)}{ending}" for ending in _ENDINGS]
    for ending in _ENDINGS:
        shards = [path.name for path in folder.glob(f"{_stem_for(stem, ending)}*{ending}") if _SHARD.search(path.name)]
        if shards:
            index = f"{_stem_for(stem, ending)}{ending}.index.json"
            return UserError.of(f"holds {min(shards)}, but {index} is missing", str(folder), _COPY_AGAIN)
    return UserError.of(f"no weights: neither {' nor '.join(names)}", str(folder), _COPY_AGAIN)


def _stem_for(stem: str, ending: str) -> str:
    return _PICKLED_TEXT_STEM if stem == STEMS["text_encoder"] and ending != _ENDINGS[0] else stem


def _plain(folder: Path, stem: str, ending: str) -> list[Path]:
    name = f"{_stem_for(stem, ending)}{ending}"
    return [path for path in (folder / name, folder / f"{name}.index.json") if path.is_file()]


def _variants(folder: Path, stem: str, ending: str) -> list[tuple[str, Path]]:
    """(variant, file or index) by name."""
    stem, found = _stem_for(stem, ending), []
    for path in sorted(folder.glob(f"{stem}.*")):
        whole = re.fullmatch(rf"{re.escape(stem)}\.([^.]+){re.escape(ending)}", path.name)
        index = re.fullmatch(rf"{re.escape(stem + ending)}\.index\.([^.]+)\.json", path.name)
        match = whole or index
        if match and path.is_file() and not _SHARD.search(path.name):
            found.append((match[1], path))
    return found


def _with_shards(path: Path) -> tuple[Path, ...]:
    """The file itself, or what an index lists."""
    if path.suffix != ".json":
        return (path,)
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("no plain file names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError.of("is no list of weights files", str(path), _COPY_AGAIN) from error
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        what = f"{len(missing)} of the {len(names)} files it lists are missing: {', '.join(missing)}"
        raise UserError.of(what, str(path), _COPY_AGAIN)
    return tuple(path.parent / name for name in names)
