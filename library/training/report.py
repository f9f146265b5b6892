"""What a run says before it starts and after it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from library.core.atomic_io import size_on_disk
from library.core.device import peak_memory_mib
from library.core.errors import printable
from library.core.wording import some_of
from library.data.planner import Planner
from library.data.report.caption_lengths import longest_captions
from library.data.report.start_report import describe_dataset
from library.data.views import Drawing, Views
from library.methods.base import TEXT_ENCODER
from library.options.text import CHUNK_TOKENS, LONGEST, WEBUI_SPLITTING
from library.text.tokenizer import CaptionTokenizer
from library.text.weighting import has_unbalanced_brackets
from library.training.progress import RunPlan
from library.training.run import EmbeddingRun, FullModelRun, NetworkRun, Run
from library.training.trainer import Trainer

_NAMES_TOLD = 3


def start_report(
    run: Run,
    planner: Planner,
    plan: RunPlan,
    tokenizer: CaptionTokenizer,
    groups: Sequence[Mapping[str, Any]],
    accelerator: Accelerator,
) -> list[str]:
    """Pictures, buckets, steps, what trains at which rate, where files go."""
    lines = [*run.description.notes, *describe_dataset(run.index, run.placements, planner)]
    lines += _long_caption_lines(run, tokenizer) + _bracket_lines(run)
    lines += [*_model_lines(run), _text_line(run)]
    if isinstance(run, EmbeddingRun):
        lines += [*run.word.notes, *run.notes]
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        lines.append(f"trains: {group['name']}, {count:,} weights at rate {group['lr']:g}{_until(run, group, plan)}")
    if run.options.training.max_train_epochs is not None and run.options.training.max_train_steps is not None:
        lines.append("length: --max_train_epochs wins over --max_train_steps, both are given")
    batch = " + ".join(str(dataset.batch_size) for dataset in run.index.training_datasets)
    lines.append(
        f"length: {plan.total_updates} updates in {plan.epochs} epoch(s) of {plan.updates_per_epoch};"
        f" an update is batch {batch} x accumulation {plan.accumulation} x processes {plan.processes}"
    )
    training, logging_dir = run.options.training, run.options.logs.logging_dir
    lines.append(f"runs on: {accelerator.device}, mixed precision {training.mixed_precision}, seed {training.seed}")
    tensorboard = f", TensorBoard below {logging_dir}" if logging_dir else ""
    average = f", running average {run.files.average}" if run.files.average else ""
    lines.append(f"writes: {run.files.result}{average}, log {run.files.log}{tensorboard}")
    return [printable(line) for line in lines]


def summary(run: Run, trainer: Trainer, seconds: float) -> list[str]:
    """What was made, how fast, and what to do with it."""
    written = [path for path in (run.files.result, run.files.average) if path is not None]
    lines = [f"saved {path} ({size_on_disk(path) / 1e6:.1f} MB)" for path in written]
    speed = f"{trainer.progress.step} updates in {seconds:.0f} s"
    peak = peak_memory_mib(trainer.accelerator.device)
    lines.append(speed if peak is None else f"{speed}, at most {peak:.0f} MiB on the card")
    lines.append(f"next: {_next_step(run)}")
    return lines


def _until(run: Run, group: Mapping[str, Any], plan: RunPlan) -> str:
    """For how long a part learns, where it is not the whole run."""
    if not isinstance(run, FullModelRun) or group["name"] != TEXT_ENCODER or run.text_encoder_stops is None:
        return ""
    if run.text_encoder_stops >= plan.total_updates:
        return f"; the run ends before --stop_text_encoder_training {run.text_encoder_stops}"
    return f", in the first {run.text_encoder_stops} updates only"


def _next_step(run: Run) -> str:
    if isinstance(run, NetworkRun) and run.network.network_module == "networks.hypernetwork":
        prompt = f"<hypernet:{run.files.result.stem}:1>"
        return f"copy it into models/hypernetworks of the Web UI and write {prompt} in prompts"
    if isinstance(run, EmbeddingRun) and run.word.layered:
        return "docs/textual_inversion.md; Web UI, ComfyUI and Diffusers do not read a word with vectors for each layer"
    if isinstance(run, NetworkRun):
        return "copy it into models/Lora of the Web UI (models/loras of ComfyUI), or load it in Diffusers"
    if isinstance(run, EmbeddingRun):
        word = run.word.alias.word
        web_ui = f"copy it into embeddings of the Web UI and write its file name, {run.files.result.stem}, in prompts"
        return f"{web_ui}; in Diffusers, load_textual_inversion(file, token={word!r})"
    if run.files.result.is_dir():
        return "load it with StableDiffusionPipeline.from_pretrained of Diffusers"
    yaml = " with the .yaml beside it" if run.base.identity.family == "sd2" else ""
    return f"copy it{yaml} into models/Stable-diffusion of the Web UI (models/checkpoints of ComfyUI)"


def _long_caption_lines(run: Run, tokenizer: CaptionTokenizer) -> list[str]:
    """Captions that the text encoder cannot read to their end."""
    index, limit = run.index, run.options.text.max_token_length
    views = Views(index, run.placements, Drawing(run.options.training.seed))
    lost = [max(tokenizer.count_lost(longest_captions(views, record))) for record in range(len(index))]
    long = [index.names[i] for i, count in enumerate(lost) if count > 0]
    if not long:
        return []
    longer = [str(length) for length in (2 * CHUNK_TOKENS, LONGEST) if length > limit]
    can_be_longer = longer and not run.options.text.no_token_padding
    advice = f"; --max_token_length {' or '.join(longer)} reads more" if can_be_longer else ""
    names = some_of(long[:_NAMES_TOLD], len(long))
    what = f"{len(long)} captions do not fit into {limit} tokens; the rest is not read"
    return [f"warning: {what} ({sum(lost)} tokens): {names}{advice}"]


def _bracket_lines(run: Run) -> list[str]:
    """Captions whose weights may not mean what was meant."""
    if not run.options.text.weighted_captions:
        return []
    index = run.index
    odd = [index.names[i] for i in range(len(index)) if has_unbalanced_brackets(index.caption(i))]
    if not odd:
        return []
    names = some_of(odd[:_NAMES_TOLD], len(odd))
    return [
        f"warning: {len(odd)} captions have brackets without a partner, which count to the end of the caption: {names};"
        r" write \( and \) for brackets that are no weights"
    ]


def _text_line(run: Run) -> str:
    text = run.options.text
    layer = "penultimate" if run.base.identity.family == "sd2" else f"{text.clip_skip or 1} from the end"
    line = f"captions: {text.max_token_length} tokens, text encoder layer: {layer}"
    if text.prompt_splitting == WEBUI_SPLITTING:
        line += ", split as in the Web UI"
    if text.weighted_captions:
        line += f", weighted, mean {'restored' if text.restore_weighted_mean else 'not restored'}"
    if text.no_token_padding:
        line += ", padded to the longest of a batch only"
    return line


def _model_lines(run: Run) -> list[str]:
    base = run.base
    family = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x"}[base.identity.family]
    predicts = "v" if base.prediction_type == "v_prediction" else "noise (epsilon)"
    source = f", told by {base.identity.told_by}" if base.identity.told_by else ""
    lines = [f"model: {base.identity.name}, {family}, predicts {predicts}{source}"]
    lines += [f"note: {note}" for note in base.identity.notes]
    if base.vae is not None:
        lines.append(f"VAE: {base.vae_name} instead of the model's own")
    return lines
