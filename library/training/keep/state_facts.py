"""What a state says of the run that it belongs to, beside the numbers themselves; and what has changed since.

Nothing here tells where files lie, nor what anybody's key is: states may be uploaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from library.core.errors import UserError
from library.data.description.config import DatasetConfig, SubsetConfig
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.models.files.folder_weights import STEMS, weights_files
from library.optim.registry import KNOWN, chosen_name, chosen_path
from library.optim.schedulers import scheduler_name
from library.options.record import TRAINS, Kind, recorded_defaults, recorded_kinds
from library.training.progress import RunPlan
from library.training.resume_point import Change
from library.training.run import BaseModel, Run, RunOptions

OPTIONS, RATES, DATASETS, PICTURES, BASE = "options", "rates", "datasets", "pictures", "base"
UPDATES, PROCESSES, TORCH = "updates", "processes", "torch"
STEP, EPOCH = "step", "epoch"  # those who write a state add them

_LOOK = 1 << 16  # bytes
_LEGACY_PLACE = 1 << 20  # where the Web UI's first hash looks
_CHANGES_TOLD = 8  # of one dataset
_TOLD_BY_FILES = ("num_vectors_per_token",)


def state_facts(run: Run, plan: RunPlan) -> dict[str, Any]:
    """Numbers, texts and tables of them, for JSON: options, pictures, base model and length of the run; no paths and no
    secrets. A resumed run keeps what it once began with, also where that is not said again."""
    facts = facts_of(run.options, run.base, run.index, run.placements, plan)
    begun = run.resume.begun_with if run.resume is not None else {}
    return {**facts, OPTIONS: {**facts[OPTIONS], **begun}}


def begun_with(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a state that say where its run began, as far as they were given."""
    kinds = recorded_kinds()
    given = {name: value for name, value in facts.get(OPTIONS, {}).items() if kinds.get(name) is Kind.STARTS}
    return {name: value for name, value in given.items() if value is not None}


def facts_of(
    options: RunOptions, base: BaseModel, index: ImageIndex, placements: Placements, plan: RunPlan
) -> dict[str, Any]:
    """`state_facts` of what the checks before a run have found."""
    return {
        TRAINS: options.record[TRAINS],
        OPTIONS: _options_in_force(options),
        RATES: {
            "--learning_rate": options.rates.asked,
            "--unet_lr": options.rates.unet,
            "--text_encoder_lr": options.rates.text_encoder,
        },
        DATASETS: [_dataset_facts(index, dataset) for dataset in index.training_datasets],
        PICTURES: _picture_facts(index, placements),
        BASE: _base_facts(base),
        UPDATES: plan.total_updates,
        PROCESSES: plan.processes,
        TORCH: torch.__version__,
    }


def _options_in_force(options: RunOptions) -> dict[str, Any]:
    """The options by name; optimizer and schedule as what they lead to, however they were asked for."""
    several = {TRAINS, "use_8bit_adam", "use_lion_optimizer", "lr_scheduler_type"}
    values = {name: value for name, value in options.record.items() if name not in several}
    name = chosen_name(options.optimizer)
    known = next((known for known in KNOWN if known.casefold() == name.casefold()), None)
    is_more = known is not None and KNOWN[known].fills  # than its class
    optimizer = known if is_more else chosen_path(options.optimizer)
    return {**values, "optimizer_type": optimizer, "lr_scheduler": scheduler_name(options.optimizer)}


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Everything that a result depends on and that differs between two `state_facts`, but for the length of the run."""
    found = _option_changes(old.get(OPTIONS, {}), new[OPTIONS])
    found += _differences("", old.get(RATES, {}), new[RATES])
    found += _dataset_changes(old.get(DATASETS, []), new[DATASETS])
    found += _differences("pictures: ", old.get(PICTURES, {}), new[PICTURES])
    found += _differences("base model: ", old.get(BASE, {}), new[BASE])
    if old.get(PROCESSES) != new[PROCESSES]:
        found.append(Change("processes that train together", old.get(PROCESSES), new[PROCESSES], Kind.DECIDES))
    return found


def _option_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    kinds, usual, found = recorded_kinds(), recorded_defaults(), list[Change]()
    for name in sorted({*old, *new}):
        before, now = (side.get(name, usual.get(name)) for side in (old, new))
        kind = kinds.get(name, Kind.DECIDES)
        is_unsaid = kind is Kind.STARTS and now == usual.get(name)  # nothing given, nothing meant
        is_unknown = name in _TOLD_BY_FILES and None in (before, now)  # loading compares the shapes
        if before != now and not (is_unsaid or is_unknown):
            found.append(Change(f"--{name}", before, now, kind))
    return found


def _differences(prefix: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    names = [*new, *(name for name in old if name not in new)]
    return [
        Change(f"{prefix}{name}", old.get(name), new.get(name), Kind.DECIDES)
        for name in names
        if old.get(name) != new.get(name)
    ]


def _dataset_changes(old: list[Any], new: list[Any]) -> list[Change]:
    """What a dataset is used for, value by value."""
    if len(old) != len(new):
        return [Change("datasets", len(old), len(new), Kind.DECIDES)]
    found = []
    for number, (before, now) in enumerate(zip(old, new, strict=True), start=1):
        changes = _differences(f"dataset {number}: ", _flat(before), _flat(now))
        found += changes[:_CHANGES_TOLD]
        if len(changes) > _CHANGES_TOLD:
            rest = f"dataset {number}: so many other settings"
            found.append(Change(rest, 0, len(changes) - _CHANGES_TOLD, Kind.DECIDES))
    return found


def _flat(dataset: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in dataset.items() if name != "subsets"}
    for number, subset in enumerate(dataset["subsets"], start=1):
        flat |= {f"subset {number}, {name}": value for name, value in subset.items()}
    return flat


def _dataset_facts(index: ImageIndex, dataset: DatasetConfig) -> dict[str, Any]:
    bucketing = dataset.bucketing
    return {
        "resolution": list(dataset.resolution),
        "batch_size": dataset.batch_size,
        "buckets": None if bucketing is None else asdict(bucketing),
        "subsets": [_subset_facts(index, subset) for subset in dataset.subsets],
    }


def _subset_facts(index: ImageIndex, subset: SubsetConfig) -> dict[str, Any]:
    augmentations, weights = subset.augmentations, np.asarray(index.loss_weight)
    rows = np.flatnonzero(np.asarray(index.subset) == index.folders.index(subset))
    face_crop = augmentations.face_crop_range
    return {
        "num_repeats": subset.num_repeats,
        "is_reg": subset.is_reg,
        "flip_aug": augmentations.flip,
        "color_aug": augmentations.colour,
        "random_crop": augmentations.random_crop,
        "face_crop_aug_range": None if face_crop is None else list(face_crop),
        "alpha_mask": subset.alpha_mask,
        "loss_weight": float(weights[rows[0]]) if len(rows) else subset.loss_weight,
        **{f"captions: {name}": value for name, value in asdict(subset.caption_changes).items()},
    }


def _picture_facts(index: ImageIndex, placements: Placements) -> dict[str, Any]:
    """How many train, and a hash of what they are: names, sizes in pixels and in bytes, captions, masks, buckets."""
    rows = np.flatnonzero(~index.is_validation)
    sizes, captions = hashlib.sha256(), hashlib.sha256()
    columns = (index.width, index.height, index.has_alpha, placements.resized_width, placements.resized_height)
    for column in (*columns, placements.crop_left, placements.crop_top):
        sizes.update(np.asarray(column)[rows].astype("<i8").tobytes())
    shapes = np.array(placements.buckets, dtype="<i8").reshape(-1, 2)
    sizes.update(shapes[np.asarray(placements.bucket)[rows]].tobytes())
    names = hashlib.sha256()
    for row in rows.tolist():
        names.update(_line(index.key(row)))
        captions.update(_line(index.caption(row)))
        if index.masks is not None:
            names.update(_line(index.masks[row]))
    return {
        "number": len(rows),
        "fingerprint of their names": names.hexdigest()[:16],
        "fingerprint of their sizes": sizes.hexdigest()[:16],
        "fingerprint of their files' sizes": hashlib.sha256(index.file_sizes[rows].tobytes()).hexdigest()[:16],
        "fingerprint of their captions": captions.hexdigest()[:16],
    }


def _line(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"


def _base_facts(base: BaseModel) -> dict[str, Any]:
    identity = base.identity
    known = f"hub:{base.repo_id}" if base.repo_id is not None else _weights_fingerprint(identity.path)
    return {
        "family": identity.family,
        "prediction_type": base.prediction_type,
        "fingerprint": known,
        "fingerprint of --vae": None if base.vae is None else _fingerprint(base.vae.files),
    }


def _weights_fingerprint(path: Path) -> str | None:
    """Of a model as it lies on the disk; None where its files cannot be found, which loading will tell."""
    if path.is_file():
        return _fingerprint([path])
    try:
        return _fingerprint([file for part, stem in STEMS.items() for file in weights_files(path / part, stem)])
    except UserError:
        return None


def _fingerprint(files: Iterable[Path]) -> str:
    """Of sizes and a look at three places of each file: at 4 GB nobody wants to wait for all of it."""
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for place in (0, _LEGACY_PLACE, max(0, size - _LOOK)):
                file.seek(place)
                found.update(file.read(_LOOK))
    return found.hexdigest()[:16]
