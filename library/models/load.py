"""Loading a model: networks are built without memory and given the file's own tensors, once.

The weights keep the number format of the file, and no second copy of them ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from library.core.errors import Problems, UserError
from library.core.json_files import read_json_object
from library.models.convert import text_encoder, unet, vae
from library.models.files.folder_weights import STEMS, weights_files
from library.models.files.weights import open_weights
from library.models.identify import ModelIdentity
from library.models.layouts import check_layout, check_text_layers
from library.models.parts import Convert, Part, check_part, fit, incomplete, plan_part
from library.models.stable_diffusion import StableDiffusion
from library.models.topology import Shape, text_config_of, unet_config_of, unet_sample_size, vae_config_of

Network = TypeVar("Network", bound=nn.Module)

_EXAMPLES = 3


def load_stable_diffusion(identity: ModelIdentity, prediction_type: str) -> StableDiffusion:
    """Loads the three networks to the CPU, in evaluation mode and with nothing trainable.

    The tensors of a `.safetensors` file are parts of its mapping (see `library.models.files.mapped`).

    Args:
        identity: what `identify` said of the model.
        prediction_type: "epsilon" or "v_prediction", see `resolve_prediction_type`.

    Raises:
        UserError: a network's tensors are missing, unknown, of a wrong shape or no floating-point numbers, or its files
            are not all there; what is wrong with any of the three networks is told at once.
    """
    problems = Problems()
    parts = _plan(identity, problems)
    networks = _build(identity, prediction_type, parts, problems)
    problems.raise_if_any()
    for network, part in zip(networks, parts.values(), strict=True):
        fill(network, fit(part.read(), network))
        network.eval().requires_grad_(False)
    network_unet, network_text, network_vae = networks
    return StableDiffusion(identity.family, prediction_type, network_unet, network_text, network_vae, identity.path)


def faults_of(identity: ModelIdentity) -> list[str]:
    """What would keep `load_stable_diffusion` from loading the model, as sentences; reads no weight."""
    problems = Problems()
    try:
        _build(identity, "epsilon", _plan(identity, problems), problems)
    except UserError as error:  # the one file of the model cannot be opened
        problems.extend(error.problems)
    return [f"{problem.where}: {problem.what}" for problem in problems]


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


@dataclass(frozen=True)
class _Recipe:
    """How one network comes out of a model's files.

    Attributes:
        build: the network of a configuration.
        config_of: the configuration, from family and shapes, where a file does not have one.
        from_single_file, from_folder: what each kind calls the tensors.
    """

    build: Callable[[Mapping[str, Any]], nn.Module]
    config_of: Callable[[str, Mapping[str, Shape]], dict[str, Any]]
    from_single_file: Convert
    from_folder: Convert


def _unchanged(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {name: tensor}


# in the order in which StableDiffusion takes them; the names are those of the folders
_RECIPES = (
    ("unet", _Recipe(build_unet, unet_config_of, unet.to_diffusers, _unchanged)),
    (
        "text_encoder",
        _Recipe(build_text_encoder, text_config_of, text_encoder.to_transformers, text_encoder.from_folder),
    ),
    ("vae", _Recipe(build_vae, vae_config_of, vae.to_diffusers, vae.from_any)),
)


def _plan(identity: ModelIdentity, problems: Problems) -> dict[str, Part]:
    """What the files hold for each network; without those whose files are not all there."""
    if identity.layout == "single_file":
        file = open_weights(identity.path)
        return {
            name: plan_part([file], recipe.from_single_file, f"{identity.path} ({name})") for name, recipe in _RECIPES
        }
    parts = {}
    for name, recipe in _RECIPES:
        try:
            parts[name] = plan_folder(identity.path / name, STEMS[name], recipe.from_folder)
        except UserError as error:
            problems.extend(error.problems)
    return parts


def plan_folder(folder: Path, stem: str, convert: Convert) -> Part:
    """What the weights in the folder of one network hold. UserError when they are not all there, or damaged."""
    paths = weights_files(folder, stem)
    return plan_part([open_weights(path) for path in paths], convert, str(paths[0] if len(paths) == 1 else folder))


def _build(
    identity: ModelIdentity, prediction_type: str, parts: Mapping[str, Part], problems: Problems
) -> list[Any]:  # Any: three classes that have only nn.Module in common
    """The networks of `parts`, on the meta device and checked; what is wrong is added to `problems`."""
    networks = []
    for name, recipe in _RECIPES:
        if name not in parts:
            continue
        try:
            published = config_from(parts[name], recipe.config_of, identity.family)
            if name == "unet":
                published["sample_size"] = unet_sample_size(prediction_type, identity.family)
            if name == "text_encoder":
                check_text_layers(identity.family, published["num_hidden_layers"], parts[name].where)
            if identity.layout == "single_file":
                networks.append(build_checked(recipe.build, published, parts[name]))
                continue
            network = build_checked(recipe.build, _folder_config(identity.path / name), parts[name])
            # Transformers' configurations hold much that concerns no layout; what we give it does
            expected = published if name == "text_encoder" else _settings(recipe.build(published))
            check_layout(_settings(network), expected, parts[name].where)
            networks.append(network)
        except UserError as error:
            problems.extend(error.problems)
    return networks


def _settings(network: nn.Module) -> dict[str, Any]:
    """The configuration of a Diffusers or Transformers network, with what it leaves to its defaults."""
    config: Any = network.config
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _folder_config(folder: Path) -> dict[str, Any]:
    config = read_json_object(folder / "config.json")
    # a note on the files, which the weights themselves tell better
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def config_from(
    part: Part, config_of: Callable[[str, Mapping[str, Shape]], dict[str, Any]], family: str
) -> dict[str, Any]:
    """The configuration that the shapes of `part` tell. UserError when one that tells a width is missing."""
    try:
        return config_of(family, part.shapes)
    except KeyError as error:
        raise incomplete(part.where, f"no tensor for {error.args[0]}") from error


def build_checked(build: Callable[[Mapping[str, Any]], Network], config: Mapping[str, Any], part: Part) -> Network:
    """The network of `config`, on the meta device, once `part` is known to fill it. UserError when it does not."""
    try:
        network = build(config)
    except Exception as error:  # foreign constructors, which may raise anything on sizes that make no sense
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise incomplete(part.where, f"no network has its sizes ({reason[0]})") from error
    check_part(part, network)
    return network
