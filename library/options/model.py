"""Which base model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option


@dataclass(frozen=True)
class ModelOptions(OptionGroup):
    """The base model and what its file cannot tell about itself."""

    title: ClassVar[str] = "Base model"

    pretrained_model_name_or_path: str | None = option(
        None,
        "base model: a .safetensors or .ckpt file, a Diffusers folder, or a name on the Hugging Face Hub",
        required=True,
        metavar="MODEL",
    )
    vae: str | None = option(
        None,
        "VAE to use instead of the model's own: a VAE file or folder, or a whole model in any form, also by Hub name",
        metavar="MODEL",
    )
    v2: bool = option(False, "the base model is Stable Diffusion 2.x; checked, but never needed: the file tells it")
    v_parameterization: bool | None = option(
        None,
        "the base model predicts v instead of noise (SD2 768-v); needed, as true or false, only where the model's files"
        " do not tell",
    )
