"""The gradient limit does what torch's own does."""

from __future__ import annotations

import math

import pytest
import torch

from library.optim.clipping import clip_gradients


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 64), (64, 4), (8, 4, 1, 1), (300, 300), (), (7,)]
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for parameter in made[:-1]:  # the last one took no part in the computation
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


@pytest.mark.parametrize("max_norm", [0.5, 100.0, 1e6, math.inf])
def test_norm_and_gradients_equal_those_of_torch(max_norm: float) -> None:
    ours, theirs = parameters(), parameters()
    norm = clip_gradients(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm, expected)
    for our, their in zip(ours[:-1], theirs[:-1], strict=True):
        torch.testing.assert_close(our.grad, their.grad)
    assert ours[-1].grad is None


def test_without_need_the_gradients_keep_every_bit() -> None:
    ours = parameters()
    clip_gradients(ours, math.inf)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours[:-1], parameters()[:-1], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_of_half_precision_gradients_has_all_its_digits(dtype: torch.dtype) -> None:
    """Its square is beyond fp16, and bf16 would keep two digits of it."""
    halves = [torch.nn.Parameter(parameter.detach().to(dtype)) for parameter in parameters()[:-1]]
    for half in halves:
        half.grad = half.detach() * 100
    expected = torch.stack([half.grad.double().square().sum() for half in halves]).sum().sqrt()
    norm = clip_gradients(halves, 1.0)
    assert norm.dtype == torch.float32 and float(norm) == pytest.approx(float(expected), rel=1e-5)
    after = torch.stack([half.grad.double().square().sum() for half in halves]).sum().sqrt()
    assert float(after) == pytest.approx(1.0, rel=5e-3)
