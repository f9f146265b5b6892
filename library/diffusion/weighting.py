"""How much the errors at each diffusion time count, and where they stop to count squared: tables over all times.

They are made once, in float64, of the schedule in force; so a stretched schedule has its own weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from library.diffusion.schedule import signal_to_noise
from library.options.objective import CONSTANT, EXPONENTIAL, THRESHOLD_LOSSES, ObjectiveOptions

_LARGEST_SNR = 1000.0  # of the debiased weights; the first times are almost free of noise


def timestep_weights(options: ObjectiveOptions, alphas_cumprod: Tensor, predicts_velocity: bool) -> Tensor:
    """What the loss of each diffusion time is multiplied by.

    With s for the SNR and g for `--min_snr_gamma`, for a model that predicts noise or v:

    - Min-SNR (Hang et al. 2023): min(s, g) / s, or min(s, g) / (s + 1).
    - Debiased estimation (Yu et al. 2023): 1 / sqrt(s) with s at most 1000, or 1 / (s + 1).
    - `--scale_v_pred_loss_like_noise_pred`: s / (s + 1), what an error of v is worth as one of the noise.
    - `--v_pred_like_loss` w: 1 + w (s + 1) / s, the loss plus w times the loss of the same errors as ones of v.

    Args:
        options: which weights; `check_objective` names the combinations that have none.
        alphas_cumprod: cumulated alphas of all times (T,) float64.
        predicts_velocity: whether the model predicts v.

    Returns:
        (T,) float32; all 1 without any option.
    """
    snr = signal_to_noise(alphas_cumprod)
    weights = torch.ones_like(snr)
    if options.min_snr_gamma is not None:
        weights = weights * snr.clamp(max=options.min_snr_gamma) / (snr + 1 if predicts_velocity else snr)
    if options.debiased_estimation_loss:
        capped = snr.clamp(max=_LARGEST_SNR)
        weights = weights / (capped + 1 if predicts_velocity else capped.sqrt())
    if options.scale_v_pred_loss_like_noise_pred:
        weights = weights * snr / (snr + 1)
    if options.v_pred_like_loss is not None:
        weights = weights * (1 + options.v_pred_like_loss * (snr + 1) / snr)
    return weights.to(torch.float32)


def loss_thresholds(options: ObjectiveOptions, alphas_cumprod: Tensor) -> Tensor | None:
    """Up to which size errors of each diffusion time count squared in huber and smooth_l1.

    With c for `--huber_c` and sigma for the deviation of the noise beside a picture of deviation 1: constant is c,
    exponential falls from 1 at the first time towards c, snr is (1 - c) / (1 + sigma)^2 + c; times `--huber_scale`.

    Args:
        options: the loss and its schedule.
        alphas_cumprod: cumulated alphas of all times (T,) float64.

    Returns:
        (T,) float32; None for losses that have no threshold.
    """
    if options.loss_type not in THRESHOLD_LOSSES:
        return None
    c, times = options.huber_c, len(alphas_cumprod)
    if options.huber_schedule == CONSTANT:
        thresholds = torch.full((times,), c, dtype=torch.float64)
    elif options.huber_schedule == EXPONENTIAL:
        thresholds = torch.exp(math.log(c) * torch.arange(times, dtype=torch.float64) / times)
    else:
        sigma = ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt()  # infinite where nothing of the picture is left
        thresholds = (1.0 - c) / (1.0 + sigma) ** 2 + c
    return (thresholds * options.huber_scale).to(torch.float32)
