"""Modules put to use in the middle of a training, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Without dropout and the like; afterwards each part has its own mode again, which differs between parts."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


@contextmanager
def lent_to(module: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Iterator[None]:
    """A module on a device, in a number format that loses none of its digits; afterwards it is where it was.

    Args:
        dtype: None for the format that it has.
    """
    weight = next(module.parameters())
    home, held = weight.device, weight.dtype
    if home == device and dtype in (None, held):  # untouched: whoever trains it holds on to its very tensors
        yield
        return
    nn.Module.to(module, device, dtype)  # the subclasses' own `to` does the same and logs about it
    try:
        yield
    finally:
        nn.Module.to(module, home, held)
