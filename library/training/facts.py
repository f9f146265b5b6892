"""The metadata of a network file, gathered from every part of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from library.checkpoint.metadata import (
    BaseModelFacts,
    RunFacts,
    data_values,
    model_values,
    modelspec_values,
    network_values,
    run_values,
    text_values,
    training_values,
)
from library.data.facts import bucket_info, dataset_dirs, folder_name, reg_dataset_dirs, tag_frequency
from library.training.preflight import NetworkRun
from library.training.progress import RunPlan

_PARTS = ("text_encoder", "unet")


def network_metadata(run: NetworkRun, plan: RunPlan, base: BaseModelFacts, facts: RunFacts) -> dict[str, str]:
    """All `ss_*` and `modelspec.*` values of the trained network, as texts."""
    title = run.files.network.stem
    facts = replace(facts, rates=_rates_of_parts(run, facts.rates), optimizer=_optimizer_in_force(run, facts.optimizer))
    return text_values(
        {
            **training_values(run.training, run.optimizer, run.output),
            **network_values(run.network),
            **data_values(run.data),
            **model_values(base),
            **run_values(facts),
            **_dataset_values(run, plan),
            **modelspec_values(base, title, run.index.datasets[0].resolution, facts.finished_at),
        }
    )


def _rates_of_parts(run: NetworkRun, rates: Mapping[str, float]) -> dict[str, float]:
    """The rates by part. Public modules name their groups text_encoder, textencoder, unet, unet plus and the like, or,
    in the older style, not at all: then the rates are those the module was asked to train at."""
    found: dict[str, float] = {}
    for name, rate in rates.items():
        for part in _PARTS:
            if name.replace("_", "").startswith(part.replace("_", "")):
                found.setdefault(part, rate)
    if found:
        return found
    network, rate = run.network, run.optimizer.learning_rate
    asked = {"text_encoder": network.text_encoder_lr or rate, "unet": network.unet_lr or rate}
    trains = {"text_encoder": not network.network_train_unet_only, "unet": not network.network_train_text_encoder_only}
    return {part: asked[part] for part in _PARTS if trains[part]}


def _optimizer_in_force(run: NetworkRun, name: str) -> str:
    """The optimizer's class, with the arguments it was given behind it."""
    arguments = run.optimizer.optimizer_args
    return f"{name}({','.join(arguments)})" if arguments else name


def _dataset_values(run: NetworkRun, plan: RunPlan) -> dict[str, Any]:
    """The values that the datasets decide. Those of one dataset stand for all where readers know only one."""
    index, first = run.index, run.index.datasets[0]
    uses = index.repeats.astype(np.int64)
    values: dict[str, Any] = {
        "ss_num_train_images": int(uses[~index.is_reg].sum()),
        "ss_num_reg_images": int(uses[index.is_reg].sum()),
        "ss_num_batches_per_epoch": plan.batches_per_epoch,
        "ss_batch_size_per_device": first.batch_size,
        "ss_total_batch_size": first.batch_size * plan.accumulation * plan.processes,
        "ss_resolution": first.resolution,
        "ss_enable_bucket": first.bucketing is not None,
        "ss_bucket_no_upscale": first.bucketing is not None and first.bucketing.no_upscale,
        "ss_min_bucket_reso": first.bucketing.min_size if first.bucketing else None,
        "ss_max_bucket_reso": first.bucketing.max_size if first.bucketing else None,
        "ss_dataset_dirs": dataset_dirs(index),
        "ss_reg_dataset_dirs": reg_dataset_dirs(index),
        "ss_tag_frequency": tag_frequency(index),
        "ss_bucket_info": bucket_info(index, run.placements),
    }
    if run.data.dataset_config is not None:
        values["ss_datasets"] = json.dumps([_dataset_summary(run, number) for number in range(len(index.datasets))])
    return values


def _dataset_summary(run: NetworkRun, number: int) -> dict[str, Any]:
    dataset = run.index.datasets[number]
    return {
        "batch_size_per_device": dataset.batch_size,
        "resolution": list(dataset.resolution),
        "enable_bucket": dataset.bucketing is not None,
        "subsets": [
            {
                "image_dir": folder_name(subset),
                "num_repeats": subset.num_repeats,
                "class_tokens": subset.class_tokens,
                "is_reg": subset.is_reg,
            }
            for subset in dataset.subsets
        ],
    }
