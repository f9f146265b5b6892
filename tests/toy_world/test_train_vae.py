"""The VAE's training: its pictures, and latents that are white without any change of what comes back."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers.models import AutoencoderKL
from torch import Tensor

from examples.toy_world.drawing import MODEL, load_model
from examples.toy_world.train_vae import (
    BATCH,
    SHAPES,
    as_tensor,
    decibels,
    measured,
    new_vae,
    pictures_of,
    whiten,
)
from examples.toy_world.world import draw_scene, random_scene
from library.core.randomness import NO_EPOCH, generator
from library.models.stable_diffusion import VAE_SCALING_FACTOR


def world_pictures(count: int) -> Tensor:
    draw = generator(7, NO_EPOCH, "", "test of the VAE")
    return as_tensor(np.stack([draw_scene(random_scene(draw), 64, 64, draw) for _ in range(count)]))


def moments(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (4,) and covariance (4, 4) of scaled latents, in float64."""
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean * VAE_SCALING_FACTOR
    values = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    return values.mean(0), torch.cov(values.T)


def test_latents_become_white_and_reconstructions_stay() -> None:
    """Also where the latents are far from white: unequal, shifted and correlated."""
    before = new_vae(0).eval().requires_grad_(False)
    assert before.quant_conv is not None and before.quant_conv.bias is not None
    before.quant_conv.weight[:4, :, 0, 0] += torch.tensor([[4.0], [1.0], [-2.0], [0.5]])  # all channels share something
    before.quant_conv.weight[1] *= 3
    before.quant_conv.bias[:4] += torch.tensor([5.0, -3.0, 0.0, 1.0])
    after = deepcopy(before)
    whiten(after, seed=0, batches=2)
    pictures = world_pictures(12)
    mean, covariance = moments(before, pictures)
    assert mean.abs().max() > 0.3 and (covariance - torch.eye(4)).abs().max() > 0.5
    mean, covariance = moments(after, pictures)
    assert mean.abs().max() < 0.15
    assert (covariance - torch.eye(4)).abs().max() < 0.2
    with torch.no_grad():
        there = [vae.decode(vae.encode(pictures[:2]).latent_dist.mode()).sample for vae in (before, after)]
    assert (there[1] - there[0]).abs().max() < 1e-3 * there[0].abs().max()
    changed = {
        name for name, tensor in before.state_dict().items() if not torch.equal(tensor, after.state_dict()[name])
    }
    assert changed == {f"{name}.{kind}" for name in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")}


def test_the_noise_of_latents_grows_with_them() -> None:
    """Where whitening only stretches each channel, the distribution's deviations stretch by the same."""
    before = new_vae(0).eval().requires_grad_(False)
    after = deepcopy(before)
    whiten(after, seed=0, batches=1)
    assert before.quant_conv is not None and after.quant_conv is not None
    pictures = world_pictures(4)
    with torch.no_grad():
        first, second = (vae.encode(pictures).latent_dist for vae in (before, after))
        # the linear map from one mean to the other, by least squares
        x = first.mean.permute(0, 2, 3, 1).flatten(0, 2).double()
        y = second.mean.permute(0, 2, 3, 1).flatten(0, 2).double()
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), y).solution
        length = torch.linalg.vector_norm(solution[:4], dim=0)  # of each new channel's row
        growth = (second.std / first.std).double()
    assert torch.allclose(growth, length.view(1, 4, 1, 1).expand_as(growth), rtol=1e-2)


def test_pictures_follow_from_seed_and_step() -> None:
    assert torch.equal(pictures_of(0, 3), pictures_of(0, 3))
    assert not torch.equal(pictures_of(0, 3), pictures_of(1, 3))
    assert not torch.equal(pictures_of(0, 3), pictures_of(0, 3 + len(SHAPES)))
    for step, (width, height) in enumerate(SHAPES):
        pictures = pictures_of(0, step)
        assert pictures.shape == (BATCH, 3, height, width)
        assert -1 <= pictures.min() < -0.5 and 0.5 < pictures.max() <= 1


def test_decibels() -> None:
    pictures = torch.zeros(2, 3, 8, 8)
    there = torch.stack([torch.full((3, 8, 8), 0.02), torch.full((3, 8, 8), 0.2)])
    assert decibels(pictures, there).tolist() == pytest.approx([40.0, 20.0], abs=1e-4)
    assert decibels(torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), 1.5) * torch.tensor(1.0)).item() == float("inf")


@pytest.mark.slow
def test_latents_of_the_shipped_model_are_white() -> None:
    vae = load_model(MODEL).vae
    mean, covariance = moments(vae, world_pictures(200))
    assert mean.abs().max() < 0.15
    # measured 0.23: half of the pictures that were whitened by are not square
    assert (covariance - torch.eye(4)).abs().max() < 0.35
    assert measured(vae, seed=1) > 30
