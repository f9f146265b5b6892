"""From a prediction and its target to one number."""

from __future__ import annotations

import torch
from torch.nn import functional


def weighted_mse(
    prediction: torch.Tensor, target: torch.Tensor, loss_weights: torch.Tensor, masks: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error of each sample in float32, weighted, averaged over the batch.

    Args:
        prediction, target: (B, C, H, W).
        loss_weights: (B,); a regularisation picture carries `--prior_loss_weight`.
        masks: (B, 1, H, W) weights of the cells from 0 to 1; the mean is over all cells, so a small subject has a small
            share. None counts all fully.

    Returns:
        Scalar tensor.
    """
    errors = functional.mse_loss(prediction.float(), target.float(), reduction="none")
    if masks is not None:
        errors = errors * masks
    per_sample = errors.mean(dim=(1, 2, 3))
    return (per_sample * loss_weights).mean()
