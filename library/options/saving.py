"""In which form a whole model is saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option

PRECISIONS = ("float", "fp16", "bf16")
CKPT, SAFETENSORS, DIFFUSERS, DIFFUSERS_SAFETENSORS = SAVE_FORMATS = (
    "ckpt",
    "safetensors",
    "diffusers",
    "diffusers_safetensors",
)


@dataclass(frozen=True)
class ModelSavingOptions(OptionGroup):
    """For scripts that train whole models; network files are always .safetensors."""

    title: ClassVar[str] = "Form of the saved model"

    save_model_as: str | None = option(
        None,
        "form of the saved model: a single .ckpt or .safetensors file, or a Diffusers folder with .bin or .safetensors"
        " weights; default: the form of the base model",
        choices=SAVE_FORMATS,
    )
    use_safetensors: bool = option(
        False, "save as .safetensors, but as a single file or as a folder like the base model"
    )
    save_vae_precision: str | None = option(
        None, "precision of the saved VAE; default: the one it has, for it is not trained", choices=PRECISIONS
    )
