"""From a prediction and its target to one number."""

from __future__ import annotations

import torch

from library.options.objective import ABSOLUTE, HUBER, SQUARED


def errors_of(
    prediction: torch.Tensor, target: torch.Tensor, loss_type: str, thresholds: torch.Tensor | None = None
) -> torch.Tensor:
    """How far each number of a prediction e = prediction - target is off, in float32.

    l2 is e^2, l1 is |e|, huber 2c (sqrt(e^2 + c^2) - c) and smooth_l1 2 (sqrt(e^2 + c^2) - c): the last two are smooth
    and grow linearly where e is far above c (pseudo-Huber, Charbonnier et al. 1997).

    Args:
        prediction, target: (B, C, H, W).
        loss_type: "l2", "l1", "huber" or "smooth_l1".
        thresholds: c of each sample (B,); needed by the last two.

    Returns:
        (B, C, H, W).
    """
    differences = prediction.float() - target.float()
    if loss_type == ABSOLUTE:
        return differences.abs()
    squares = differences.square()
    if loss_type == SQUARED:
        return squares
    if thresholds is None:
        raise ValueError(f"{loss_type} needs thresholds")
    c = thresholds.view(-1, 1, 1, 1)
    # sqrt(e^2 + c^2) - c, written so that small errors do not vanish beside c
    smooth = squares / ((squares + c.square()).sqrt() + c)
    return 2 * c * smooth if loss_type == HUBER else 2 * smooth


def weighted_mean(errors: torch.Tensor, weights: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
    """Mean error of each sample, weighted, averaged over the batch.

    Args:
        errors: (B, C, H, W).
        weights: (B,), of each sample.
        masks: (B, 1, H, W) weights of the cells from 0 to 1; the mean is over all cells, so a small subject has a small
            share. None counts all fully.

    Returns:
        Scalar tensor.
    """
    if masks is not None:
        errors = errors * masks
    per_sample = errors.mean(dim=(1, 2, 3))
    return (per_sample * weights).mean()
