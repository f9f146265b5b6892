"""Pictures to latents with the frozen VAE."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

_DECODING = ("decoder.", "post_quant_conv.")  # parts of a VAE that latents do not depend on


class LatentEncoder:
    """Encodes pictures one at a time: in a batch, float results would depend on the company a picture is in, and
    latents from the cache would differ in their last bits from latents made on the fly.

    The VAE works in float32: half precision overflows in known VAEs, and encoding costs little beside training.
    """

    def __init__(self, vae: Any, device: torch.device) -> None:
        # the subclass's own `to` does the same and logs about it
        self._vae = nn.Module.to(vae, device=device, dtype=torch.float32)
        self._device = device

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor, latent_noise: torch.Tensor) -> torch.Tensor:
        """Unscaled latents (B, 4, H/8, W/8), drawn from the VAE's distribution with the given noise.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            latent_noise: standard normal numbers of the draw (B, 4, H/8, W/8).
        """
        rows = zip(pixels.split(1), latent_noise.split(1), strict=True)
        return torch.cat([self._encode_one(picture, noise) for picture, noise in rows])

    def weights_digest(self) -> str:
        """BLAKE2b digest (hex) of the weights that encode, as float32: equal where latents must be equal."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self._vae.state_dict().items()):
            if not name.startswith(_DECODING):
                digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def release(self) -> None:
        """Moves the VAE off the device, once every latent is in the cache."""
        nn.Module.to(self._vae, device="cpu")

    def _encode_one(self, picture: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        distribution = self._vae.encode(picture.to(self._device, torch.float32)).latent_dist
        return distribution.mean + distribution.std * noise.to(self._device, torch.float32)
