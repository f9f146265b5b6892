"""Devices and number formats, named as the options name them."""

from __future__ import annotations

import torch

from library.core.errors import UserError

_DTYPES = {"no": torch.float32, "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of `no`, `float`, `fp16` or `bf16`."""
    return _DTYPES[name]


def check_precision(mixed_precision: str) -> None:
    """Whether this machine can compute in `no`, `fp16` or `bf16`.

    Raises:
        UserError: when it cannot.
    """
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError.of(
            "fp16 needs a CUDA card, and none can be used here",
            "--mixed_precision fp16",
            "use bf16 or no; python tools/doctor.py tells why the card is not found",
        )
    if mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError.of("this card has no bf16 (RTX 30 series or newer has)", "--mixed_precision bf16", "use fp16")


def peak_memory_mib(device: torch.device) -> float | None:
    """Largest memory held on `device` so far in MiB; None where nothing counts it (CPU)."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**20
