"""What a run says about its pictures before it starts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from library.core.errors import printable
from library.data.captions.caption_changes import CaptionChanges
from library.data.description.config import DatasetConfig, SubsetConfig
from library.data.facts import folder_name
from library.data.index.index import CaptionSource, ImageIndex
from library.data.placement import Placements
from library.data.planner import Planner
from library.data.report.concerns import counted, dataset_warnings, first_names

_BUCKETS_PER_LINE = 6
_SOURCE_WORDS = (
    (CaptionSource.FILE, "from files"),
    (CaptionSource.METADATA, "from metadata"),
    (CaptionSource.CLASS_TOKENS, "class tokens"),
    (CaptionSource.EMPTY, "empty"),
)
_ODD_SOURCES = (CaptionSource.CLASS_TOKENS, CaptionSource.EMPTY)


def describe_dataset(index: ImageIndex, placements: Placements, planner: Planner) -> list[str]:
    """The lines of the start-up report: datasets, folders, captions, buckets, and what deserves a look."""
    lines = list(index.notes)
    first_subset = 0
    for number, dataset in enumerate(index.datasets):
        name = "validation" if dataset.is_validation else f"dataset {number + 1}"
        lines.append(f"{name}: {_describe_shape(dataset)}, batch size {dataset.batch_size}")
        lines += _folder_lines(index, dataset, first_subset)
        lines += _reg_lines(planner, number)
        lines += _caption_lines(index, index.dataset == number)
        if dataset.bucketing is not None:
            lines += _bucket_lines(placements, number)
        lines += [f"  warning: {text}" for text in dataset_warnings(index, placements, planner, number)]
        first_subset += len(dataset.subsets)
    lines.append(_epoch_line(index, planner))
    return [printable(line) for line in lines]


def _epoch_line(index: ImageIndex, planner: Planner) -> str:
    is_reg = np.asarray(index.is_reg)[planner.epoch_samples(0).records]
    regularisation = int(np.count_nonzero(is_reg))
    uses = counted(len(is_reg) - regularisation, "training use")
    if np.asarray(index.is_reg).any():
        uses += f", {counted(regularisation, 'regularisation use')}"
    if index.is_validation.any():
        uses += f", none of {counted(int(np.count_nonzero(index.is_validation)), 'validation picture')}"
    return f"an epoch: {uses}, {planner.batches_per_epoch} batches, {planner.updates_per_epoch} updates"


def _describe_shape(dataset: DatasetConfig) -> str:
    limits = dataset.bucketing
    if limits is None:
        return f"{dataset.resolution}, no buckets (pictures are scaled to cover it and cropped in the middle)"
    if limits.no_upscale:
        return (
            f"area of {dataset.resolution}, buckets of the pictures' own sizes in steps of {limits.step}, no upscaling"
        )
    return (
        f"area of {dataset.resolution}, buckets from {limits.min_size} to {limits.max_size} in steps of {limits.step}"
    )


def _folder_lines(index: ImageIndex, dataset: DatasetConfig, first_subset: int) -> Iterator[str]:
    for number, subset in enumerate(dataset.subsets, first_subset):
        count = int(np.count_nonzero(index.subset == number))
        if subset.is_validation:
            yield f"  {folder_name(subset)}: {counted(count, 'picture')} held out, in no epoch"
            continue
        kind = ", regularisation" if subset.is_reg else ""
        tokens = f', class tokens "{subset.class_tokens}"' if subset.class_tokens else ""
        words = [*_change_words(subset.caption_changes), *look_words(subset)]
        changes = "".join(f", {word}" for word in words)
        yield f"  {folder_name(subset)}: {count} pictures x {subset.num_repeats:g} repeats{tokens}{kind}{changes}"


def _change_words(changes: CaptionChanges) -> Iterator[str]:
    """What happens to the captions of a folder at each use."""
    if changes.shuffle:
        yield "tags shuffled"
    if changes.tag_dropout_rate:
        yield f"{changes.tag_dropout_rate:.0%} of the tags left out"
    if changes.keep_tokens and (changes.shuffle or changes.tag_dropout_rate):
        yield f"first {changes.keep_tokens} kept"
    if changes.warmup_step:
        yield "number of tags grows at the start"
    if changes.wildcard:
        yield "wildcards drawn"
    if changes.dropout_rate:
        yield f"{changes.dropout_rate:.0%} of the captions empty"
    if changes.dropout_every_n_epochs:
        yield f"all captions empty every {changes.dropout_every_n_epochs} epochs"


def look_words(subset: SubsetConfig) -> Iterator[str]:
    """What is special about how a folder's pictures are seen and how much they count."""
    looks = subset.augmentations
    if looks.flip:
        yield "half of the uses mirrored"
    if looks.colour:
        yield "colours shifted"
    if looks.face_crop_range is not None:
        yield f"cut around faces at {looks.face_crop_range.low:g} to {looks.face_crop_range.high:g} times their size"
    if looks.random_crop:
        yield "random crops"
    if subset.alpha_mask:
        yield "loss weighted by transparency"
    if subset.conditioning_data_dir is not None:
        yield f"loss weighted by the masks in {subset.conditioning_data_dir}"
    if subset.loss_weight != 1:
        yield f"loss weight {subset.loss_weight:g}"


def _reg_lines(planner: Planner, dataset: int) -> Iterator[str]:
    used, available = planner.reg_uses_per_epoch(dataset)
    if not available:
        return
    line = f"  regularisation: {used} of {available} uses an epoch, one for each training use"
    if used < available:
        line += "; the others have their turn in later epochs"
    elif used > available:
        line += "; they are repeated to keep the balance"
    yield line


def _caption_lines(index: ImageIndex, rows: np.ndarray) -> Iterator[str]:
    records = np.flatnonzero(rows)
    parts = []
    for source, words in _SOURCE_WORDS:
        found = records[index.caption_source[records] == source]
        if len(found):
            # Only the odd ones out are named: where every picture is alike, names say nothing.
            names = f" ({first_names(index, found)})" if source in _ODD_SOURCES and len(found) < len(records) else ""
            parts.append(f"{len(found)} {words}{names}")
    yield f"  captions: {', '.join(parts)}"


def _bucket_lines(placements: Placements, dataset: int) -> Iterator[str]:
    counts = np.bincount(placements.bucket, minlength=len(placements.buckets))
    own = [number for number, owner in enumerate(placements.bucket_dataset) if owner == dataset]
    cells = [f"{placements.buckets[number]}: {counts[number]}" for number in own]
    for start in range(0, len(cells), _BUCKETS_PER_LINE):
        head = "  buckets (size: pictures)  " if start == 0 else "    "
        yield head + "  ".join(cells[start : start + _BUCKETS_PER_LINE])
