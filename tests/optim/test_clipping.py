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
