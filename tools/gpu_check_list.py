"""What tools/gpu_check.py tries, as data. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PREPARE, ENVIRONMENT, ATTENTION = "prepare", "environment", "attention_kernels"

# how far losses may lie from those of the reference, relative to them; same pictures, noise and times in all runs
EXACT, HALF = 0.005, 0.05


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        seconds: longest time it may take.
        script, words: of a training; None for the checks that are none.
        needs_card: makes no sense without one.
        package: has to be installed as well.
        reference: a training that ran before with the same pictures and noise; losses must be near.
        tolerance: how near, relative.
    """

    seconds: float = 60.0
    script: str | None = None
    words: tuple[str, ...] = ()
    needs_card: bool = False
    package: str | None = None
    reference: str | None = None
    tolerance: float = HALF


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LORA, _FINE_TUNE = "train_network.py", "fine_tune.py"
_LOW = "--mixed_precision bf16 --gradient_checkpointing"
_RATE = "--learning_rate 1e-6"


def _lora(text: str = "", reference: str | None = "lora_float32", tolerance: float = HALF, **more: object) -> Check:
    return Check(script=_LORA, words=_words(text), reference=reference, tolerance=tolerance, **more)  # type: ignore[arg-type]


def _whole(text: str, **more: object) -> Check:
    words = _words(f"{_RATE} {text}")
    return Check(script=_FINE_TUNE, words=words, reference="lora_float32", **more)  # type: ignore[arg-type]


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        PREPARE: Check(seconds=120),
        ENVIRONMENT: Check(),
        ATTENTION: Check(),
        "lora_float32": _lora(reference=None),
        # the kinds of attention, and the precisions, against it
        "lora_mem_eff_attn": _lora("--mem_eff_attn", tolerance=EXACT),
        "lora_xformers_float32": _lora("--xformers", tolerance=EXACT, needs_card=True, package="xformers"),
        "lora_xformers_bf16": _lora("--xformers --mixed_precision bf16", needs_card=True, package="xformers"),
        "lora_fp16": _lora("--mixed_precision fp16", needs_card=True),
        "lora_bf16": _lora("--mixed_precision bf16"),
        "full_fp16": _whole("--full_fp16 --mixed_precision fp16 --gradient_checkpointing", needs_card=True),
        "full_bf16": _whole(f"--full_bf16 {_LOW}"),
        "fused_backward_pass": _whole(f"--fused_backward_pass --max_grad_norm 0 {_LOW}"),
        "paged_adamw": _whole(f"--optimizer_type PagedAdamW {_LOW}", needs_card=True, package="bitsandbytes"),
        "paged_adamw_8bit": _whole(f"--optimizer_type PagedAdamW8bit {_LOW}", needs_card=True, package="bitsandbytes"),
        # peak memory and seconds of a step
        "method_lora": _lora(_LOW),
        "method_dreambooth": Check(
            script="train_db.py",
            words=_words(f"{_RATE} --optimizer_type AdamW8bit {_LOW}"),
            reference="lora_float32",
            package="bitsandbytes",
        ),
        "method_fine_tune": _whole(_LOW),
        "method_textual_inversion": Check(
            script="train_textual_inversion.py",
            words=_words(f"--token_string zumira --init_word pattern {_LOW}"),
        ),
        "method_hypernetwork": _lora(f"--network_module networks.hypernetwork {_LOW}", reference=None),
        "torch_compile": _lora("--torch_compile --mixed_precision bf16", needs_card=True, seconds=120),
    }
)
