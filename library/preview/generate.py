"""Makes a picture from words with the models in memory: classifier-free guidance (Ho and Salimans 2022), one at a time.

A picture depends on the models and its prompt alone: not on pictures made before it, beside it or in other processes.
It is the one that Diffusers' pipeline makes of the same weights and seed: noise is drawn as it draws it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel

from library.core.errors import UserError
from library.core.sizes import Size
from library.models.stable_diffusion import VAE_DOWNSCALE, VAE_SCALING_FACTOR, StableDiffusion
from library.options.text import CHUNK_TOKENS, TextOptions
from library.preview.prompts import SamplePrompt
from library.preview.samplers import NoiseSchedule, make_sampler, set_steps
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer

_CHANNELS = 4  # of latents

Context = Callable[[], AbstractContextManager[Any]]
EncodeTokens = Callable[[Any, Tensor, Tensor | None], Tensor]


class PromptReader:
    """Turns prompts into text states as captions are read, but with as many pieces of 75 tokens as they need.

    Args:
        make_tokenizer: a tokenizer of captions of so many tokens; it pads them.
        encode: makes text states of their ids.
    """

    def __init__(self, make_tokenizer: Callable[[int], CaptionTokenizer], encode: EncodeTokens) -> None:
        self._tokenizer = cache(make_tokenizer)
        self._encode = encode

    @classmethod
    def of(cls, family: str, options: TextOptions) -> PromptReader:
        """The reader of a model family ("sd1" or "sd2"): splitting, weights and layer as the options say."""
        padded = replace(options, no_token_padding=False)  # models know padded prompts
        return cls(
            lambda tokens: CaptionTokenizer(family, replace(padded, max_token_length=tokens)), CaptionEncoder(padded)
        )

    def states(self, text_encoder: CLIPTextModel, prompts: list[str]) -> Tensor:
        """`encoder_hidden_states` (B, R, D) of prompts; all have the shape that the longest needs."""
        device = next(text_encoder.parameters()).device
        ids, weights = self._tokenizer_for(prompts)(prompts)
        return self._encode(text_encoder, ids.to(device), None if weights is None else weights.to(device))

    def _tokenizer_for(self, prompts: list[str]) -> CaptionTokenizer:
        """The shortest one that loses nothing."""
        pieces = max(1, -(-max(self._tokenizer(CHUNK_TOKENS).count_tokens(prompts)) // CHUNK_TOKENS))
        while any(self._tokenizer(pieces * CHUNK_TOKENS).count_lost(prompts)):  # cut at commas, they need more room
            pieces += 1
        return self._tokenizer(pieces * CHUNK_TOKENS)


def noise_generator(seed: int) -> torch.Generator:
    """Where all noise of a picture comes from: on the CPU, as Diffusers' users seed theirs."""
    return torch.Generator("cpu").manual_seed(seed)


def initial_noise(draws: torch.Generator, size: Size) -> Tensor:
    """The noise that a picture grows from: standard normal, (1, 4, h, w) float32 on the CPU.

    Args:
        draws: see `noise_generator`; samplers that add noise draw on from it.
        size: of the picture, in pixels.
    """
    shape = (1, _CHANNELS, size.height // VAE_DOWNSCALE, size.width // VAE_DOWNSCALE)
    return torch.randn(shape, generator=draws, dtype=torch.float32)


@torch.no_grad()
def generate(
    models: StableDiffusion,
    reader: PromptReader,
    schedule: NoiseSchedule,
    request: SamplePrompt,
    computing: Context = nullcontext,
) -> NDArray[np.uint8]:
    """Makes one picture: pixels (H, W, 3), sRGB. On one device equal arguments give equal bits.

    Args:
        models: in evaluation mode on one device; the VAE in float32, the others in any number format.
        reader: knows the words of the prompts.
        schedule: how the U-Net was trained.
        request: what to make.
        computing: text encoder and U-Net compute inside (mixed precision); sampler and VAE do not.

    Raises:
        UserError: there is no such sampler, or what comes out are no finite numbers.
    """
    sampler = make_sampler(request.sampler, schedule)
    device, draws = next(models.unet.parameters()).device, noise_generator(request.seed)
    set_steps(sampler, request.steps, device)
    # negative first; the U-Net sees both in one batch, always of the same size
    prompts = [request.negative_prompt, request.prompt] if request.scale != 1 else [request.prompt]
    with computing():
        states = reader.states(models.text_encoder, prompts).to(device, models.dtype)
    latents = initial_noise(draws, request.size).to(device) * sampler.init_noise_sigma
    adds_noise = "generator" in inspect.signature(sampler.step).parameters
    drawing = {"generator": draws} if adds_noise else {}
    for timestep in sampler.timesteps:
        noisy = sampler.scale_model_input(latents, timestep)
        with computing():
            prediction = _predict(models, noisy, timestep, states, request.scale)
        latents = sampler.step(prediction, timestep, latents, return_dict=False, **drawing)[0]
    picture = models.vae.decode(latents / VAE_SCALING_FACTOR, return_dict=False)[0]
    if not bool(picture.isfinite().all()):
        what = f"the model made no picture of {request.prompt!r}: the numbers are not finite"
        raise UserError.of(what, "generated pictures", "with --mixed_precision fp16 try bf16 or no, else another model")
    return as_pixels(picture[0])


def _predict(models: StableDiffusion, noisy: Tensor, timestep: Any, states: Tensor, scale: float) -> Tensor:
    """What the U-Net predicts (1, 4, h, w) float32, guided away from the negative prompt where there are two."""
    inputs = noisy.expand(len(states), -1, -1, -1).to(models.dtype)
    prediction: Tensor = models.unet(inputs, timestep, states).sample.float()
    if len(states) == 1:
        return prediction
    without, with_prompt = prediction.chunk(2)
    return without + scale * (with_prompt - without)


def as_pixels(decoded: Tensor) -> NDArray[np.uint8]:
    """What a VAE decodes, (..., 3, H, W) of -1 to 1, as pixels: (..., H, W, 3) of 0 to 255."""
    shades = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round()
    pixels: NDArray[np.uint8] = shades.movedim(-3, -1).to("cpu", torch.uint8).contiguous().numpy()
    return pixels
