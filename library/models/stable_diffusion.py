"""The three networks of a Stable Diffusion model, held together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

# Latents are multiplied by this before noise is added, so that their variance is about one
# (Rombach et al., section on KL-regularised latents; the same number in every SD1 and SD2 model).
VAE_SCALING_FACTOR = 0.18215
VAE_DOWNSCALE = 8  # picture pixels per latent cell, along each side


@dataclass(frozen=True)
class StableDiffusion:
    """A model in memory.

    Attributes:
        family: "sd1" or "sd2".
        prediction_type: what the U-Net predicts, "epsilon" or "v_prediction".
        source: the file or folder it came from; None for one made in memory.
    """

    family: str
    prediction_type: str
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    source: Path | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the U-Net's weights."""
        return next(self.unet.parameters()).dtype
