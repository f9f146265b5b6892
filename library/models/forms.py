"""Which form a saved model takes, where it goes, and in which number format its weights are written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from library.core.device import dtype_of
from library.core.errors import UserError
from library.options.saving import CKPT, DIFFUSERS, DIFFUSERS_SAFETENSORS, SAFETENSORS

# The extension is how readers tell the forms apart; folders have none.
EXTENSIONS = MappingProxyType({CKPT: ".ckpt", SAFETENSORS: ".safetensors"})
YAML_SUFFIX = ".yaml"
MODEL_INDEX = "model_index.json"
_WITH_SAFETENSORS = MappingProxyType({CKPT: SAFETENSORS, DIFFUSERS: DIFFUSERS_SAFETENSORS})


@dataclass(frozen=True)
class SaveTarget:
    """Where a model goes: the file or the folder, and one of `SAVE_FORMATS`.

    Raises:
        UserError: the name's extension says another form than the one that is asked for.
    """

    path: Path
    form: str

    def __post_init__(self) -> None:
        said, expected = self.path.suffix.lower(), EXTENSIONS.get(self.form, "")
        if said != expected and (expected or said in EXTENSIONS.values()):
            fix = f"let the name end in {expected}" if expected else "leave the extension out: this form is a folder"
            raise UserError.of(f"the name does not fit the form {self.form}", str(self.path), fix)


def yaml_beside(path: Path) -> Path:
    """Where tools look for the configuration of the single file at `path`: the same name, another extension."""
    return path.with_suffix(YAML_SUFFIX)


def files_in_the_way(target: SaveTarget) -> list[Path]:
    """What saving to `target` would replace: the file or folder itself, and the yaml of a single file's name."""
    places = [target.path, yaml_beside(target.path)] if is_single_file(target.form) else [target.path]
    return [path for path in places if path.exists()]


def refuse_other_folder(folder: Path) -> None:
    """Raises UserError when `folder` is there, not empty, and no Diffusers model: it is not ours to replace."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL_INDEX).is_file()):
        raise UserError.of("exists and is not a Diffusers model", str(folder), "choose another name, or move it away")


def is_single_file(form: str) -> bool:
    """Whether the form is one file; else it is a Diffusers folder."""
    return form in EXTENSIONS


def choose_form(asked: str | None, use_safetensors: bool, loaded: str) -> str:
    """The form to save in: the one of `--save_model_as`, else that of the base model.

    `--use_safetensors` keeps the structure (a file, a folder) and changes only what the weights are written as.

    Args:
        asked: value of `--save_model_as`.
        loaded: form of the base model.

    Raises:
        UserError: `.ckpt` and `.safetensors` are asked for at once.
    """
    if not use_safetensors:
        return asked or loaded
    if asked == CKPT:
        fix = "leave one of them out, or give --save_model_as safetensors"
        raise UserError.of("contradicts --save_model_as ckpt", "--use_safetensors", fix)
    form = asked or loaded
    return _WITH_SAFETENSORS.get(form, form)


def target_for(folder: Path, stem: str, form: str) -> SaveTarget:
    """NAME.ckpt, NAME.safetensors or the folder NAME inside `folder`; dots in the name are part of it."""
    if is_single_file(form):
        return SaveTarget(folder / f"{stem}{EXTENSIONS[form]}", form)
    return SaveTarget(folder / stem, form)


def form_of_path(path: Path) -> str:
    """The form that a path asks for by its extension; any other name is a folder with `.safetensors` weights."""
    forms = {extension: form for form, extension in EXTENSIONS.items()}
    return forms.get(path.suffix.lower(), DIFFUSERS_SAFETENSORS)


def saved_precision(asked: str | None, loaded: torch.dtype, form: str) -> torch.dtype:
    """The number format of saved weights: the one asked for ("float", "fp16", "bf16"), else the one they came in.

    Two formats become fp16 unless asked for: bf16 in a `.ckpt`, which the Web UI's safety check refuses, and 8-bit
    ones, in which nothing that was learned would be left.
    """
    if asked is not None:
        return dtype_of(asked)
    if loaded.itemsize == 1 or (loaded == torch.bfloat16 and form == CKPT):
        return torch.float16
    return loaded
