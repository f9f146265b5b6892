"""Models with seeded random weights, of toy width or any other: for tests, demonstrations and trying out options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from library.core.randomness import NO_EPOCH, generator
from library.models import topology
from library.models.load import build_text_encoder, build_unet, build_vae, fill
from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion

KINDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "sd1": ("sd1", "epsilon"),
        "sd2": ("sd2", "epsilon"),
        "sd2_v": ("sd2", "v_prediction"),
    }
)
_EMBEDDING_STD = 0.5
_LOG_VARIANCE = -6.0


def make_tiny_model(kind: str, seed: int) -> StableDiffusion:
    """A random float32 model of toy width, nothing trainable; see `make_random_model`."""
    return make_random_model(kind, seed, topology.TOY_WIDTHS[KINDS[kind][0]])


def make_random_model(kind: str, seed: int, widths: topology.Widths) -> StableDiffusion:
    """A random float32 model, nothing trainable.

    Each tensor has a generator of its own, named by seed, network and tensor: the same seed gives the same model on
    every machine, and global random state is neither read nor changed.

    Args:
        kind: "sd1", "sd2" or "sd2_v" (v-prediction).
        seed: any integer.
        widths: `topology.TOY_WIDTHS` or `topology.FULL_WIDTHS` of the family; full ones take seconds and 4 GiB.
    """
    family, prediction_type = KINDS[kind]
    sample_size = topology.unet_sample_size(prediction_type, family)
    unet = build_unet(topology.unet_config(family, widths.unet, widths.text, sample_size))
    vae = build_vae(topology.vae_config(family, widths.vae))
    text_encoder = build_text_encoder(topology.text_config(family, widths.text, widths.text_intermediate))
    for name, network in (("unet", unet), ("vae", vae), ("text_encoder", text_encoder)):
        tensors = {key: _random(seed, f"{name}.{key}", t.shape) for key, t in network.state_dict().items()}
        if name == "vae":
            _scale_latents(tensors)
        fill(network, tensors)
        network.eval().requires_grad_(False)
    return StableDiffusion(family, prediction_type, unet, text_encoder, vae)


def _random(seed: int, name: str, shape: torch.Size) -> Tensor:
    """Matrices and kernels with variance 1/fan-in, so that signals keep their size; norms 1, biases 0."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    std = _EMBEDDING_STD if "_embedding.weight" in name else 1 / math.sqrt(math.prod(shape[1:]))
    values = generator(seed, NO_EPOCH, name, "tiny model").standard_normal(tuple(shape), dtype="float32")
    return torch.from_numpy(values) * std


def _scale_latents(tensors: dict[str, Tensor]) -> None:
    """Gives the VAE's latents the size real ones have, with little noise, and undoes it before decoding."""
    mean, log_variance = tensors["quant_conv.weight"].chunk(2)
    mean /= VAE_SCALING_FACTOR
    log_variance *= VAE_SCALING_FACTOR
    tensors["quant_conv.bias"].chunk(2)[1].fill_(_LOG_VARIANCE)
    tensors["post_quant_conv.weight"] *= VAE_SCALING_FACTOR
