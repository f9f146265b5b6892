"""The metadata of a trained file, gathered from every part of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from library.checkpoint.metadata import (
    CHECKPOINT_KIND,
    LORA_KIND,
    BaseModelFacts,
    FileFacts,
    RunFacts,
    caption_values,
    data_values,
    file_facts,
    is_hash_key,
    memory_values,
    model_values,
    modelspec_values,
    network_values,
    objective_values,
    run_values,
    text_values,
    training_values,
    vae_values,
)
from library.core.sizes import Size
from library.data.description.config import DatasetConfig, SubsetConfig
from library.data.facts import as_written, bucket_info, dataset_dirs, folder_name, reg_dataset_dirs, tag_frequency
from library.data.planner import Planner
from library.data.uses import Samples
from library.models.forms import EXTENSIONS
from library.optim.schedulers import scheduler_name, warmup_updates
from library.options.network import NetworkOptions
from library.training.progress import RunPlan
from library.training.run import BaseModel, EmbeddingRun, FullModelRun, NetworkRun, Run

_PARTS = ("text_encoder", "unet")
_ARCHITECTURE = "modelspec.architecture"
_EMBEDDING_KIND = "/textual-inversion"  # behind the name of the architecture


def base_facts(base: BaseModel) -> BaseModelFacts:
    """The base model as metadata names it; reads whole files for their hashes."""
    model = file_facts(base.identity.name, base.identity.path)
    return BaseModelFacts(base.identity.family, base.prediction_type == "v_prediction", model, _vae_facts(base))


def _vae_facts(base: BaseModel) -> FileFacts | None:
    return file_facts(str(base.vae_name), base.vae.path) if base.vae is not None else None


def conversion_metadata(base: BaseModel, title: str, source: Mapping[str, str], keeps_bits: bool) -> dict[str, str]:
    """The metadata of a converted model: that of the source, and what the user said beyond it.

    Hashes of the source's weights stay only where `keeps_bits` says that the weights do.
    """
    same = keeps_bits and base.vae is None
    values: dict[str, Any] = {key: text for key, text in source.items() if same or not is_hash_key(key)}
    if base.identity.prediction_type is None:  # a question that the files left open; the next reader need not ask
        predicts_velocity = base.prediction_type == "v_prediction"
        facts = BaseModelFacts(base.identity.family, predicts_velocity, FileFacts(base.identity.name, None, None))
        side = 768 if predicts_velocity else 512
        values |= modelspec_values(facts, CHECKPOINT_KIND, title, Size(side, side), None)
    if base.vae is not None:
        values |= vae_values(_vae_facts(base))
    return text_values(values)


def _title(run: Run, path: Path) -> str:
    is_file = isinstance(run, EmbeddingRun) or path.suffix in EXTENSIONS.values()
    return path.stem if is_file else path.name  # a folder's dots are its name


def saved_metadata(run: Run, plan: RunPlan, base: BaseModelFacts, facts: RunFacts, path: Path) -> dict[str, str]:
    """All `ss_*` and `modelspec.*` values of what was trained, as texts; `path` is where it is saved."""
    options, title = run.options, _title(run, path)
    facts = replace(facts, rates=_rates_of_parts(run, facts.rates))
    kind = LORA_KIND if isinstance(run, NetworkRun) else CHECKPOINT_KIND
    spec = modelspec_values(base, kind, title, run.index.datasets[0].resolution, facts.finished_at)
    if isinstance(run, EmbeddingRun):
        spec[_ARCHITECTURE] += _EMBEDDING_KIND
    return text_values(
        {
            **training_values(options.training, options.optimizer, options.output),
            "ss_lr_scheduler": scheduler_name(options.optimizer),
            "ss_lr_warmup_steps": warmup_updates(options.optimizer, plan.total_updates),
            **objective_values(options.objective),
            "ss_lr_scheduler_args": list(options.optimizer.lr_scheduler_args),
            **({"ss_stop_text_encoder_training": run.text_encoder_stops} if isinstance(run, FullModelRun) else {}),
            **memory_values(options.memory),
            **(network_values(_as_begun(run)) if isinstance(run, NetworkRun) else {}),
            **data_values(options.data, options.caching),
            **model_values(base),
            **caption_values(options.text),
            **run_values(facts),
            **_dataset_values(run, plan),
            **spec,
        }
    )


def _as_begun(run: NetworkRun) -> NetworkOptions:
    """A resumed run need not say again which file it began with; its own files say it as before."""
    if run.resume is None or run.network.network_weights is not None:
        return run.network
    begun = run.resume.begun_with
    return replace(run.network, network_weights=begun.get("network_weights", begun.get("hypernetwork_weights")))


def _rates_of_parts(run: Run, rates: Mapping[str, float]) -> dict[str, float]:
    """The rates by part. A network may split a part into groups with rates of their own, or, in the older style, give
    its groups no names: then the rates are those the module was asked to train at."""
    found = {part: rates[part] for part in _PARTS if part in rates}
    splits = any(name not in _PARTS for name in rates)
    if (found and not splits) or not isinstance(run, NetworkRun):
        return found
    network, part_rates = run.network, run.options.rates
    asked = {"text_encoder": part_rates.text_encoder, "unet": part_rates.unet}
    trains = {"text_encoder": not network.network_train_unet_only, "unet": not network.network_train_text_encoder_only}
    return {part: asked[part] for part in _PARTS if trains[part]}


def _dataset_values(run: Run, plan: RunPlan) -> dict[str, Any]:
    """The values that the datasets decide. Those of one dataset stand for all where readers know only one."""
    index, first = run.index, run.index.datasets[0]
    uses = np.asarray(index.repeats)
    values: dict[str, Any] = {
        "ss_num_train_images": round(float(uses[~index.is_reg].sum())),
        "ss_num_reg_images": round(float(uses[index.is_reg].sum())),
        "ss_num_batches_per_epoch": plan.batches_per_epoch,
        "ss_batch_size_per_device": first.batch_size,
        "ss_total_batch_size": first.batch_size * plan.accumulation * plan.processes,
        "ss_resolution": first.resolution,
        "ss_enable_bucket": first.bucketing is not None,
        "ss_bucket_no_upscale": first.bucketing is not None and first.bucketing.no_upscale,
        "ss_min_bucket_reso": first.bucketing.min_size if first.bucketing else None,
        "ss_max_bucket_reso": first.bucketing.max_size if first.bucketing else None,
        **{f"ss_{name}": value for name, value in _changes(first.subsets[0]).items()},
        "ss_dataset_dirs": dataset_dirs(index),
        "ss_reg_dataset_dirs": reg_dataset_dirs(index),
        "ss_tag_frequency": tag_frequency(index, _subsets_with_captions(run)),
        "ss_bucket_info": bucket_info(index, run.placements, _uses_of_first_epoch(run)),
    }
    if run.options.data.dataset_config is not None:
        values["ss_datasets"] = json.dumps([_dataset_summary(dataset) for dataset in index.training_datasets])
    return values


def _subsets_with_captions(run: Run) -> list[int]:
    """The subsets whose own captions are trained; a template takes the place of those of training pictures."""
    has_template = isinstance(run, EmbeddingRun) and run.word.template is not None
    return [number for number, subset in enumerate(run.index.folders) if subset.is_reg or not has_template]


def _uses_of_first_epoch(run: Run) -> Samples:
    """As the run's planner has them."""
    batch_sizes = [dataset.batch_size for dataset in run.index.datasets]
    return Planner(run.index, run.placements, batch_sizes, run.options.training.seed).epoch_samples(0)


def _dataset_summary(dataset: DatasetConfig) -> dict[str, Any]:
    return {
        "batch_size_per_device": dataset.batch_size,
        "resolution": list(dataset.resolution),
        "enable_bucket": dataset.bucketing is not None,
        "subsets": [
            {
                "image_dir": folder_name(subset),
                "num_repeats": as_written(subset.num_repeats),
                "class_tokens": subset.class_tokens,
                "is_reg": subset.is_reg,
                **_changes(subset),
            }
            for subset in dataset.subsets
        ],
    }


def _changes(subset: SubsetConfig) -> dict[str, Any]:
    """What happens to captions and pictures of a folder at each use."""
    changes, augmentations = subset.caption_changes, subset.augmentations
    return {
        "color_aug": augmentations.colour,
        "flip_aug": augmentations.flip,
        "random_crop": augmentations.random_crop,
        "face_crop_aug_range": list(augmentations.face_crop_range) if augmentations.face_crop_range else None,
        "alpha_mask": subset.alpha_mask,
        "conditioning_data_dir": subset.conditioning_data_dir.name if subset.conditioning_data_dir else None,
        "loss_weight": subset.loss_weight,
        "shuffle_caption": changes.shuffle,
        "keep_tokens": changes.keep_tokens,
        "caption_tag_dropout_rate": changes.tag_dropout_rate,
        "caption_dropout_rate": changes.dropout_rate,
        "caption_dropout_every_n_epochs": changes.dropout_every_n_epochs,
        "enable_wildcard": changes.wildcard,
        "caption_separator": changes.separator,
        "keep_tokens_separator": changes.keep_tokens_separator,
        "secondary_separator": changes.secondary_separator,
        "caption_prefix": changes.prefix or None,
        "caption_suffix": changes.suffix or None,
        "token_warmup_min": changes.warmup_min,
        "token_warmup_step": changes.warmup_step,
    }
