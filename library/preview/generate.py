"""Makes a picture from words with the models in memory: classifier-free guidance (Ho and Salimans 2022), one at a time.

A picture depends on the models and its request alone: not on pictures made before it, beside it or in other processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel

from library.core.errors import UserError
from library.core.randomness import NO_EPOCH, generator
from library.core.sizes import Size
from library.models.stable_diffusion import VAE_DOWNSCALE, VAE_SCALING_FACTOR, StableDiffusion
from library.options.text import TextOptions
from library.preview.samplers import DDIM, NoiseSchedule, make_sampler
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer

_CHANNELS = 4  # of latents


@dataclass(frozen=True)
class PictureRequest:
    """One picture to make.

    Attributes:
        size: in pixels, both sides divisible by 8.
        seed: of the noise that the picture grows from.
        scale: guidance; 1 is none, and the negative prompt has no part then.
        sampler: a name that `make_sampler` knows.
    """

    prompt: str
    size: Size
    seed: int
    negative_prompt: str = ""
    steps: int = 30
    scale: float = 7.5
    sampler: str = DDIM


@dataclass(frozen=True)
class PromptReader:
    """Turns prompts into text states, in the way captions are read."""

    tokenize: CaptionTokenizer
    encode: CaptionEncoder

    @classmethod
    def of(cls, family: str, options: TextOptions) -> PromptReader:
        """The reader of a model family ("sd1" or "sd2"): length, splitting, weights and layer as the options say."""
        return cls(CaptionTokenizer(family, options), CaptionEncoder(options))

    def states(self, text_encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
        """`encoder_hidden_states` (B, R, D) of prompts; all have one shape."""
        device = next(text_encoder.parameters()).device
        ids, weights = self.tokenize(prompts)
        return self.encode(text_encoder, ids.to(device), None if weights is None else weights.to(device))


def initial_noise(seed: int, size: Size) -> Tensor:
    """The noise that a picture grows from: standard normal, (1, 4, h, w) float32 on the CPU.

    Args:
        size: of the picture, in pixels.
    """
    shape = (1, _CHANNELS, size.height // VAE_DOWNSCALE, size.width // VAE_DOWNSCALE)
    return torch.from_numpy(generator(seed, NO_EPOCH, "", "picture").standard_normal(shape, dtype="float32"))


@torch.no_grad()
def generate(
    models: StableDiffusion, reader: PromptReader, schedule: NoiseSchedule, request: PictureRequest
) -> NDArray[np.uint8]:
    """Makes one picture: pixels (H, W, 3), sRGB. On one device equal arguments give equal bits.

    Args:
        models: in evaluation mode on one device; the VAE in float32, the others in any number format.
        reader: knows the words of the prompts.
        schedule: how the U-Net was trained.
        request: what to make.

    Raises:
        UserError: there is no such sampler, or what comes out are no finite numbers.
    """
    sampler = make_sampler(request.sampler, schedule)
    device = next(models.unet.parameters()).device
    sampler.set_timesteps(request.steps, device=device)
    # negative first; the U-Net sees both in one batch, always of the same size
    prompts = [request.negative_prompt, request.prompt] if request.scale != 1 else [request.prompt]
    states = reader.states(models.text_encoder, prompts).to(models.dtype)
    latents = initial_noise(request.seed, request.size).to(device) * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        noisy = sampler.scale_model_input(latents, timestep)
        prediction = _predict(models, noisy, timestep, states, request.scale)
        latents = sampler.step(prediction, timestep, latents, return_dict=False)[0]
    picture = models.vae.decode(latents / VAE_SCALING_FACTOR, return_dict=False)[0]
    if not bool(picture.isfinite().all()):
        what = f"the model made no picture of {request.prompt!r}: the numbers are not finite"
        raise UserError.of(what, "generated pictures", "with --mixed_precision fp16 try bf16 or no, else another model")
    return _as_bytes(picture[0])


def _predict(models: StableDiffusion, noisy: Tensor, timestep: Any, states: Tensor, scale: float) -> Tensor:
    """What the U-Net predicts (1, 4, h, w) float32, guided away from the negative prompt where there are two."""
    inputs = noisy.expand(len(states), -1, -1, -1).to(models.dtype)
    prediction: Tensor = models.unet(inputs, timestep, states).sample.float()
    if len(states) == 1:
        return prediction
    without, with_prompt = prediction.chunk(2)
    return without + scale * (with_prompt - without)


def _as_bytes(picture: Tensor) -> NDArray[np.uint8]:
    """From (3, H, W), -1 to 1, to (H, W, 3), 0 to 255."""
    shades = (picture / 2 + 0.5).clamp(0, 1).mul(255).round()
    pixels: NDArray[np.uint8] = shades.permute(1, 2, 0).to("cpu", torch.uint8).contiguous().numpy()
    return pixels
