"""Nesterov momentum for bitsandbytes' SGD, which takes the argument and ignores it (0.50.2)."""

from __future__ import annotations

from typing import Any

import torch

_KEPT = "kept_for_nesterov"  # of a group, during its step


def ignores_nesterov(kind: type[torch.optim.Optimizer]) -> bool:
    """Whether the class takes `nesterov` without doing anything about it."""
    return kind.__module__.startswith("bitsandbytes.") and kind.__name__.startswith("SGD")


def add_nesterov(optimizer: torch.optim.Optimizer) -> None:
    """Makes the steps of a momentum SGD look ahead, as torch's SGD does (Sutskever et al. 2013).

    With gradient g and momentum buffer b = m b + g, plain momentum moves by lr b, Nesterov's by lr (g + m b): the
    optimizer steps at the rate lr m, and lr g follows. The gradient takes the weight decay in, once for both.
    """

    def before(inner: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for group in inner.param_groups:
                rate, decay = group["lr"], group["weight_decay"]
                group[_KEPT] = (rate, decay)
                group["lr"], group["weight_decay"] = rate * group["betas"][0], 0.0
                for parameter in group["params"] if decay else ():
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter, alpha=decay)

    def after(inner: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for group in inner.param_groups:
                rate, decay = group.pop(_KEPT)
                group["lr"], group["weight_decay"] = rate, decay
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.add_(parameter.grad, alpha=-rate)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
