"""Scaling of the loss where weights themselves are held in fp16 (Micikevicius et al. 2018)."""

from __future__ import annotations

import torch


class HalfGradScaler(torch.amp.GradScaler):
    """Torch's scaler, for fp16 weights as well.

    Torch refuses to unscale fp16 gradients, because they may have lost small values by then. With `--full_fp16` there
    are no others, and the user has said so.
    """

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: torch.Tensor,
        found_inf: torch.Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, torch.Tensor]:
        """As torch's own, with fp16 gradients allowed."""
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)
