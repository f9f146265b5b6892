"""The noise schedule of Stable Diffusion: how much of a picture is left at each diffusion time.

Source: Ho et al. 2020 (DDPM) for the process, Salimans and Ho 2022 for v; "scaled linear" betas as in latent diffusion.
"""

from __future__ import annotations

import torch

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def scaled_linear_alphas_cumprod() -> torch.Tensor:
    """Cumulated alphas (1000,) float32: betas whose square roots grow linearly from 0.00085 to 0.012."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0).to(torch.float32)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Diffuses latents to the time whose cumulated alphas are given.

    Args:
        latents: scaled latents (B, C, H, W).
        noise: standard normal noise of the same shape.
        alphas: cumulated alphas at each sample's time (B,).
    """
    signal, amount = _signal_and_noise_scale(alphas)
    return signal * latents + amount * noise


def velocity(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """The v-prediction target for the arguments of `add_noise`."""
    signal, amount = _signal_and_noise_scale(alphas)
    return signal * noise - amount * latents


def _signal_and_noise_scale(alphas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    per_sample = alphas.view(-1, 1, 1, 1)
    return per_sample.sqrt(), (1.0 - per_sample).sqrt()
