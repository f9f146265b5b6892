"""The process we run in: device, precision, companions. The only place that creates an Accelerator."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from library.core.errors import UserError
from library.core.log import get_logger

log = get_logger(__name__)


def start_runtime(mixed_precision: str) -> Accelerator:
    """The Accelerator of this run, whether started plainly, by `accelerate launch` or by `torchrun`.

    Accumulation is planned by our batches (`closes_update`), so Accelerate is told of none.

    Raises:
        UserError: when the precision is not to be had on this device.
    """
    launcher_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", mixed_precision)
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = (
        Accelerator(mixed_precision="no", kwargs_handlers=[ddp])
        if mixed_precision == "no"
        else _mixed(mixed_precision, ddp)
    )
    if launcher_precision != mixed_precision and accelerator.is_main_process:
        log.warning(
            "accelerate launch is set to mixed precision %s, the script to %s: %s is used",
            launcher_precision,
            mixed_precision,
            mixed_precision,
        )
    return accelerator


def _mixed(mixed_precision: str, ddp: DistributedDataParallelKwargs) -> Accelerator:
    if mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UserError.of(
            "fp16 needs a CUDA card, and none can be used here",
            "--mixed_precision fp16",
            "use bf16 or no; python tools/doctor.py tells why the card is not found",
        )
    if mixed_precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UserError.of("this card has no bf16 (RTX 30 series or newer has)", "--mixed_precision bf16", "use fp16")
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[ddp])
