"""Loading a model: networks are built without memory and given the file's own tensors, once.

The weights keep the number format of the file, and no second copy of them ever exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from library.core.errors import UserError
from library.models.convert import text_encoder, unet, vae
from library.models.identify import ModelIdentity
from library.models.stable_diffusion import StableDiffusion
from library.models.topology import Shape, text_config_of, unet_config_of, unet_sample_size, vae_config_of
from library.models.weights import WeightsFile, open_weights

Convert = Callable[[str, Tensor], dict[str, Tensor]]
Networks = tuple[UNet2DConditionModel, CLIPTextModel, AutoencoderKL]

_FOLDER_FILES = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}
_EXAMPLES = 3


def load_stable_diffusion(identity: ModelIdentity, prediction_type: str) -> StableDiffusion:
    """Loads the three networks to the CPU, in evaluation mode and with nothing trainable.

    Args:
        identity: what `identify` said of the model.
        prediction_type: "epsilon" or "v_prediction", see `resolve_prediction_type`.

    Raises:
        UserError: a network's tensors are missing, unknown, of a wrong shape or no floating-point numbers.
    """
    load = _load_single_file if identity.layout == "single_file" else _load_folder
    networks = load(identity, prediction_type)
    for network in networks:
        network.eval().requires_grad_(False)
    return StableDiffusion(identity.family, prediction_type, *networks, source=identity.path)


def build_unet(config: Mapping[str, Any]) -> UNet2DConditionModel:
    """A U-Net without memory for its weights (meta device)."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config))


def build_vae(config: Mapping[str, Any]) -> AutoencoderKL:
    """A VAE without memory for its weights (meta device)."""
    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config))


def build_text_encoder(config: Mapping[str, Any]) -> CLIPTextModel:
    """A text encoder without memory for its weights (meta device); its position ids, which no file holds, are real."""
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig.from_dict(dict(config)))
    position_ids = torch.arange(model.config.max_position_embeddings)[None]
    model.embeddings.register_buffer("position_ids", position_ids, persistent=False)
    return model


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Makes `tensors` the weights of a network built on the meta device; RuntimeError if any is left without memory."""
    network.load_state_dict(tensors, strict=True, assign=True)
    everything = [*network.named_parameters(), *network.named_buffers()]
    left = [name for name, tensor in everything if tensor.is_meta]
    if left:
        raise RuntimeError(f"{type(network).__name__}: no values for {', '.join(left[:_EXAMPLES])}")


def _load_single_file(identity: ModelIdentity, prediction_type: str) -> Networks:
    file, family = open_weights(identity.path), identity.family
    try:
        sample_size = unet_sample_size(prediction_type, family)
        networks = (
            build_unet(unet_config_of(family, _converted_shapes(file, unet.to_diffusers), sample_size)),
            build_text_encoder(text_config_of(family, _converted_shapes(file, text_encoder.to_transformers))),
            build_vae(vae_config_of(family, _converted_shapes(file, vae.to_diffusers))),
        )
    except KeyError as error:
        raise _incomplete(identity.path, f"no tensor for {error.args[0]}") from error
    converters = (unet.to_diffusers, text_encoder.to_transformers, vae.to_diffusers)
    for network, convert in zip(networks, converters, strict=True):
        _fill_from(network, file, convert, f"{identity.path} ({type(network).__name__})")
    return networks


def _load_folder(identity: ModelIdentity, _prediction_type: str) -> Networks:
    networks = (
        build_unet(_folder_config(identity.path / "unet")),
        build_text_encoder(_folder_config(identity.path / "text_encoder")),
        build_vae(_folder_config(identity.path / "vae")),
    )
    parts = (("unet", _unchanged), ("text_encoder", text_encoder.from_folder), ("vae", vae.from_folder))
    for network, (name, convert) in zip(networks, parts, strict=True):
        file = open_weights(_weights_path(identity.path / name, _FOLDER_FILES[name]))
        _fill_from(network, file, convert, str(file.path))
    return networks


def _folder_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _weights_path(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        # a variant such as model.fp16.safetensors counts where the plain file is absent
        for path in (folder / name, *sorted(folder.glob(f"{Path(name).stem}.*{Path(name).suffix}"))):
            if path.is_file():
                return path
    raise UserError.of(f"no weights: neither {' nor '.join(names)}", str(folder), "copy the whole model folder again")


def _fill_from(network: nn.Module, file: WeightsFile, convert: Convert, where: str) -> None:
    _check_shapes(_converted_shapes(file, convert), network, where)
    tensors: dict[str, Tensor] = {}
    for name in file.shapes:
        if convert(name, torch.empty(file.shapes[name], device="meta")):
            tensors.update(convert(name, file.read(name)))
    unfit = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if unfit:
        what = f"{len(unfit)} tensors hold no floating-point numbers, first {unfit[0]} ({tensors[unfit[0]].dtype})"
        raise UserError.of(what, where, "give a model that is not quantised")
    fill(network, tensors)


def _converted_shapes(file: WeightsFile, convert: Convert) -> dict[str, Shape]:
    """Shapes after conversion, found by converting tensors without memory."""
    shapes: dict[str, Shape] = {}
    for name, shape in file.shapes.items():
        converted = convert(name, torch.empty(shape, device="meta"))
        shapes.update({new_name: tuple(tensor.shape) for new_name, tensor in converted.items()})
    return shapes


def _check_shapes(found: Mapping[str, Shape], network: nn.Module, where: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = (("missing", missing), ("unknown", unexpected), ("of a wrong shape", misshaped))
    faults = [f"{len(names)} {kind}: {', '.join(names[:_EXAMPLES])}" for kind, names in kinds if names]
    if faults:
        raise _incomplete(where, "tensors " + "; ".join(faults))


def _incomplete(where: Path | str, what: str) -> UserError:
    return UserError.of(f"the model is incomplete or of another kind: {what}", str(where), "give a complete model")


def _unchanged(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {name: tensor}
