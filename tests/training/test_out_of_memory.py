"""Out of memory: recognised, and answered with the switches that are left, in their order."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from library.core.errors import UserError
from library.core.sizes import Size
from library.options.base import option_fields
from library.options.caching import CachingOptions
from library.options.memory import MemoryOptions
from library.options.scripts import SCRIPTS
from library.options.training import TrainingOptions
from library.training.out_of_memory import (
    CARD,
    MAIN_MEMORY,
    NOTHING_LEFT,
    MemoryUse,
    advice_for,
    explain,
    is_out_of_memory,
    main_memory_advice,
    memory_that_is_full,
)

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.9 GiB")

BARE = MemoryUse(
    memory=MemoryOptions(),
    training=TrainingOptions(),
    caching=CachingOptions(),
    optimizer="AdamW",
    whole_model=True,
    avoids_text_encoder="--stop_text_encoder_training 0",
    batch_size=4,
    resolution=Size(768, 768),
)
IN_ORDER = [
    "--cache_latents",
    "--gradient_checkpointing",
    "--mixed_precision",
    "--optimizer_type",
    "--xformers",
    "--train_batch_size",
    "--full_bf16",
    "--fused_backward_pass",
    "--resolution",
    "--stop_text_encoder_training",
]


def flags(use: MemoryUse) -> list[str]:
    """The first flag of each piece of advice."""
    return [re.findall(r"--\w+", text)[0] for text in advice_for(use)]


def cpu_allocation_failure() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    return caught.value


def test_everything_is_left_at_first_in_order_of_saving() -> None:
    assert flags(BARE) == IN_ORDER


SWITCHED = [
    ("--cache_latents", {"caching": CachingOptions(cache_latents=True)}),
    ("--cache_latents", {"caching": CachingOptions(cache_latents_to_disk=True)}),
    ("--gradient_checkpointing", {"training": TrainingOptions(gradient_checkpointing=True)}),
    ("--mixed_precision", {"training": TrainingOptions(mixed_precision="bf16")}),
    ("--optimizer_type", {"optimizer": "PagedAdamW8bit"}),
    ("--optimizer_type", {"optimizer": "adafactor"}),
    ("--xformers", {"memory": MemoryOptions(mem_eff_attn=True)}),
    ("--xformers", {"memory": MemoryOptions(xformers=True)}),
    ("--train_batch_size", {"batch_size": 1}),
    ("--full_bf16", {"memory": MemoryOptions(full_bf16=True)}),
    ("--full_bf16", {"memory": MemoryOptions(full_fp16=True)}),
    ("--fused_backward_pass", {"memory": MemoryOptions(fused_backward_pass=True)}),
    ("--fused_backward_pass", {"training": TrainingOptions(gradient_accumulation_steps=2)}),  # it excludes that
    ("--resolution", {"resolution": Size(512, 512)}),
    ("--stop_text_encoder_training", {"avoids_text_encoder": None}),
]


@pytest.mark.parametrize(("flag", "change"), SWITCHED, ids=str)
def test_what_is_on_is_not_advised_again(flag: str, change: dict[str, object]) -> None:
    assert flags(replace(BARE, **change)) == [other for other in IN_ORDER if other != flag]


def test_networks_are_not_told_of_what_saves_them_nothing() -> None:
    network = replace(BARE, whole_model=False, avoids_text_encoder="--network_train_unet_only")
    left_out = {"--optimizer_type", "--full_bf16", "--fused_backward_pass", "--stop_text_encoder_training"}
    assert flags(network) == [*(flag for flag in IN_ORDER if flag not in left_out), "--network_train_unet_only"]


def test_accumulation_makes_up_for_the_smaller_batch() -> None:
    use = replace(BARE, training=TrainingOptions(gradient_accumulation_steps=3))
    (text,) = [text for text in advice_for(use) if "--train_batch_size 1" in text]
    assert "--gradient_accumulation_steps 12" in text


def test_every_flag_that_is_named_exists() -> None:
    known = {
        f"--{item.name}" for script in SCRIPTS.values() for group in script.groups for item in option_fields(group)
    }
    advice = [*advice_for(BARE), *main_memory_advice(replace(BARE, caching=CachingOptions(cache_latents=True)))]
    assert {flag for text in advice for flag in re.findall(r"--\w+", text)} <= known


def test_errors_are_told_apart() -> None:
    assert memory_that_is_full(CUDA) == CARD
    assert memory_that_is_full(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")) == CARD
    assert memory_that_is_full(cpu_allocation_failure()) == MAIN_MEMORY
    assert memory_that_is_full(MemoryError()) == MAIN_MEMORY
    assert memory_that_is_full(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")) == MAIN_MEMORY
    assert memory_that_is_full(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")) is None
    assert memory_that_is_full(ValueError("memory")) is None
    assert is_out_of_memory(CUDA) and not is_out_of_memory(RuntimeError("no"))


def test_a_full_card_is_answered_with_numbered_switches() -> None:
    (problem,) = explain(CUDA, BARE, on_card=True).problems
    assert problem.what.startswith("the card's memory is full: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert "(1) --cache_latents" in problem.fix and "(10) --stop_text_encoder_training 0" in problem.fix
    assert "--lowram" not in problem.fix and "\n" not in problem.fix


def test_full_main_memory_is_answered_by_where_the_training_is() -> None:
    error = cpu_allocation_failure()
    on_card, on_cpu = (explain(error, BARE, on_card=card).problems[0] for card in (True, False))
    assert on_card.what.startswith("main memory is full: ") and "can't allocate memory" in on_card.what
    assert "(1) --max_data_loader_n_workers 1, or 0; (2) --lowram" in on_card.fix
    assert "--gradient_checkpointing" not in on_card.fix
    assert "--gradient_checkpointing" in on_cpu.fix and "--lowram" in on_cpu.fix
    cached = replace(BARE, caching=CachingOptions(cache_latents=True), memory=MemoryOptions(lowram=True))
    (problem,) = explain(error, cached, on_card=True).problems
    assert "(1) --cache_latents_to_disk in place of --cache_latents" in problem.fix and "--lowram" not in problem.fix


def test_nothing_left_is_said_so() -> None:
    everything = MemoryUse(
        memory=MemoryOptions(mem_eff_attn=True, full_bf16=True, fused_backward_pass=True),
        training=TrainingOptions(gradient_checkpointing=True, mixed_precision="bf16"),
        caching=CachingOptions(cache_latents=True),
        optimizer="AdamW8bit",
        whole_model=True,
        avoids_text_encoder=None,
        batch_size=1,
        resolution=Size(512, 512),
    )
    error = explain(CUDA, everything, on_card=True)
    assert isinstance(error, UserError) and error.problems[0].fix == NOTHING_LEFT
