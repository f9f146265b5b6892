"""The noise schedule of Stable Diffusion: how much of a picture is left at each diffusion time.

Source: Ho et al. 2020 (DDPM) for the process, Salimans and Ho 2022 for v; "scaled linear" betas as in latent diffusion;
Lin et al. 2023 ("Common Diffusion Noise Schedules and Sample Steps are Flawed") for a schedule that ends in pure noise.
"""

from __future__ import annotations

import torch

NUM_TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def scaled_linear_alphas_cumprod() -> torch.Tensor:
    """Cumulated alphas (1000,) float64: betas whose square roots grow linearly from 0.00085 to 0.012."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def with_zero_terminal_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """The schedule stretched so that the last time holds nothing of the picture and the first one what it held.

    Their square roots, which the picture is multiplied by, are shifted to end at exactly 0 and scaled to begin where
    they began (Lin et al. 2023, algorithm 1).

    Args:
        alphas_cumprod: cumulated alphas (T,), falling.
    """
    signal = alphas_cumprod.sqrt()
    first, last = signal[0], signal[-1]
    return ((signal - last) * first / (first - last)) ** 2


def training_schedule(zero_terminal_snr: bool) -> torch.Tensor:
    """Cumulated alphas (1000,) float64 of a run."""
    alphas_cumprod = scaled_linear_alphas_cumprod()
    return with_zero_terminal_snr(alphas_cumprod) if zero_terminal_snr else alphas_cumprod


def signal_to_noise(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """The ratio (SNR) of the picture's power to that of the noise; 0 where nothing of the picture is left."""
    return alphas_cumprod / (1.0 - alphas_cumprod)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Diffuses latents to the time whose cumulated alphas are given.

    Args:
        latents: scaled latents (B, C, H, W).
        noise: noise of the same shape.
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
