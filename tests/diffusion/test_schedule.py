"""The noise schedule against closed forms in float64 and Diffusers as a peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from library.diffusion.schedule import (
    add_noise,
    scaled_linear_alphas_cumprod,
    signal_to_noise,
    training_schedule,
    velocity,
)
from tests.diffusion.closed_forms import plain_alphas, snr_of, stretched_alphas


def peer(zero_terminal_snr: bool) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        rescale_betas_zero_snr=zero_terminal_snr,
    )


@pytest.fixture(scope="module")
def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    numbers = np.random.default_rng(0).standard_normal((2, 1000, 1, 2, 2))
    latents, noise = torch.from_numpy(numbers).float()
    return latents, noise


def test_alphas_equal_the_closed_form_at_all_timesteps() -> None:
    assert np.abs(scaled_linear_alphas_cumprod().numpy() / plain_alphas() - 1).max() < 1e-12
    assert torch.equal(training_schedule(False), scaled_linear_alphas_cumprod())


def test_zero_terminal_snr_equals_the_closed_form_and_the_peer() -> None:
    found = training_schedule(True)
    np.testing.assert_allclose(found.numpy(), stretched_alphas(), rtol=1e-12, atol=0)
    assert found[-1] == 0 and found.float()[-1] == 0
    assert found[0] == pytest.approx(float(plain_alphas()[0]), rel=1e-12)
    assert (found[1:] < found[:-1]).all()
    np.testing.assert_allclose(found.numpy(), peer(True).alphas_cumprod.numpy(), rtol=0, atol=1e-5)
    assert np.abs(found.numpy() - plain_alphas()).max() > 1e-3


def test_signal_to_noise_equals_the_closed_form() -> None:
    for zero_terminal_snr, alphas in ((False, plain_alphas()), (True, stretched_alphas())):
        found = signal_to_noise(training_schedule(zero_terminal_snr)).numpy()
        np.testing.assert_allclose(found, snr_of(alphas), rtol=1e-9, atol=0)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_noise_and_velocity_equal_the_peer(tensors: tuple[torch.Tensor, torch.Tensor], zero_terminal_snr: bool) -> None:
    latents, noise = tensors
    alphas, timesteps = training_schedule(zero_terminal_snr).float(), torch.arange(1000)
    other = peer(zero_terminal_snr)
    tolerance = 1e-3 if zero_terminal_snr else 1e-5  # the peer's float32 betas lose digits where little is left
    torch.testing.assert_close(
        add_noise(latents, noise, alphas), other.add_noise(latents, noise, timesteps), atol=tolerance, rtol=0
    )
    torch.testing.assert_close(
        velocity(latents, noise, alphas), other.get_velocity(latents, noise, timesteps), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_noise_and_velocity_equal_closed_forms(
    tensors: tuple[torch.Tensor, torch.Tensor], zero_terminal_snr: bool
) -> None:
    latents, noise = tensors
    alphas = training_schedule(zero_terminal_snr).float()
    a = (stretched_alphas() if zero_terminal_snr else plain_alphas())[:, None, None, None]
    clean, drawn = latents.double().numpy(), noise.double().numpy()
    noisy, v = np.sqrt(a) * clean + np.sqrt(1 - a) * drawn, np.sqrt(a) * drawn - np.sqrt(1 - a) * clean
    np.testing.assert_allclose(add_noise(latents, noise, alphas).numpy(), noisy, rtol=0, atol=2e-6)
    np.testing.assert_allclose(velocity(latents, noise, alphas).numpy(), v, rtol=0, atol=2e-6)


def test_velocity_and_noisy_latents_give_back_the_picture(tensors: tuple[torch.Tensor, torch.Tensor]) -> None:
    latents, noise = (t.double() for t in tensors)
    alphas = scaled_linear_alphas_cumprod()
    noisy, v = add_noise(latents, noise, alphas), velocity(latents, noise, alphas)
    a = alphas.view(-1, 1, 1, 1)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * v, latents)
