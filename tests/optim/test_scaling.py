"""The fp16 scaler with fp16 weights."""

from __future__ import annotations

import pytest
import torch

from library.optim.scaling import HalfGradScaler
from library.optim.stepping import SinglySteppingOptimizer

SCALE = 1024.0


def update(scaler: torch.amp.GradScaler, parameter: torch.nn.Parameter, slope: float) -> bool:
    """One update by a gradient of `slope`; whether the weight moved."""
    optimizer = SinglySteppingOptimizer(torch.optim.SGD([parameter], lr=0.5), seed=0)
    before = parameter.detach().clone()
    parameter.grad = None
    scaler.scale((parameter * slope).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return not torch.equal(before, parameter)


def test_fp16_gradients_are_unscaled_and_overflows_are_skipped() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    scaler = HalfGradScaler("cpu", init_scale=SCALE)
    assert update(scaler, parameter, 0.5)
    assert parameter.tolist() == [0.75] * 4 and parameter.grad is not None and parameter.grad.tolist() == [0.5] * 4
    assert not update(scaler, parameter, 100.0)  # 100 x 1024 is beyond fp16
    assert scaler.get_scale() == SCALE / 2
    assert update(scaler, parameter, 100.0)


def test_torchs_own_refuses_what_ours_allows() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    with pytest.raises(ValueError, match="Attempting to unscale FP16 gradients"):
        update(torch.amp.GradScaler("cpu", init_scale=SCALE), parameter, 0.5)
