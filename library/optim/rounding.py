"""Rounding at random: up or down with the odds that make the mean exact (Gupta et al. 2015).

Updates of half-precision weights are mostly smaller than half the distance to the next number, so ordinary rounding
loses every one of them. Rounded at random, one in many moves the weight by a whole step, and on average none is lost.
"""

from __future__ import annotations

import torch

_HIDDEN_BITS = 16  # of a float32, that bf16 cuts off
_FP16_DIGITS, _FP16_SMALLEST = 10, -14  # bits behind the leading one; exponent of the smallest normal number
_DOUBLE_BIAS, _DOUBLE_DIGITS = 1023, 52


def round_at_random(values: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """`values` (float32) in `dtype`; numbers that `dtype` holds exactly, infinities and NaN stay as they are.

    Args:
        generator: on the device of `values`.

    Raises:
        ValueError: for a `dtype` other than bf16 and fp16.
    """
    if dtype == torch.bfloat16:
        return _to_bf16(values, generator)
    if dtype == torch.float16:
        return _to_fp16(values, generator)
    raise ValueError(f"{dtype} is no half-precision format")


def _to_bf16(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """bf16 is the upper half of a float32: a random number below one step is added, then the lower half is cut off."""
    noise = torch.empty(values.shape, dtype=torch.int32, device=values.device)
    noise.random_(0, 1 << _HIDDEN_BITS, generator=generator)
    bits = noise.add_(values.contiguous().view(torch.int32)).bitwise_and_(-1 << _HIDDEN_BITS)
    rounded = bits.view(torch.float32).to(torch.bfloat16)
    return torch.where(values.isfinite(), rounded, values.to(torch.bfloat16))  # a NaN's bits could wrap around to 0


def _to_fp16(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """In float64, where the step of each number (wider below the smallest normal one) and all sums are exact."""
    exponent = torch.frexp(values)[1].long() - 1
    step_exponent = exponent.clamp(min=_FP16_SMALLEST) - _FP16_DIGITS
    step = ((step_exponent + _DOUBLE_BIAS) << _DOUBLE_DIGITS).view(torch.float64)
    noise = torch.empty(values.shape, dtype=torch.float32, device=values.device).uniform_(generator=generator)
    rounded = (torch.floor(values.double() / step + noise.double()) * step).to(torch.float16)
    return torch.where(values.isfinite(), rounded, values.to(torch.float16))
