"""Layer layout of the model families, as data, and what follows from it.

A family fixes the shape of the network (blocks, layers, attention heads, activations); widths are free and read from
the tensors, so that the published models and toy-width models of the same layout are told apart by nothing but size.
Layouts: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", and the published
configurations of Stable Diffusion 1.x and 2.x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Shape = tuple[int, ...]

BLOCKS = 4
LAYERS_PER_BLOCK = 2
NORM_GROUPS = 32
HEAD_WIDTH = 64  # of the text encoders, and of the SD2 U-Net
LATENT_CHANNELS = 4
IMAGE_CHANNELS = 3
VOCABULARY_SIZE = 49408
TEXT_POSITIONS = 77


# the noise schedule that SD1 and SD2 were trained with, as Diffusers' schedulers name it
NOISE_SCHEDULE: Mapping[str, Any] = MappingProxyType(
    {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)


@dataclass(frozen=True)
class Family:
    """What is the same in every model of a family, whatever its width.

    Attributes:
        unet_heads: attention heads of every U-Net block; None where each head is `HEAD_WIDTH` wide instead.
        linear_projection: attention blocks enter and leave through linear layers, not 1x1 convolutions.
        text_activation: activation of the text encoder's MLPs, as Transformers names it.
        text_layers: transformer layers of the text encoder that are used.
        projection_dim, vae_sample_size: carried by the published configurations; no weight depends on them.
    """

    name: str
    unet_heads: int | None
    linear_projection: bool
    text_activation: str
    text_layers: int
    projection_dim: int
    vae_sample_size: int


@dataclass(frozen=True)
class Widths:
    """Channels per U-Net block, per VAE block, and the sizes of the text encoder."""

    unet: tuple[int, ...]
    vae: tuple[int, ...]
    text: int
    text_intermediate: int


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "sd1": Family("sd1", 8, False, "quick_gelu", 12, 768, 512),
        "sd2": Family("sd2", None, True, "gelu", 23, 512, 768),
    }
)
FULL_WIDTHS: Mapping[str, Widths] = MappingProxyType(
    {
        "sd1": Widths((320, 640, 1280, 1280), (128, 256, 512, 512), 768, 3072),
        "sd2": Widths((320, 640, 1280, 1280), (128, 256, 512, 512), 1024, 4096),
    }
)
TOY_WIDTHS: Mapping[str, Widths] = MappingProxyType(
    {
        "sd1": Widths((32, 64, 96, 96), (32, 64, 96, 96), 32, 128),
        "sd2": Widths((32, 64, 96, 96), (32, 64, 96, 96), 64, 256),
    }
)


def unet_sample_size(prediction_type: str, family: str) -> int:
    """Side, in latent cells, of the pictures the published model was trained on: 96 for SD2 768-v, else 64."""
    return 96 if family == "sd2" and prediction_type == "v_prediction" else 64


def unet_config(family: str, widths: tuple[int, ...], context_width: int, sample_size: int = 64) -> dict[str, Any]:
    """Configuration of the Diffusers `UNet2DConditionModel`.

    Args:
        family: "sd1" or "sd2".
        widths: channels of the four blocks.
        context_width: width of the text states, the published `cross_attention_dim`.
        sample_size: default picture side in latent cells; changes no weight.
    """
    layout = FAMILIES[family]
    heads = layout.unet_heads or [_heads(width) for width in widths]
    return {
        "sample_size": sample_size,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "down_block_types": ["CrossAttnDownBlock2D"] * (BLOCKS - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (BLOCKS - 1),
        "block_out_channels": list(widths),
        "layers_per_block": LAYERS_PER_BLOCK,
        "norm_num_groups": NORM_GROUPS,
        "cross_attention_dim": context_width,
        # the name in Diffusers is a historic slip: it holds the number of heads, not their width
        "attention_head_dim": heads,
        "use_linear_projection": layout.linear_projection,
        "upcast_attention": False,
    }


def vae_config(family: str, widths: tuple[int, ...]) -> dict[str, Any]:
    """Configuration of the Diffusers `AutoencoderKL`; `widths` are the channels of the four blocks."""
    return {
        "sample_size": FAMILIES[family].vae_sample_size,
        "in_channels": IMAGE_CHANNELS,
        "out_channels": IMAGE_CHANNELS,
        "latent_channels": LATENT_CHANNELS,
        "down_block_types": ["DownEncoderBlock2D"] * BLOCKS,
        "up_block_types": ["UpDecoderBlock2D"] * BLOCKS,
        "block_out_channels": list(widths),
        "layers_per_block": LAYERS_PER_BLOCK,
        "norm_num_groups": NORM_GROUPS,
    }


def text_config(family: str, hidden: int, intermediate: int, layers: int | None = None) -> dict[str, Any]:
    """Configuration of the Transformers `CLIPTextModel`; `layers` defaults to the family's own number."""
    layout = FAMILIES[family]
    return {
        "architectures": ["CLIPTextModel"],
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": TEXT_POSITIONS,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layout.text_layers if layers is None else layers,
        "num_attention_heads": _heads(hidden),
        "hidden_act": layout.text_activation,
        "projection_dim": layout.projection_dim,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        # the published configurations say 2, and Transformers then takes the highest id as the end of the text
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def unet_config_of(family: str, shapes: Mapping[str, Shape], sample_size: int = 64) -> dict[str, Any]:
    """Configuration of the U-Net whose tensors, under their Diffusers names, have `shapes`.

    Raises KeyError with the tensor's name where one that tells a width is missing.
    """
    widths = tuple(_matrix(shapes, f"down_blocks.{block}.resnets.0.conv1.weight")[0] for block in range(BLOCKS))
    _, context = _matrix(shapes, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    return unet_config(family, widths, context, sample_size)


def vae_config_of(family: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Configuration of the VAE whose tensors, under their Diffusers names, have `shapes`; KeyError as above."""
    widths = tuple(_matrix(shapes, f"encoder.down_blocks.{block}.resnets.0.conv1.weight")[0] for block in range(BLOCKS))
    return vae_config(family, widths)


def text_config_of(family: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Configuration of the text encoder whose tensors, under their flat Transformers names, have `shapes`.

    Layers are counted, so that a file that lacks the last ones of its family still says what it is.
    """
    intermediate, hidden = _matrix(shapes, "encoder.layers.0.mlp.fc1.weight")
    layers = sum(name.startswith("encoder.layers.") and name.endswith(".layer_norm1.weight") for name in shapes)
    return text_config(family, hidden, intermediate, layers)


def _matrix(shapes: Mapping[str, Shape], name: str) -> tuple[int, int]:
    """Output and input width of a linear or convolution weight; KeyError when it is missing or no such weight."""
    if len(shapes.get(name, ())) < 2:
        raise KeyError(name)
    return shapes[name][0], shapes[name][1]


def _heads(width: int) -> int:
    """Heads of `HEAD_WIDTH`; toy widths below that have one."""
    return max(1, width // HEAD_WIDTH)
