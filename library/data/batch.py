"""One micro-batch: everything the objective needs, all random numbers already drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

LATENT_CHANNELS = 4
PIXELS_PER_LATENT = 8  # one latent cell stands for 8 x 8 pixels in SD 1.x and 2.x


class SentByValue:
    """Base of dataclasses that loader workers send: tensors travel as plain bytes.

    torch would send each tensor as a file of shared memory of its own, which takes longer for small ones, and in
    containers with a small /dev/shm it ends the run with a bus error.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), {name: _to_array(value) for name, value in vars(self).items()})


def _to_array(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _rebuild(kind: type[Any], values: dict[str, Any]) -> Any:
    return kind(**{name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in values.items()})


@dataclass(frozen=True)
class Batch(SentByValue):
    """B pictures of one shape. Either `latents`, or `pixels` with the `latent_noise` that the VAE samples with."""

    latents: Tensor | None  # (B, 4, h, w) float32, unscaled
    pixels: Tensor | None  # (B, 3, H, W) float32, -1 to 1
    latent_noise: Tensor | None  # (B, 4, h, w) float32, standard normal
    masks: Tensor | None  # (B, 1, h, w) float32, weights of the loss from 0 to 1; None where all are 1
    input_ids: Tensor  # (B, n, L) int64: captions in n chunks
    token_weights: Tensor | None  # (B, n, L) float32; None where captions are read without weights
    text_states: Tensor | None  # (B, R, D) float32: the captions encoded already, or None
    noise: Tensor  # (B, 4, h, w) float32, what the model is asked for
    input_noise: Tensor | None  # (B, 4, h, w) float32, in what the model sees only; None where there is none
    offset_noise: Tensor | None  # (B, 4, 1, 1) float32, standard normal; None where nothing is left to be added
    offset_strength: Tensor | None  # (B, 1, 1, 1) float32, of it
    timesteps: Tensor  # (B,) int64
    loss_weights: Tensor  # (B,) float32
    is_reg: Tensor  # (B,) bool
    names: tuple[str, ...]  # file names, for messages
    epoch: int
    position: int  # within the epoch, over all processes
    closes_update: bool
    closes_epoch: bool
    loss_scale: float

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; copies run beside the computation where the memory is pinned."""
        if self.input_ids.device == device:
            return self
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; DataLoader calls this."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)
