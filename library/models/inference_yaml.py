"""The configuration that tools around single files want beside one: it says what no tensor in the file does.

The Web UI and the original `ldm` code read a yaml of the model's own stem. Format: the inference configurations
published with Latent Diffusion (Rombach et al.) and Stable Diffusion 2.x, whose entries are class paths and arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion
from library.models.topology import (
    BLOCKS,
    HEAD_WIDTH,
    IMAGE_CHANNELS,
    LATENT_CHANNELS,
    LAYERS_PER_BLOCK,
    unet_sample_size,
)

_VAE_TRAINING_SIZE = 256  # side of the pictures the published VAE was trained on; changes no weight


def inference_yaml(model: StableDiffusion) -> str:
    """The text of the configuration, with the model's own family, prediction type and widths."""
    parameterization = {"parameterization": "v"} if model.prediction_type == "v_prediction" else {}
    params: dict[str, Any] = {
        **parameterization,
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": unet_sample_size(model.prediction_type, model.family),
        "channels": LATENT_CHANNELS,
        "cond_stage_trainable": False,
        "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": VAE_SCALING_FACTOR,
        "use_ema": False,
        "unet_config": _unet(model),
        "first_stage_config": _vae(model),
        "cond_stage_config": _text_encoder(model),
    }
    content = {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}
    return yaml.safe_dump(content, sort_keys=False)


def _unet(model: StableDiffusion) -> dict[str, Any]:
    config = model.unet.config
    widths = list(config["block_out_channels"])
    params = {
        "use_checkpoint": True,
        "image_size": 32,  # read by nothing
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        # downsampling steps at which there is attention: in all blocks but the innermost
        "attention_resolutions": [2**block for block in reversed(range(BLOCKS - 1))],
        "num_res_blocks": LAYERS_PER_BLOCK,
        "channel_mult": _multiples(widths),
        **_heads(config["attention_head_dim"]),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config["use_linear_projection"],
        "transformer_depth": 1,
        "context_dim": config["cross_attention_dim"],
        "legacy": False,
    }
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}


def _heads(heads: int | Sequence[int]) -> dict[str, int]:
    """One number of heads for all blocks (SD1), or one width for all heads (SD2); the format knows no third way."""
    counts = {heads} if isinstance(heads, int) else set(heads)
    if len(counts) == 1:
        return {"num_heads": counts.pop()}
    return {"num_head_channels": HEAD_WIDTH}


def _vae(model: StableDiffusion) -> dict[str, Any]:
    widths = list(model.vae.config["block_out_channels"])
    layout = {
        "double_z": True,
        "z_channels": LATENT_CHANNELS,
        "resolution": _VAE_TRAINING_SIZE,
        "in_channels": IMAGE_CHANNELS,
        "out_ch": IMAGE_CHANNELS,
        "ch": widths[0],
        "ch_mult": _multiples(widths),
        "num_res_blocks": LAYERS_PER_BLOCK,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {
        "embed_dim": LATENT_CHANNELS,
        "monitor": "val/rec_loss",
        "ddconfig": layout,
        "lossconfig": {"target": "torch.nn.Identity"},
    }
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def _text_encoder(model: StableDiffusion) -> dict[str, Any]:
    if model.family == "sd1":
        return {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    params = {"freeze": True, "layer": "penultimate"}
    return {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "params": params}


def _multiples(widths: Sequence[int]) -> list[int | float]:
    """Widths in units of the first one; no published model has one that is not whole, but toy ones may."""
    return [width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths]
