"""What a model's files hold beside the three networks in memory: kept, so that saving loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from library.core.json_files import read_json_object
from library.core.tensor_files import Deferred, Writable, made
from library.models.convert import text_encoder, unet, vae
from library.models.files.weights import WeightsFile, open_weights, open_weights_or_metadata
from library.models.identify import ModelIdentity

# at the root of a Diffusers folder of ours; other programs pass it over
EXTRAS_FILE = "single_file_extras.safetensors"
_EMA_PREFIX = "model_ema."
_CONVERTERS = (unet.to_diffusers, vae.to_diffusers, text_encoder.to_transformers)


@dataclass(frozen=True)
class ModelExtras:
    """Tensors under their single-file names that no network in memory uses, the metadata of the file, and the
    configuration of a Diffusers folder's sampler.

    Examples: OpenCLIP's unused last layer, `text_projection` and `logit_scale`; `position_ids`; the noise schedule
    (`betas`, `alphas_cumprod`); `model_ema.*`; anything unknown.
    """

    tensors: Mapping[str, Writable] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    scheduler: Mapping[str, Any] | None = None

    def loaded(self) -> ModelExtras:
        """The same with every tensor in memory, independent of the file from now on."""
        return replace(self, tensors={name: made(tensor) for name, tensor in self.tensors.items()})

    def without_ema(self) -> ModelExtras:
        """The same without the running average of the U-Net (`model_ema.*`).

        It belongs to the weights of before a training: beside trained ones it would be that of another model.
        """
        kept = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(_EMA_PREFIX)}
        return replace(self, tensors=kept)


def read_extras(identity: ModelIdentity) -> ModelExtras:
    """The extras of a model: of a single file, or of the file that keeps them in a Diffusers folder.

    Tensors are read from the file when they are written.

    Raises:
        UserError: the file is damaged.
    """
    if identity.layout == "single_file":
        file = open_weights(identity.path)
        names = [name for name, shape in file.shapes.items() if not is_used(name, shape)]
        return ModelExtras({name: _deferred(file, name) for name in names}, dict(file.metadata))
    config = identity.path / "scheduler" / "scheduler_config.json"
    scheduler = read_json_object(config) if config.is_file() else None
    path = identity.path / EXTRAS_FILE
    if not path.is_file():
        return ModelExtras(scheduler=scheduler)
    file = open_weights_or_metadata(path)
    return ModelExtras({name: _deferred(file, name) for name in file.shapes}, dict(file.metadata), scheduler)


def is_used(name: str, shape: tuple[int, ...]) -> bool:
    """Whether one of the networks in memory has a use for the tensor of this single-file name."""
    tensor = torch.empty(shape, device="meta")
    return any(convert(name, tensor) for convert in _CONVERTERS)


def _deferred(file: WeightsFile, name: str) -> Deferred:
    return Deferred(file.dtypes[name], tuple(file.shapes[name]), lambda: file.read(name))
