"""Tiny models with LoRA modules, for the tests of networks/lora*.py."""

from __future__ import annotations

import torch

from library.models.stable_diffusion import StableDiffusion
from networks.lora import LoraNetwork, create_network


def make(model: StableDiffusion, rank: int = 4, alpha: float = 1.0, **more: object) -> LoraNetwork:
    """A network attached to the model, its down weights drawn from a fixed seed."""
    torch.manual_seed(0)
    network = create_network(1.0, rank, alpha, model.vae, model.text_encoder, model.unet, **more)
    network.apply_to(model.text_encoder, model.unet, True, True)
    return network.to(model.unet.device)


def randomise(network: torch.nn.Module, size: float = 0.3) -> None:
    """Gives all weights values that change the model's output."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, size)


def predict(model: StableDiffusion) -> torch.Tensor:
    """What the U-Net makes of fixed latents and a fixed caption: (2, 4, 8, 8)."""
    torch.manual_seed(2)
    device = model.unet.device
    ids = torch.randint(0, 49408, (2, 77)).to(device)
    latents, times = torch.randn(2, 4, 8, 8).to(device), torch.tensor([5, 800], device=device)
    states = model.text_encoder(input_ids=ids).last_hidden_state
    return model.unet(latents, times, states).sample
