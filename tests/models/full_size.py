"""Random models of the published sizes, for the slow tests."""

from __future__ import annotations

from pathlib import Path

import torch

from library.core.tensor_files import Deferred, write_safetensors
from library.models import topology
from library.models.load import build_text_encoder, build_unet, build_vae
from library.models.save import single_file_tensors
from library.models.stable_diffusion import StableDiffusion


def write_full_size(family: str, path: Path) -> Path:
    """A single fp16 file with the tensors of the published models of "sd1" or "sd2", filled with seeded noise."""
    widths = topology.FULL_WIDTHS[family]
    parts = (
        build_unet(topology.unet_config(family, widths.unet, widths.text)),
        build_text_encoder(topology.text_config(family, widths.text, widths.text_intermediate)),
        build_vae(topology.vae_config(family, widths.vae)),
    )
    drawn = torch.Generator().manual_seed(0)

    def random(shape: torch.Size) -> Deferred:
        return Deferred(torch.float16, tuple(shape), lambda: torch.randn(shape, generator=drawn).mul_(0.02).half())

    shapes = {name: t.shape for name, t in single_file_tensors(StableDiffusion(family, "epsilon", *parts)).items()}
    write_safetensors(path, {name: random(shape) for name, shape in shapes.items()}, {})
    return path
