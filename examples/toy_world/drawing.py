"""Many pictures at once from a model of the toy world.

Each is the picture that `library.preview.generate` makes of the same prompt and seed, but for rounding. Side by side
they cost a fraction of the time, because a model this small mostly waits.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from library.core.sizes import Size
from library.diffusion.schedule import scaled_linear_alphas_cumprod
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion
from library.options.text import TextOptions
from library.preview.generate import PromptReader, as_pixels, initial_noise, noise_generator
from library.preview.samplers import NoiseSchedule, make_sampler, set_steps

MODEL = Path(__file__).resolve().parent / "toy_world.safetensors"


@dataclass(frozen=True)
class Way:
    """How pictures are drawn.

    Attributes:
        width, height: in pixels.
        scale: guidance.
        negative: the prompt that guidance leads away from.
        at_once: pictures in one batch; changes nothing but rounding.
    """

    width: int = 64
    height: int = 64
    steps: int = 20
    scale: float = 4.0
    sampler: str = "ddim"
    negative: str = ""
    at_once: int = 32


WAY = Way()


def load_model(path: Path = MODEL, prediction_type: str = "epsilon") -> StableDiffusion:
    """The model of a file, in float32 and evaluation mode."""
    model = load_stable_diffusion(identify(path), prediction_type)
    for network in (model.unet, model.text_encoder, model.vae):
        network.float().eval().requires_grad_(False)
    return model


@torch.no_grad()
def draw(
    model: StableDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    way: Way = WAY,
    reader: PromptReader | None = None,
) -> NDArray[np.uint8]:
    """One picture for each prompt and seed: (count, height, width, 3), 0 to 255.

    Args:
        prompts: those of a batch are read with as many pieces of 75 tokens as the longest of them needs.
        reader: knows further words, clip skip and so on; by default what the model was trained with.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
    reader = reader or PromptReader.of(model.family, TextOptions())
    schedule = NoiseSchedule(tuple(scaled_linear_alphas_cumprod().tolist()), model.prediction_type)
    parts = [
        _draw_batch(
            model, prompts[start : start + way.at_once], seeds[start : start + way.at_once], way, reader, schedule
        )
        for start in range(0, len(prompts), way.at_once)
    ]
    return np.concatenate(parts)


def _draw_batch(
    model: StableDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    way: Way,
    reader: PromptReader,
    schedule: NoiseSchedule,
) -> NDArray[np.uint8]:
    states = reader.states(model.text_encoder, [way.negative, *prompts])
    without = states[:1].expand(len(prompts), -1, -1)
    sampler = make_sampler(way.sampler, schedule)
    set_steps(sampler, way.steps)
    size = Size(way.width, way.height)
    draws = [noise_generator(seed) for seed in seeds]
    latents = torch.cat([initial_noise(one, size) for one in draws]) * sampler.init_noise_sigma
    # some samplers add noise: each picture's comes from its own generator, as if it were alone
    drawing = {"generator": draws} if "generator" in inspect.signature(sampler.step).parameters else {}
    for time in sampler.timesteps:
        noisy = sampler.scale_model_input(latents, time)
        plain, led = model.unet(torch.cat([noisy, noisy]), time, torch.cat([without, states[1:]])).sample.chunk(2)
        latents = sampler.step(plain + way.scale * (led - plain), time, latents, return_dict=False, **drawing)[0]
    return as_pixels(model.vae.decode(latents / VAE_SCALING_FACTOR).sample)
