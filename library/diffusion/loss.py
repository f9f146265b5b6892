"""From a prediction and its target to one number."""

from __future__ import annotations

import torch
from torch.nn import functional


def weighted_mse(prediction: torch.Tensor, target: torch.Tensor, loss_weights: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each sample in float32, weighted, averaged over the batch.

    Args:
        prediction, target: (B, C, H, W).
        loss_weights: (B,); a regularisation picture carries `--prior_loss_weight`.

    Returns:
        Scalar tensor.
    """
    per_sample = functional.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    return (per_sample * loss_weights).mean()
