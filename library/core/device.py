"""Devices and number formats, named as the options name them."""

from __future__ import annotations

import torch

_DTYPES = {"no": torch.float32, "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype of `no`, `float`, `fp16` or `bf16`."""
    return _DTYPES[name]


def peak_memory_mib(device: torch.device) -> float | None:
    """Largest memory held on `device` so far in MiB; None where nothing counts it (CPU)."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**20
