"""What a training method answers; it owns nothing of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

if TYPE_CHECKING:
    from library.models.stable_diffusion import StableDiffusion


TEXT_ENCODER, UNET, EMBEDDING = (
    "text_encoder",
    "unet",
    "embedding",
)  # names of the parts, as optimizer groups and reports have them


class Method(Protocol):
    """A way to train: which weights learn, how they attach to the models, and how they are kept."""

    @property
    def float32_models(self) -> tuple[str, ...]:
        """The models, of "text_encoder" and "unet", that are held in float32 whatever the precision of the computation:
        those whose own weights learn, and those that are saved and must not lose digits before that."""

    def attach(self, models: StableDiffusion) -> nn.Module | None:
        """Freezes, unfreezes or extends the models; called once. Returns what is trained beside them, if anything."""

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: `params`, `lr` and `name` (the component, as reports name it)."""

    def trains_text_encoder(self, step: int) -> bool:
        """Whether update `step` (from 0) back-propagates into the text encoder."""

    def start_epoch(self) -> None:
        """Called before the first batch of every epoch."""

    def before_batch(self, seed: int) -> None:
        """Fixes what the method itself draws at random in the coming batch (dropout)."""

    def after_update(self) -> Mapping[str, float | torch.Tensor]:
        """Called after each optimizer step; returns numbers for the log, by tag."""

    def save(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Writes what was learned under its final name."""
