"""Pictures to latents with the frozen VAE."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from library.core.log import get_logger
from library.data.cache.filling import Encoding, draw_latents, refuse_not_finite

log = get_logger(__name__)

_DECODING = ("decoder.", "post_quant_conv.")  # parts of a VAE that latents do not depend on
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"fp16": torch.float16, "bf16": torch.bfloat16})


class LatentEncoder:
    """Encodes pictures one at a time while training: in a batch, float results would depend on the number of pictures,
    and latents from the cache would differ in their last bits from latents made on the fly.

    The VAE's weights stay float32. It computes in float32, too, unless `precision` ("float", "fp16" or "bf16") names
    another format: half precision overflows in known VAEs. A picture to which that happens is encoded again in float32.
    """

    def __init__(self, vae: Any, device: torch.device, precision: str = "float") -> None:
        # the subclass's own `to` does the same and logs about it
        self._vae = nn.Module.to(vae, device=device, dtype=torch.float32)
        self._device = device
        self._dtype = _DTYPES.get(precision)
        self._has_told = False

    def __call__(self, pixels: Tensor, latent_noise: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Unscaled latents (B, 4, H/8, W/8), drawn from the VAE's distribution with the given noise.

        Args:
            pixels: (B, 3, H, W) in [-1, 1].
            latent_noise: standard normal numbers of the draw (B, 4, H/8, W/8).
            names: of the pictures, for messages.

        Raises:
            UserError: when a picture's latents are not finite in float32 either.
        """
        found = [self._encode(picture) for picture in pixels.split(1)]
        distributions = torch.cat(found)
        for row in self._not_finite(distributions):
            distributions[row] = self._encode_again(pixels[row : row + 1])[0]
            name = names[row] if names else f"picture {row + 1} of a batch"
            refuse_not_finite(distributions[row], name)
            self._tell(name)
        return draw_latents(distributions, latent_noise.to(self._device, torch.float32))

    def distribution(self, pixels: Tensor) -> Encoding:
        """Mean and standard deviation of the latents of pictures (B, 3, H, W), encoded together."""
        found = self._encode(pixels)
        redone = self._not_finite(found) if self._dtype is not None else ()
        for row in redone:
            found[row] = self._encode_again(pixels[row : row + 1])[0]
        return Encoding(found.cpu(), tuple(redone))

    def weights_digest(self) -> str:
        """BLAKE2b digest (hex) of the weights that encode, as float32: equal where latents must be equal."""
        return weights_digest(self._vae, leaving_out=_DECODING)

    def release(self) -> None:
        """Moves the VAE off the device, once every latent is in the cache."""
        nn.Module.to(self._vae, device="cpu")

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        """Mean and deviation, (B, 8, H/8, W/8) float32, in the precision that is asked for."""
        context: AbstractContextManager[Any] = nullcontext()
        if self._dtype is not None:
            context = torch.autocast(self._device.type, dtype=self._dtype)
        with context:
            return self._moments(pixels)

    @torch.no_grad()
    def _encode_again(self, pixels: Tensor) -> Tensor:
        """The same in float32."""
        return self._moments(pixels)

    def _moments(self, pixels: Tensor) -> Tensor:
        distribution = self._vae.encode(pixels.to(self._device, torch.float32)).latent_dist
        return torch.cat([distribution.mean.float(), distribution.std.float()], dim=1)

    def _not_finite(self, distributions: Tensor) -> Sequence[int]:
        is_finite: Tensor = torch.isfinite(distributions).flatten(1).all(dim=1)
        return tuple(torch.nonzero(~is_finite).flatten().tolist())

    def _tell(self, name: str) -> None:
        """Once: a picture comes again in every epoch."""
        if not self._has_told:
            self._has_told = True
            log.warning(
                "%s overflows in --vae_precision and is encoded in float, as are others to which that happens", name
            )


def weights_digest(model: nn.Module, leaving_out: tuple[str, ...] = ()) -> str:
    """BLAKE2b digest (hex) of a model's weights as float32; names that begin with `leaving_out` do not count."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(leaving_out or ("\0",)):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
