"""Optimizers by the names of `--optimizer_type`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from library.options.training import OptimizerOptions

Optimizer = torch.optim.Optimizer


def make_optimizer(options: OptimizerOptions, param_groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimizer over `param_groups`, each with `params`, `lr` and `name`.

    Fused, because it is the quickest on CPU and CUDA alike and lets the fp16 scaler work without waiting for the device.
    """
    return torch.optim.AdamW(list(param_groups), lr=options.learning_rate, fused=True)
