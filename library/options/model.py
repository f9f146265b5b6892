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
        "base model: a .safetensors or .ckpt file, or a Diffusers folder",
        required=True,
        metavar="PATH",
    )
    v2: bool = option(False, "the base model is Stable Diffusion 2.x; checked, but never needed: the file tells it")
    v_parameterization: bool = option(
        False, "the base model predicts v instead of noise (SD2 768-v); a single file cannot tell this itself"
    )
