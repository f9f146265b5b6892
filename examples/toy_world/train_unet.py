"""The U-Net of the toy world: draws what the captions say, from latents that are made once.

As Stable Diffusion 1 was trained: it predicts the noise, the text encoder stands still, and a tenth of the captions are
empty. Words that mean nothing are strewn into some, so that it draws the same with them until it is taught otherwise.
The loss is weighted by Min-SNR (Hang et al., 2023) and the weights are averaged, because both save steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from examples.toy_world.captions import partly_said, random_caption
from examples.toy_world.cpu_layers import use_fast_norms, use_plain_attention
from examples.toy_world.recipe import Build, seeded
from examples.toy_world.stages import Stage, run_stage
from examples.toy_world.train_text_encoder import HIDDEN, strewn
from examples.toy_world.train_vae import as_tensor
from examples.toy_world.world import PICTURE_SIZES, draw_scene, random_scene
from library.core.randomness import NO_EPOCH, derived_seed, generator
from library.diffusion.schedule import add_noise, scaled_linear_alphas_cumprod, signal_to_noise
from library.models.stable_diffusion import VAE_SCALING_FACTOR
from library.models.topology import TEXT_POSITIONS, unet_config
from library.text.tokenizer import CaptionTokenizer

_CODE = ("world", "captions", "cpu_layers", "train_text_encoder", "train_unet")
STAGE = Stage("unet", steps=2800, rate=1e-3, average=0.998, horizon=5600, cool_down=1000, code=_CODE)
WIDTHS = (64, 96, 64, 64)
BATCH = 48
SHARES = (0.72, 0.08, 0.08, 0.03, 0.03, 0.04, 0.02)  # of `PICTURE_SIZES`
_PICTURES = 24_000
_SAY_NOTHING = 0.1  # share of captions
_LARGEST_SNR = 5.0
_CAPTIONS = 2  # of each picture
_ENCODED_AT_ONCE = 32


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size, as the networks before the U-Net see them.

    Attributes:
        means, deviations: (count, 4, height / 8, width / 8) of the VAE's distribution, not scaled.
        states: (_CAPTIONS, count, 77, HIDDEN) of their captions, float16.
    """

    means: Tensor
    deviations: Tensor
    states: Tensor


def trained_unet(build: Build, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> UNet2DConditionModel:
    """The trained U-Net, in float32; the other two networks are those that it will work with."""
    seed = build.seed

    @cache
    def data() -> list[Pictures]:  # made at the first step: a finished stage needs none
        print(f"unet: drawing {build.part(_PICTURES)} pictures", flush=True)
        counts = (build.part(round(_PICTURES * share)) for share in SHARES)
        return [
            _pictures(seed, vae, text_encoder, size, count) for size, count in zip(PICTURE_SIZES, counts, strict=True)
        ]

    unsaid = _states(text_encoder, _tokens([""]))[0].float()
    with seeded(derived_seed(seed, NO_EPOCH, "unet", "weights")):
        unet = UNet2DConditionModel(**unet_config("sd1", WIDTHS, HIDDEN)).to(memory_format=torch.channels_last)
    use_fast_norms(unet)
    use_plain_attention(unet)
    alphas = scaled_linear_alphas_cumprod().float()
    ratios = signal_to_noise(alphas)
    weights = ratios.clamp(max=_LARGEST_SNR) / ratios

    def loss_of(step: int) -> Tensor:
        draw = generator(seed, step, "unet", "step")
        of = data()[int(draw.choice(len(SHARES), p=SHARES))]
        chosen = torch.from_numpy(draw.integers(0, len(of.means), BATCH))
        states = of.states[torch.from_numpy(draw.integers(0, _CAPTIONS, BATCH)), chosen].float()
        states[torch.from_numpy(draw.random(BATCH) < _SAY_NOTHING)] = unsaid
        means = of.means[chosen]
        with seeded(derived_seed(seed, step, "unet", "noise")):
            latents = (means + of.deviations[chosen] * torch.randn_like(means)) * VAE_SCALING_FACTOR
            noise = torch.randn_like(means)
            # one time from each part of the range: the loss of a step jumps less
            times = ((torch.arange(BATCH) + torch.rand(BATCH)) * (len(alphas) / BATCH)).long()
        noisy = add_noise(latents, noise, alphas[times]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            told = unet(noisy, times, states).sample.float()
        return ((told - noise).pow(2).mean((1, 2, 3)) * weights[times]).mean()

    run_stage(STAGE, unet, loss_of, build, before=(vae, text_encoder))
    return unet


@torch.no_grad()
def _pictures(
    seed: int, vae: AutoencoderKL, text_encoder: CLIPTextModel, size: tuple[int, int], count: int
) -> Pictures:
    draw = generator(seed, NO_EPOCH, f"{size[0]}x{size[1]}", "unet pictures")
    means, deviations = [], []
    states = torch.empty(_CAPTIONS, count, TEXT_POSITIONS, HIDDEN, dtype=torch.float16)
    for start in range(0, count, _ENCODED_AT_ONCE):
        stop = min(start + _ENCODED_AT_ONCE, count)
        scenes = [random_scene(draw) for _ in range(start, stop)]
        drawn = np.stack([draw_scene(scene, *size, draw) for scene in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            found = vae.encode(as_tensor(drawn).contiguous(memory_format=torch.channels_last)).latent_dist
        means.append(found.mean.float())
        deviations.append(found.std.float())
        for said in states:
            captions = [random_caption(partly_said(scene, draw), draw) for scene in scenes]
            said[start:stop] = _states(text_encoder, strewn(_tokens(captions), draw)[0])
    return Pictures(torch.cat(means), torch.cat(deviations), states)


@torch.no_grad()
def _states(text_encoder: CLIPTextModel, ids: Tensor) -> Tensor:
    """(count, 77, HIDDEN)."""
    return text_encoder(input_ids=ids).last_hidden_state


def _tokens(captions: list[str]) -> Tensor:
    """(count, 77)."""
    return _tokenizer()(captions)[0][:, 0]


@cache
def _tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer("sd1")
