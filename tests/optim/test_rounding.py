"""Rounding at random: exact on average, and nothing moves that needs no rounding."""

from __future__ import annotations

import math

import pytest
import torch

from library.optim.rounding import round_at_random

HALVES = [torch.bfloat16, torch.float16]
DRAWS = 40_000


def generator(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


# numbers of every size that weights have: normal, below fp16's smallest normal (6e-5), below its smallest step (6e-8)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [1.0001, -0.3333, 1e-2, -7.1e-4, 3.3e-5, -1.1e-6, 2e-8, 1e-9, 65.2])
def test_neighbours_are_hit_with_the_odds_that_keep_the_mean(
    dtype: torch.dtype, value: float, device: torch.device
) -> None:
    exact = torch.full((DRAWS,), value, device=device)
    rounded = round_at_random(exact, dtype, generator(device)).double()
    found = rounded.unique()
    assert len(found) <= 2 and (found - exact[0].double()).abs().min() <= (exact.to(dtype).double() - exact).abs().min()
    if len(found) == 2:
        step = float(found[1] - found[0])
        assert found[0] < exact[0].double() < found[1]
        five_deviations = 5 * step * 0.5 / math.sqrt(DRAWS)
        assert float((rounded - exact.double()).mean().abs()) < five_deviations


@pytest.mark.parametrize("dtype", HALVES)
def test_what_the_format_holds_stays(dtype: torch.dtype, device: torch.device) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32, device=device).to(torch.int16)
    every_number = bits.view(dtype)
    for seed in range(3):
        rounded = round_at_random(every_number.float(), dtype, generator(device, seed))
        same = (rounded == every_number) | (rounded.isnan() & every_number.isnan())
        assert bool(same.all())


@pytest.mark.parametrize("dtype", HALVES)
def test_infinities_and_nan_of_any_bits_stay(dtype: torch.dtype, device: torch.device) -> None:
    bits = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1, 0x7F800001], dtype=torch.int32, device=device)
    assert bool(round_at_random(bits.view(torch.float32), dtype, generator(device)).isnan().all())
    infinite = torch.tensor([math.inf, -math.inf], device=device)
    assert round_at_random(infinite, dtype, generator(device)).tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("dtype", HALVES)
def test_the_same_generator_gives_the_same_bits(dtype: torch.dtype, device: torch.device) -> None:
    values = torch.randn(1000, generator=generator(device), device=device)
    first, second, other = (round_at_random(values, dtype, generator(device, seed)) for seed in (7, 7, 8))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_other_formats_are_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="no half-precision format"):
        round_at_random(torch.ones(1), torch.float32, torch.Generator())
