"""The noise schedule against closed forms in float64 and Diffusers as a peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from library.diffusion.schedule import add_noise, scaled_linear_alphas_cumprod, velocity


@pytest.fixture(scope="module")
def peer() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


@pytest.fixture(scope="module")
def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    numbers = np.random.default_rng(0).standard_normal((2, 1000, 1, 2, 2))
    latents, noise = torch.from_numpy(numbers).float()
    return latents, noise


def test_alphas_equal_the_closed_form_at_all_timesteps() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    expected = np.cumprod(1 - betas)
    assert np.abs(scaled_linear_alphas_cumprod().double().numpy() / expected - 1).max() < 1e-7


def test_noise_and_velocity_equal_the_peer(peer: DDPMScheduler, tensors: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = tensors
    alphas, timesteps = scaled_linear_alphas_cumprod(), torch.arange(1000)
    torch.testing.assert_close(
        add_noise(latents, noise, alphas), peer.add_noise(latents, noise, timesteps), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        velocity(latents, noise, alphas), peer.get_velocity(latents, noise, timesteps), atol=1e-5, rtol=0
    )


def test_velocity_and_noisy_latents_give_back_the_picture(tensors: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = (t.double() for t in tensors)
    alphas = scaled_linear_alphas_cumprod().double()
    noisy, v = add_noise(latents, noise, alphas), velocity(latents, noise, alphas)
    a = alphas.view(-1, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * v, latents)
