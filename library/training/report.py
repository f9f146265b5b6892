"""What a run says before it starts and after it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from library.core.device import peak_memory_mib
from library.core.wording import some_of
from library.data.index import ImageIndex
from library.data.planner import Planner
from library.data.report import describe_dataset
from library.text.tokenizer import TEXT_LENGTH, CaptionTokenizer
from library.training.preflight import NetworkRun
from library.training.progress import RunPlan
from library.training.trainer import Trainer

_NAMES_TOLD = 3


def start_report(
    run: NetworkRun,
    planner: Planner,
    plan: RunPlan,
    tokenizer: CaptionTokenizer,
    groups: Sequence[Mapping[str, Any]],
    accelerator: Accelerator,
) -> list[str]:
    """Pictures, buckets, steps, what trains at which rate, where files go."""
    lines = [*run.description.notes, *describe_dataset(run.index, run.placements, planner)]
    lines += _long_caption_lines(run.index, tokenizer)
    lines.append(_model_line(run))
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        lines.append(f"trains: {group['name']}, {count:,} weights at rate {group['lr']:g}")
    if run.training.max_train_epochs is not None and run.training.max_train_steps is not None:
        lines.append("length: --max_train_epochs wins over --max_train_steps, both are given")
    batch = " + ".join(str(dataset.batch_size) for dataset in run.index.datasets)
    lines.append(
        f"length: {plan.total_updates} updates in {plan.epochs} epoch(s) of {plan.updates_per_epoch};"
        f" an update is batch {batch} x accumulation {plan.accumulation} x processes {plan.processes}"
    )
    lines.append(
        f"runs on: {accelerator.device}, mixed precision {run.training.mixed_precision}, seed {run.training.seed}"
    )
    tensorboard = f", TensorBoard below {run.output.logging_dir}" if run.output.logging_dir else ""
    lines.append(f"writes: {run.files.network}, log {run.files.log}{tensorboard}")
    return lines


def summary(run: NetworkRun, trainer: Trainer, seconds: float) -> list[str]:
    """What was made, how fast, and what to do with it."""
    lines = [f"saved {run.files.network} ({run.files.network.stat().st_size / 1e6:.1f} MB)"]
    speed = f"{trainer.progress.step} updates in {seconds:.0f} s"
    peak = peak_memory_mib(trainer.accelerator.device)
    lines.append(speed if peak is None else f"{speed}, at most {peak:.0f} MiB on the card")
    lines.append("next: copy it into models/Lora of the Web UI (models/loras of ComfyUI), or load it in Diffusers")
    return lines


def _long_caption_lines(index: ImageIndex, tokenizer: CaptionTokenizer) -> list[str]:
    """Captions that the text encoder cannot read to their end."""
    counts = tokenizer.count_tokens([index.caption(i) for i in range(len(index))])
    long = [index.names[i] for i, count in enumerate(counts) if count > TEXT_LENGTH]
    if not long:
        return []
    names = some_of(long[:_NAMES_TOLD], len(long))
    return [f"warning: {len(long)} captions are longer than {TEXT_LENGTH} tokens; the rest is not read: {names}"]


def _model_line(run: NetworkRun) -> str:
    family = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x"}[run.identity.family]
    predicts = "v" if run.prediction_type == "v_prediction" else "noise (epsilon)"
    line = f"model: {run.identity.path.name}, {family}, predicts {predicts}"
    if run.identity.prediction_type is None and run.prediction_type == "epsilon":
        line += "; its file cannot tell: give --v_parameterization for a 768-v model"
    return line
