from __future__ import annotations

import pytest
import torch

from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion
from library.models.tiny import make_tiny_model

# attention over a single place has nothing to choose between, so at the innermost block of a picture of 8 x 8 latents
# query and key of self-attention have no gradient; and shifting all keys alike never changes a softmax
LATENTS = 16
WITHOUT_GRADIENT = "self_attn.k_proj.bias"


@pytest.mark.parametrize("kind", ("sd1", "sd2", "sd2_v"))
def test_the_model_can_be_trained(kind: str) -> None:
    model = make_tiny_model(kind, seed=1)
    pixels = torch.rand(2, 3, 8 * LATENTS, 8 * LATENTS, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.vae.encode(pixels).latent_dist
    assert 0.5 < float(latents.mean.std()) * VAE_SCALING_FACTOR < 2
    assert 0.01 < float(latents.std.mean()) < 1
    assert 0.1 < float(model.vae.decode(latents.mean).sample.std()) < 2
    for network in (model.unet, model.text_encoder):
        network.requires_grad_(True)
    states = model.text_encoder(torch.arange(154).reshape(2, 77)).last_hidden_state
    noise = torch.randn(latents.mean.shape, generator=torch.Generator().manual_seed(1))
    predicted = model.unet(latents.mean * VAE_SCALING_FACTOR, torch.tensor([10, 900]), states).sample
    loss = (predicted - noise).square().mean()
    loss.backward()
    assert 0.5 < loss.item() < 5
    for network in (model.unet, model.text_encoder):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name.endswith(WITHOUT_GRADIENT), name


def test_seed_alone_decides(models_in_memory: dict[str, StableDiffusion]) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    same, other = make_tiny_model("sd1", seed=0), make_tiny_model("sd1", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = models_in_memory["sd1"].unet.conv_in.weight, other.unet.conv_in.weight
    assert torch.equal(same.unet.conv_in.weight, first)
    assert not torch.equal(second, first)
