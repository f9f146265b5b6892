"""The noise that a use of a picture is trained with: every draw that concerns diffusion.

Each kind of draw has numbers of its own, so an option that is switched on moves no other draw, and each use of a
picture has its own, so that its company in a batch changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from library.core.randomness import generator
from library.core.sizes import Size
from library.options.objective import ObjectiveOptions

LATENT_CHANNELS, PIXELS_PER_LATENT = 4, 8  # of the VAE of SD 1.x and 2.x


class Noise(NamedTuple):
    """The noise of a batch.

    Attributes:
        noise: (B, 4, h, w), what the model is asked for.
        input_noise: (B, 4, h, w), added to what the model sees only; None for nothing.
        offset_noise: (B, 4, 1, 1), standard normal, the same all over a picture, still to be added to `noise`; None
            where that is done, or not asked for.
        offset_strength: (B, 1, 1, 1), what it is multiplied by, before the latents' own share.
    """

    noise: Tensor
    input_noise: Tensor | None = None
    offset_noise: Tensor | None = None
    offset_strength: Tensor | None = None


class Drawn(NamedTuple):
    """What is drawn for one use of a picture.

    Attributes:
        noise: (4, h, w) float32.
        timestep: diffusion time.
        input_noise: (4, h, w) float32 or None, see `Noise`.
        offset_noise: (4, 1, 1) float32 or None.
        offset_strength: (1, 1, 1) float32 or None.
    """

    noise: Tensor
    timestep: int
    input_noise: Tensor | None = None
    offset_noise: Tensor | None = None
    offset_strength: Tensor | None = None


@dataclass(frozen=True)
class NoiseSource:
    """Draws noise and diffusion time of each use of a picture.

    Attributes:
        seed: the run's seed.
        options: which noise, and which diffusion times.
    """

    seed: int
    options: ObjectiveOptions

    def __call__(self, epoch: int, use: str, size: Size) -> Drawn:
        """The draws of one use.

        Args:
            epoch: epoch number, or `NO_EPOCH` for draws that stay the same.
            use: names the use within its epoch.
            size: of the picture in training, pixels.
        """
        options = self.options
        noise = _normal(self._draws(epoch, use, "noise"), (LATENT_CHANNELS, *_cells(size)))
        if options.multires_noise_iterations is not None:
            draws = self._draws(epoch, use, "multires_noise")
            noise = _pyramid(noise, draws, options.multires_noise_iterations, options.multires_noise_discount)
        offset_noise, offset_strength = self._offset(epoch, use)
        if options.adaptive_noise_scale is None and offset_noise is not None and offset_strength is not None:
            noise = noise + offset_strength * offset_noise
            offset_noise = offset_strength = None
        times = self._draws(epoch, use, "timestep")
        timestep = int(times.integers(options.min_timestep, options.max_timestep))
        return Drawn(noise, timestep, self._input_noise(epoch, use, size), offset_noise, offset_strength)

    def _offset(self, epoch: int, use: str) -> tuple[Tensor | None, Tensor | None]:
        """Noise of one number a channel, and its strength."""
        strength = self.options.noise_offset
        if strength is None:
            return None, None
        if self.options.noise_offset_random_strength:
            strength *= self._draws(epoch, use, "offset_strength").random()
        offset = _normal(self._draws(epoch, use, "offset_noise"), (LATENT_CHANNELS, 1, 1))
        return offset, torch.full((1, 1, 1), strength)

    def _input_noise(self, epoch: int, use: str, size: Size) -> Tensor | None:
        """Noise in what the model sees only (Ning et al. 2023, input perturbation)."""
        strength = self.options.ip_noise_gamma
        if strength is None:
            return None
        if self.options.ip_noise_gamma_random_strength:
            strength *= self._draws(epoch, use, "input_noise_strength").random()
        return _normal(self._draws(epoch, use, "input_noise"), (LATENT_CHANNELS, *_cells(size))) * strength

    def _draws(self, epoch: int, use: str, purpose: str) -> np.random.Generator:
        return generator(self.seed, epoch, use, purpose)


def with_adaptive_offset(noise: Noise, latents: Tensor, scale: float | None) -> Tensor:
    """The noise that the model is asked for: with the offset that depends on the picture, where there is one.

    Its strength is that of `noise` plus `scale` times the size of each channel's mean, and 0 at least.
    Source: the formula of `--adaptive_noise_scale` in the field's public tools.

    Args:
        noise: the noise of a batch.
        latents: scaled latents (B, 4, h, w).
        scale: `--adaptive_noise_scale`; None where no offset is left to be added.
    """
    if noise.offset_noise is None or noise.offset_strength is None:
        return noise.noise
    means = latents.mean(dim=(2, 3), keepdim=True).abs()
    strength = (noise.offset_strength + means * (scale or 0.0)).clamp(min=0)
    return noise.noise + strength * noise.offset_noise


def _pyramid(noise: Tensor, draws: np.random.Generator, iterations: int, discount: float) -> Tensor:
    """Noise (C, h, w) with ever coarser layers added, brought back to a deviation of 1.

    Each layer is drawn at a size that is 2 to 4 times smaller, to the power of its number, and scaled up.
    """
    height, width = noise.shape[1:]
    for layer in range(iterations):
        ratio = (2 + 2 * draws.random()) ** layer
        coarse = max(1, int(height / ratio)), max(1, int(width / ratio))
        drawn = _normal(draws, (len(noise), *coarse))[None]
        scaled = functional.interpolate(drawn, (height, width), mode="bilinear", align_corners=False)[0]
        noise = noise + scaled * discount**layer
        if 1 in coarse:
            break
    return noise / noise.std()


def _cells(size: Size) -> tuple[int, int]:
    """Height and width of the latents."""
    return size.height // PIXELS_PER_LATENT, size.width // PIXELS_PER_LATENT


def _normal(draws: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))
