"""The process we run in: device, precision, companions. The only place that creates an Accelerator."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from library.core.errors import UserError
from library.core.launch import launched_processes
from library.core.log import get_logger
from library.optim.scaling import HalfGradScaler

log = get_logger(__name__)

# How long one process waits for another. While a cache is filled, one may have all the pictures that are still to be
# encoded and the others none; torch would end the run after ten minutes or half an hour.
PATIENCE = timedelta(hours=24)
_PAUSE = 0.2  # seconds


def start_runtime(mixed_precision: str, full_fp16: bool = False, part_rests: bool = False) -> Accelerator:
    """The Accelerator of this run, whether started plainly, by `accelerate launch` or by `torchrun`.

    Accumulation is planned by our batches (`closes_update`), so Accelerate is told of none.

    Args:
        mixed_precision: "no", "fp16" or "bf16".
        full_fp16: gradients are fp16 themselves, so the scaler must take such.
        part_rests: at some updates a part that trains gets no gradient, and processes must not wait for it.

    Raises:
        UserError: when the launched processes do not find each other.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        # without a card Accelerate joins the processes of a launcher only when it is told to use the CPU
        cpu=not torch.accelerator.is_available(),
        # said, or Accelerate would take a number from the environment and divide every loss by it
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE),
            DistributedDataParallelKwargs(find_unused_parameters=part_rests),
        ],
    )
    if full_fp16 and accelerator.scaler is not None:
        accelerator.scaler = HalfGradScaler(accelerator.device.type)
    launched = launched_processes()
    if launched != accelerator.num_processes:
        raise UserError.of(
            f"{launched} processes were launched, but each would train alone",
            "launcher",
            "start them with torchrun --nproc_per_node N, or accelerate launch --multi_gpu --num_processes N",
        )
    _tell_launcher_precision(mixed_precision, accelerator)
    return accelerator


def prepare(
    accelerator: Accelerator, objective: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Hands objective and optimizer to the engine. Buffers are constants here, so processes need not exchange them."""
    prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    if isinstance(prepared, DistributedDataParallel):
        prepared.forward_sync_buffers = False
    return prepared, prepared_optimizer


def _tell_launcher_precision(mixed_precision: str, accelerator: Accelerator) -> None:
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", mixed_precision)
    if asked != mixed_precision and accelerator.is_main_process:
        log.warning("accelerate launch is set to mixed precision %s; --mixed_precision %s wins", asked, mixed_precision)


def end_runtime(accelerator: Accelerator) -> None:
    """Waits for the other processes and lets go of them."""
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        # gloo's own thread needs Python's lock to free the last tensors; the engine's end would wait for that thread
        # with the lock in hand, for ever
        time.sleep(_PAUSE)
    accelerator.end_training()
