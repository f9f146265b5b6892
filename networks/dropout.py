"""Dropout whose draws have names: the batch's seed, the place and the purpose.

What was drawn before plays no part, so the second forward pass of gradient checkpointing, any process and a resumed run
see the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.core.randomness import NO_EPOCH, derived_seed


@dataclass
class BatchSeed:
    """The dropout seed of the batch at hand, shared by all modules of a network."""

    value: int = 0

    def generator(self, place: str, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """For the draw of one place in this batch; below the same names always the same numbers.

        Args:
            place: the module or layer that draws.
            purpose: what for, so that the draws of one place differ.
        """
        return torch.Generator(device).manual_seed(derived_seed(self.value, NO_EPOCH, place, purpose))


def mask(like: Tensor, shape: Sequence[int], share: float, generator: torch.Generator) -> Tensor:
    """0 for a share of the places of `shape`, 1 / (1 - share) for the others; number format and device of `like`."""
    kept = 1.0 - share
    return (torch.rand(tuple(shape), generator=generator, device=like.device) < kept).to(like.dtype) / kept
