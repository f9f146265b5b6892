"""Out of memory: what the error means, and the switches that are left, the largest saving first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from library.core.errors import UserError
from library.core.sizes import Size
from library.options.caching import CachingOptions
from library.options.memory import MemoryOptions
from library.options.optimizer import OptimizerOptions
from library.options.training import TrainingOptions
from library.training.run import EmbeddingRun, FullModelRun, NetworkRun, Run

CARD, MAIN_MEMORY = "the card's memory", "main memory"
NOTHING_LEFT = "give the card more room: end other programs that use it, or train less: train_network.py needs least"
_NATIVE = 512 * 512  # pixels that every SD model was trained with, so there is room below
_CARD_SIGNS = ("CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC")
_MAIN_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # Windows
    "std::bad_alloc",
    "is killed by signal: Killed",  # a loader process that the system ended
)


@dataclass(frozen=True)
class MemoryUse:
    """What decides how much memory a run takes.

    Attributes:
        optimizer: name of the optimizer in force.
        whole_model: the model's own weights learn, so that their gradients and the optimizer's state weigh as much as
            the model; networks and embeddings are small beside it.
        avoids_text_encoder: what keeps the text encoder from training, where it trains and need not; else None.
        batch_size: of the largest dataset.
        resolution: of the largest dataset.
    """

    memory: MemoryOptions
    training: TrainingOptions
    caching: CachingOptions
    optimizer: str
    whole_model: bool
    avoids_text_encoder: str | None
    batch_size: int
    resolution: Size


class _Switch(NamedTuple):
    """A way to save memory, and whether it is left."""

    is_left: Callable[[MemoryUse], bool]
    advice: Callable[[MemoryUse], str]


def memory_use(run: Run) -> MemoryUse:
    """What a checked run does about memory."""
    options, datasets = run.options, run.index.datasets
    return MemoryUse(
        memory=options.memory,
        training=options.training,
        caching=options.caching,
        optimizer=_optimizer_name(options.optimizer),
        whole_model=isinstance(run, FullModelRun),
        avoids_text_encoder=_avoids_text_encoder(run),
        batch_size=max(dataset.batch_size for dataset in datasets),
        resolution=max((dataset.resolution for dataset in datasets), key=lambda size: size.area),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the card or of the machine."""
    return memory_that_is_full(error) is not None


def explain_out_of_memory(error: BaseException, run: Run) -> UserError:
    """What the person is told in place of an error that `is_out_of_memory` knows: which switches are left."""
    return explain(error, memory_use(run), on_card=torch.accelerator.is_available())


@contextmanager
def explained_out_of_memory(run: Run) -> Iterator[None]:
    """Work in which memory that runs out is told with the switches that are left.

    Raises:
        UserError: in the place of an error that `is_out_of_memory` knows.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch has no common class for memory that ran out
        if not is_out_of_memory(error):
            raise
        raise explain_out_of_memory(error, run) from error


def memory_that_is_full(error: BaseException) -> str | None:
    """`CARD` or `MAIN_MEMORY`; None for an error of another kind."""
    if isinstance(error, torch.OutOfMemoryError):
        return CARD
    if isinstance(error, MemoryError):
        return MAIN_MEMORY
    text = str(error)
    if any(sign in text for sign in _CARD_SIGNS):
        return CARD
    return MAIN_MEMORY if any(sign in text for sign in _MAIN_SIGNS) else None


def explain(error: BaseException, use: MemoryUse, *, on_card: bool) -> UserError:
    """The message for a run that uses memory as `use` says.

    Args:
        on_card: where the training computes; on a CPU, training itself needs main memory.
    """
    where = memory_that_is_full(error) or MAIN_MEMORY
    advice = advice_for(use) if where == CARD or not on_card else []
    if where == MAIN_MEMORY:
        advice += main_memory_advice(use)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError.of(f"{where} is full: {reason}", "training", _listed(advice))


def advice_for(use: MemoryUse) -> list[str]:
    """The switches that save memory where the training computes and are not yet on, the largest saving first."""
    return [switch.advice(use) for switch in _SWITCHES if switch.is_left(use)]


def main_memory_advice(use: MemoryUse) -> list[str]:
    """What saves main memory and is not yet done."""
    advice = []
    if use.caching.cache_latents and not use.caching.cache_latents_to_disk:
        advice.append("--cache_latents_to_disk in place of --cache_latents")
    advice.append("--max_data_loader_n_workers 1, or 0")
    if not use.memory.lowram:
        advice.append("--lowram")
    return advice


def _optimizer_name(options: OptimizerOptions) -> str:
    if options.use_8bit_adam:
        return "AdamW8bit"
    return "Lion" if options.use_lion_optimizer else options.optimizer_type or "AdamW"


def _listed(advice: Sequence[str]) -> str:
    if not advice:
        return NOTHING_LEFT
    numbered = "; ".join(f"({number}) {text}" for number, text in enumerate(advice, start=1))
    return f"switch on what is left, the largest saving first: {numbered}"


def _avoids_text_encoder(run: Run) -> str | None:
    if isinstance(run, NetworkRun):
        return None if run.network.network_train_unet_only else "--network_train_unet_only"
    if isinstance(run, EmbeddingRun) or (isinstance(run, FullModelRun) and not run.trains_text_encoder):
        return None
    return "--stop_text_encoder_training 0, or fine_tune.py without --train_text_encoder"


def _keeps_latents(use: MemoryUse) -> bool:
    return use.caching.cache_latents or use.caching.cache_latents_to_disk


def _has_large_optimizer(use: MemoryUse) -> bool:
    name = use.optimizer.lower()
    return use.whole_model and not name.endswith("8bit") and "adafactor" not in name and name != "sgd"


def _has_own_attention(use: MemoryUse) -> bool:
    return use.memory.mem_eff_attn or use.memory.xformers or use.memory.diffusers_xformers


def _is_half(use: MemoryUse) -> bool:
    return use.memory.full_bf16 or use.memory.full_fp16


def _smaller_batch(use: MemoryUse) -> str:
    if use.memory.fused_backward_pass:  # which excludes accumulation
        return "--train_batch_size 1"
    together = use.batch_size * use.training.gradient_accumulation_steps
    return f"--train_batch_size 1 with --gradient_accumulation_steps {together}, which learns the same"


def _smaller_pictures(use: MemoryUse) -> str:
    return f"a lower --resolution than {use.resolution.width},{use.resolution.height}"


_SWITCHES = (
    _Switch(lambda use: not _keeps_latents(use), lambda use: "--cache_latents, so that the VAE can leave the card"),
    _Switch(
        lambda use: not use.training.gradient_checkpointing,
        lambda use: "--gradient_checkpointing, which costs about a third more time",
    ),
    _Switch(
        lambda use: use.training.mixed_precision == "no",
        lambda use: "--mixed_precision bf16, or fp16 on cards before the RTX 30 series",
    ),
    _Switch(_has_large_optimizer, lambda use: "--optimizer_type AdamW8bit, or Adafactor"),
    _Switch(
        lambda use: not _has_own_attention(use),
        lambda use: "--xformers or --mem_eff_attn, where torch's own attention has no fast kernel for the card",
    ),
    _Switch(lambda use: use.batch_size > 1, _smaller_batch),
    _Switch(
        lambda use: use.whole_model and not _is_half(use),
        lambda use: "--full_bf16 with --mixed_precision bf16",
    ),
    _Switch(
        lambda use: (
            use.whole_model
            and not use.memory.fused_backward_pass
            and use.training.gradient_accumulation_steps == 1
            and use.training.mixed_precision != "fp16"
        ),
        lambda use: "--fused_backward_pass with --max_grad_norm 0",
    ),
    _Switch(lambda use: use.resolution.area > _NATIVE, _smaller_pictures),
    _Switch(lambda use: use.avoids_text_encoder is not None, lambda use: str(use.avoids_text_encoder)),
)
