"""What a run says before it starts and after it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator

from library.checkpoint.naming import state_folder, step_stem
from library.core.device import peak_memory_mib
from library.core.errors import printable
from library.core.memory import peak_process_mib
from library.core.wording import some_of
from library.data.planner import Planner
from library.data.report.caption_lengths import longest_captions
from library.data.report.start_report import describe_dataset
from library.data.views import Drawing, Views
from library.methods.base import TEXT_ENCODER
from library.options.logs import TENSORBOARD
from library.options.text import CHUNK_TOKENS, LONGEST, WEBUI_SPLITTING
from library.text.tokenizer import CaptionTokenizer
from library.text.weighting import has_unbalanced_brackets
from library.training.checks.keeping import save_moments
from library.training.checks.resumed_state import LATEST
from library.training.logs.settings import active_trackers
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
    """Pictures, buckets, steps, what trains at which rate, where files go and when, how to stop."""
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
    training, logs = run.options.training, run.options.logs
    lines.append(f"runs on: {accelerator.device}, mixed precision {training.mixed_precision}, seed {training.seed}")
    tensorboard = f", TensorBoard below {logs.logging_dir}" if TENSORBOARD in active_trackers(logs) else ""
    average = f", running average {run.files.average}" if run.files.average else ""
    lines.append(f"writes: {run.files.result}{average}, log {run.files.log}{tensorboard}")
    lines += _keeping_lines(run, plan)
    return [printable(line) for line in lines]


def summary(run: Run, trainer: Trainer, seconds: float) -> list[str]:
    """What was saved where, how fast it went, and what to do now.

    Args:
        seconds: since the models began to load.
    """
    step = trainer.progress.step
    has_ended = step >= trainer.plan.total_updates
    lines = [*trainer.keeper.told(), _speed_line(run, trainer, seconds)]
    lines += [*trainer.log.told(), *trainer.previews.told()]
    if not has_ended:
        lines.append(_way_on(run, step))
    elif trainer.keeper.has_end:
        lines.append(f"next: {_next_step(run)}")
    elif trainer.keeper.has_state_of_end:
        lines.append(f"to save what was learned: {_same_command(run)}; nothing is trained again")
    return [printable(line) for line in lines]


def _speed_line(run: Run, trainer: Trainer, seconds: float) -> str:
    updates = trainer.progress.step - (run.resume.step if run.resume is not None else 0)
    line = f"{updates} updates in {seconds:.0f} s with loading, {updates / max(seconds, 1e-9):.2f} a second"
    peaks = {"the card": peak_memory_mib(trainer.accelerator.device), "main memory": peak_process_mib()}
    return line + "".join(f"; {place}: at most {peak:.0f} MiB" for place, peak in peaks.items() if peak is not None)


def _way_on(run: Run, step: int) -> str:
    """How a run that was stopped is taken up again."""
    state = state_folder(run.files.folder, step_stem(run.files.name, step))
    if not state.is_dir():
        return f"{state} could not be written, so the run cannot go on from here"
    return f"to go on: {_same_command(run)}"


def _same_command(run: Run) -> str:
    """What changes of the command that this run was given, where it is resumed."""
    given = run.options.keeping.resume
    if given is None:
        return "the same command with --resume latest"
    if run.options.upload.resume_from_huggingface:
        return f"the same command without --resume_from_huggingface, and --resume latest instead of {given}"
    return "the same command" + ("" if given == LATEST else f" with --resume latest instead of {given}")


def _keeping_lines(run: Run, plan: RunPlan) -> list[str]:
    """When the run saves, what it uploads, and how to stop it."""
    keeping = run.options.keeping
    moments = save_moments(keeping, plan.epochs)
    every = ((moments.every_epochs, "epochs"), (moments.every_steps, "updates"))
    times = [f"every {number} {unit}" for number, unit in every if number is not None]
    with_state = ", with a state to resume from"
    at_end = with_state if keeping.save_state or keeping.save_state_on_train_end else ""
    on_way = with_state if times and keeping.save_state else ""
    lines = [f"saves: {''.join(f'{time}{on_way}; ' for time in times)}at the end{at_end}"]
    if run.upload is not None:
        what = "files and states" if run.upload.with_states else "files"
        lines.append(f"uploads: {what}, each as soon as it is saved, to {run.upload.repo_id}")
    lines.append(f"to stop: Ctrl-C, or a file named stop in {run.files.folder}; the update is finished and saved")
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
