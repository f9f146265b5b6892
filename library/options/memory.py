"""Less memory, or less time, for the same training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import not_blank

DEFAULT_BACKEND = "inductor"


@dataclass(frozen=True)
class MemoryOptions(OptionGroup):
    """Attention, precision of weights and gradients, and the like."""

    title: ClassVar[str] = "Memory and speed"

    sdpa: bool = option(False, "torch's own fast attention, in every precision; this is what happens anyway")
    xformers: bool = option(False, "the attention of the package xformers")
    diffusers_xformers: bool = option(False, "the same as --xformers; networks of every kind train with it")
    mem_eff_attn: bool = option(False, "attention in small pieces: the least memory without another package, slower")
    full_fp16: bool = option(False, "hold trained weights and gradients in fp16 as well; with --mixed_precision fp16")
    full_bf16: bool = option(
        False,
        "hold trained weights and gradients in bf16 as well, rounded at random so that small updates are not lost;"
        " with --mixed_precision bf16",
    )
    fused_backward_pass: bool = option(
        False, "apply each gradient as soon as it is there and free it: no gradients in memory all at once"
    )
    lowram: bool = option(
        False, "load the model part by part straight to the card, one process after the other: for little main memory"
    )
    torch_compile: bool = option(False, "compile the U-Net before training: minutes at the start, faster steps")
    dynamo_backend: str = option(DEFAULT_BACKEND, "compiler of --torch_compile", check=not_blank, metavar="NAME")
