"""Which diffusion times count: Min-SNR."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.toy_world.train_vae import as_tensor
from library.diffusion.noise import Noise
from library.diffusion.objective import Captions, Objective
from library.models.stable_diffusion import VAE_SCALING_FACTOR
from library.options.objective import ObjectiveOptions
from tests.learning.effects import reader, world_examples
from tests.learning.learning import base_copy

EARLY, LATER = (20, 60, 100, 140), (300, 450, 600, 750)  # SNR 5 lies between them


def gradient_norms(times: tuple[int, ...], options: ObjectiveOptions) -> list[float]:
    """The size of the base U-Net's gradient where four pictures of the world are all at one diffusion time."""
    model = base_copy()
    model.unet.requires_grad_(True)
    examples = world_examples(0, 4)
    with torch.no_grad():
        latents = model.vae.encode(as_tensor(np.stack([example.picture for example in examples]))).latent_dist.mean
        states = reader().states(model.text_encoder, [example.caption for example in examples])
    objective = Objective(model.unet, None, no_encoder, None, "epsilon", VAE_SCALING_FACTOR, options)
    found = []
    for time in times:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(time))
        captions = Captions(torch.empty(0), states=states)
        loss = objective(latents, Noise(noise), torch.full((4,), time), captions, torch.ones(4), None, False)
        gradients = torch.autograd.grad(loss, list(model.unet.parameters()), allow_unused=True)
        squares = [gradient.pow(2).sum() for gradient in gradients if gradient is not None]
        found.append(float(torch.stack(squares).sum().sqrt()))
    return found


def no_encoder(*_: object) -> torch.Tensor:
    raise AssertionError("the captions come encoded")


def test_min_snr_takes_gradient_from_early_times_alone() -> None:
    plain = gradient_norms((*EARLY, *LATER), ObjectiveOptions())
    balanced = gradient_norms((*EARLY, *LATER), ObjectiveOptions(min_snr_gamma=5))
    assert balanced[len(EARLY) :] == pytest.approx(plain[len(EARLY) :], rel=1e-4)
    early_before = sum(plain[: len(EARLY)]) / sum(plain)
    early_after = sum(balanced[: len(EARLY)]) / sum(balanced)
    assert early_before >= 0.7  # 0.80
    assert early_after <= early_before - 0.1  # 0.60
