"""What a saved file says about its making: the `ss_*` keys of this field and the Stability model specification 1.0.1.

Values tell what really happened. They hold names, never paths, and never a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from library.core.sizes import Size
from library.core.tensor_files import LEGACY_HASH_KEY, MODEL_HASH_KEY, file_hash, legacy_hash
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.memory import MemoryOptions
from library.options.network import NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import OptimizerOptions
from library.options.text import TextOptions
from library.options.training import OutputOptions, TrainingOptions

SPEC_VERSION = "1.0.1"
_VARIOUS = "Dynamic"  # what public tools write for ranks that differ from layer to layer
# what stands behind the architecture's name, and whose code reads the file's tensor names
LORA_KIND, CHECKPOINT_KIND = "/lora", ""
_IMPLEMENTATIONS = {LORA_KIND: "diffusers", CHECKPOINT_KIND: "https://github.com/Stability-AI/generative-models"}
# (family, predicts v) to the names that Web UI, ComfyUI and model sites know
_ARCHITECTURES = {
    ("sd1", False): ("stable-diffusion-v1", "sd_v1"),
    ("sd1", True): ("stable-diffusion-v1", "sd_v1"),
    ("sd2", False): ("stable-diffusion-v2-512", "sd_v2_512"),
    ("sd2", True): ("stable-diffusion-v2-768-v", "sd_v2_768_v"),
}


@dataclass(frozen=True)
class FileFacts:
    """A file by its name and the two hashes that the Web UI knows; a folder has no hash."""

    name: str
    legacy_hash: str | None
    hash: str | None


@dataclass(frozen=True)
class BaseModelFacts:
    """The base model, as its files tell; `vae` is the one that took the place of its own."""

    family: str
    predicts_velocity: bool
    file: FileFacts
    vae: FileFacts | None = None


@dataclass(frozen=True)
class RunFacts:
    """What happened in the run: times in seconds since 1970, rates by component, counters at the moment of saving."""

    session_id: int
    started_at: float
    finished_at: float
    rates: Mapping[str, float]
    optimizer: str
    epochs: int
    max_steps: int
    epoch: int
    step: int


def file_facts(name: str, path: Path) -> FileFacts:
    """Facts of a model or VAE called `name`; the whole file is read for its hash."""
    hashes = (legacy_hash(path), file_hash(path)) if path.is_file() else (None, None)
    return FileFacts(name, *hashes)


def is_hash_key(key: str) -> bool:
    """Whether the value under `key` is a hash of the very weights that the file holds."""
    return key.startswith("modelspec.hash") or key in (MODEL_HASH_KEY, LEGACY_HASH_KEY)


def text_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Metadata values as the texts readers expect: None as "None", tables as JSON."""
    return {key: _text(value) for key, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, Size):
        return f"({value.width}, {value.height})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def model_values(model: BaseModelFacts) -> dict[str, Any]:
    """`ss_*` keys about the base model."""
    return {
        "ss_v2": model.family == "sd2",
        "ss_base_model_version": _ARCHITECTURES[model.family, model.predicts_velocity][1],
        "ss_sd_model_name": model.file.name,
        "ss_sd_model_hash": model.file.legacy_hash,
        "ss_new_sd_model_hash": model.file.hash,
        **vae_values(model.vae),
    }


def vae_values(vae: FileFacts | None) -> dict[str, Any]:
    """`ss_*` keys about a VAE that took the place of the model's own."""
    return {
        "ss_vae_name": vae.name if vae else None,
        "ss_vae_hash": vae.legacy_hash if vae else None,
        "ss_new_vae_hash": vae.hash if vae else None,
    }


def caption_values(text: TextOptions) -> dict[str, Any]:
    """Metadata about how captions became text states."""
    values: dict[str, Any] = {"ss_clip_skip": text.clip_skip, "ss_max_token_length": text.max_token_length}
    if text.clip_skip is not None:
        values["modelspec.encoder_layer"] = text.clip_skip
    return values


def run_values(run: RunFacts) -> dict[str, Any]:
    """`ss_*` keys about the run itself."""
    return {
        "ss_session_id": run.session_id,
        "ss_training_started_at": run.started_at,
        "ss_training_finished_at": run.finished_at,
        "ss_text_encoder_lr": run.rates.get("text_encoder"),
        "ss_unet_lr": run.rates.get("unet"),
        "ss_num_epochs": run.epochs,
        "ss_max_train_steps": run.max_steps,
        "ss_optimizer": run.optimizer,
        "ss_epoch": run.epoch,
        "ss_steps": run.step,
    }


def training_values(training: TrainingOptions, optimizer: OptimizerOptions, output: OutputOptions) -> dict[str, Any]:
    """`ss_*` keys taken from the options of the loop."""
    return {
        "ss_output_name": output.output_name,
        "ss_training_comment": output.training_comment,
        "ss_learning_rate": optimizer.learning_rate,
        "ss_gradient_checkpointing": training.gradient_checkpointing,
        "ss_gradient_accumulation_steps": training.gradient_accumulation_steps,
        "ss_mixed_precision": training.mixed_precision,
        "ss_max_grad_norm": training.max_grad_norm,
        "ss_seed": training.seed,
    }


def objective_values(objective: ObjectiveOptions) -> dict[str, Any]:
    """`ss_*` keys taken from the options of noise and loss; None stands for what is not used."""
    has_threshold = objective.loss_type in ("huber", "smooth_l1")
    return {
        "ss_noise_offset": objective.noise_offset,
        "ss_noise_offset_random_strength": objective.noise_offset_random_strength,
        "ss_adaptive_noise_scale": objective.adaptive_noise_scale,
        "ss_multires_noise_iterations": objective.multires_noise_iterations,
        "ss_multires_noise_discount": objective.multires_noise_discount
        if objective.multires_noise_iterations
        else None,
        "ss_ip_noise_gamma": objective.ip_noise_gamma,
        "ss_ip_noise_gamma_random_strength": objective.ip_noise_gamma_random_strength,
        "ss_min_snr_gamma": objective.min_snr_gamma,
        "ss_scale_v_pred_loss_like_noise_pred": objective.scale_v_pred_loss_like_noise_pred,
        "ss_v_pred_like_loss": objective.v_pred_like_loss,
        "ss_debiased_estimation": objective.debiased_estimation_loss,
        "ss_zero_terminal_snr": objective.zero_terminal_snr,
        "ss_loss_type": objective.loss_type,
        "ss_huber_schedule": objective.huber_schedule if has_threshold else None,
        "ss_huber_c": objective.huber_c if has_threshold else None,
        "ss_huber_scale": objective.huber_scale if has_threshold else None,
        "ss_min_timestep": objective.min_timestep,
        "ss_max_timestep": objective.max_timestep,
        "ss_masked_loss": objective.masked_loss,
    }


def average_values(title: str, decay: float) -> dict[str, str]:
    """What the metadata of a running average says otherwise than that of the weights themselves."""
    return {"modelspec.title": title, "ss_ema_decay": str(decay)}


def memory_values(memory: MemoryOptions) -> dict[str, Any]:
    """`ss_*` keys taken from the options of memory and speed."""
    return {
        "ss_full_fp16": memory.full_fp16,
        "ss_full_bf16": memory.full_bf16,
        "ss_lowram": memory.lowram,
        "ss_fused_backward_pass": memory.fused_backward_pass,
    }


def network_values(network: NetworkOptions) -> dict[str, Any]:
    """`ss_*` keys taken from the network's options in force; without a rank there are several."""
    return {
        "ss_network_module": network.network_module,
        "ss_network_dim": _VARIOUS if network.network_dim is None else network.network_dim,
        "ss_network_alpha": _VARIOUS if network.network_alpha is None else network.network_alpha,
        "ss_network_dropout": network.network_dropout,
        "ss_scale_weight_norms": network.scale_weight_norms,
        "ss_network_weights": _file_names((network.network_weights,)) if network.network_weights else None,
        "ss_base_weights": _file_names(network.base_weights),
        "ss_base_weights_multiplier": list(network.base_weights_multiplier),
        "ss_network_args": {name: _without_folder(value) for name, value in _pairs(network.network_args)},
    }


def _file_names(paths: Sequence[str]) -> list[str]:
    """Bare names: where files lie is nobody's business."""
    return [Path(path).name for path in paths]


def _pairs(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, _, value = word.partition("=")
        yield name, value


def _without_folder(value: str) -> str:
    """A value, or the bare name of the file it points to: where files lie is nobody's business."""
    return Path(value).name if Path(value).is_absolute() else value


def data_values(data: DataOptions, caching: CachingOptions) -> dict[str, Any]:
    """`ss_*` keys taken from the dataset options; those the dataset itself decides are added by the caller."""
    return {
        "ss_cache_latents": caching.cache_latents or caching.cache_latents_to_disk,
        "ss_prior_loss_weight": data.prior_loss_weight,
    }


def modelspec_values(
    model: BaseModelFacts, kind: str, title: str, resolution: Size, saved_at: float | None
) -> dict[str, Any]:
    """Stability's model specification.

    Args:
        kind: what the file holds: `LORA_KIND` or `CHECKPOINT_KIND`.
        resolution: pixels of the training pictures.
        saved_at: seconds since 1970; None leaves the date out, so that the same input gives the same bytes.
    """
    architecture, _ = _ARCHITECTURES[model.family, model.predicts_velocity]
    values = {
        "modelspec.sai_model_spec": SPEC_VERSION,
        "modelspec.architecture": architecture + kind,
        "modelspec.implementation": _IMPLEMENTATIONS[kind],
        "modelspec.title": title,
        "modelspec.resolution": str(resolution),
        "modelspec.prediction_type": "v" if model.predicts_velocity else "epsilon",
    }
    if saved_at is not None:
        values["modelspec.date"] = datetime.fromtimestamp(int(saved_at), tz=UTC).isoformat().replace("+00:00", "")
    return values
