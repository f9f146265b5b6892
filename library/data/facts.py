"""What a trained file's metadata tells about its pictures: the dataset's `ss_*` values. Folder names, never paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import Any

import numpy as np

from library.core.log import get_logger
from library.data.captions.caption_changes import CaptionChanges, plain_caption, split_tags
from library.data.captions.caption_files import split_lines
from library.data.description.config import SubsetConfig
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.data.uses import Samples

# Readers limit the size of a safetensors header; the rarest tags of a huge folder are of no use to anyone.
MAX_TAGS_PER_FOLDER = 5000

_log = get_logger(__name__)


def folder_name(subset: SubsetConfig) -> str:
    """The name of a subset's folder without the way to it, or of its metadata file without ending where it has none."""
    if subset.image_dir is None:
        return subset.home.stem
    return subset.image_dir.absolute().name


def as_written(repeats: float) -> float:
    """Repeats as readers know them: a whole number, unless they have a fraction."""
    return int(repeats) if repeats == int(repeats) else repeats


def folder_names(index: ImageIndex) -> list[str]:
    """The name of each subset in metadata; of two folders of one name the second is "name (2)"."""
    found: list[str] = []
    for subset in index.folders:
        name, copies = folder_name(subset), 1
        while name in found:  # they must not hide each other
            copies += 1
            name = f"{folder_name(subset)} ({copies})"
        found.append(name)
    return found


def tag_frequency(index: ImageIndex, subsets: Container[int] | None = None) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency`: folder name -> tag -> how often captions hold it; the 5,000 most frequent of each folder.

    Tags are the parts of captions as they are trained: with prefix and suffix, without marks, each line where lines
    are drawn; in lower case. Captions that are trained empty have none.

    Args:
        subsets: those whose captions are trained; None for all.
    """
    names, counters = folder_names(index), [Counter[str]() for _ in index.folders]
    held_out = [subset.is_validation for subset in index.folders]
    for number, caption in zip(index.subset.tolist(), index.captions, strict=True):
        if not held_out[number] and (subsets is None or number in subsets):
            counters[number].update(_trained_tags(caption, index.folders[number].caption_changes))
    for name, counter in zip(names, counters, strict=True):
        if len(counter) > MAX_TAGS_PER_FOLDER:
            _log.info(
                "%s: the file's metadata keeps the %d most frequent of %d tags", name, MAX_TAGS_PER_FOLDER, len(counter)
            )
    tables = zip(names, counters, strict=True)
    return {name: dict(counter.most_common(MAX_TAGS_PER_FOLDER)) for name, counter in tables if counter}


def is_always_empty(changes: CaptionChanges) -> bool:
    """Whether every use of a picture has an empty caption."""
    return changes.dropout_rate >= 1 or changes.dropout_every_n_epochs == 1


def _trained_tags(caption: str, changes: CaptionChanges) -> list[str]:
    if is_always_empty(changes):
        return []
    lines = [line for line in split_lines(caption) if line.strip()] if changes.wildcard else [caption]
    texts = (plain_caption(line, changes) for line in lines or [""])
    return [tag.lower() for text in texts for tag in split_tags(text, changes.separator)]


def bucket_info(index: ImageIndex, placements: Placements, uses: Samples) -> dict[str, Any]:
    """`ss_bucket_info`: each bucket's size and uses an epoch, and the mean difference of aspect ratios.

    Args:
        uses: those of an epoch; regularisation pictures come in balance, whatever their number.
    """
    trained = ~index.is_validation
    counts = np.bincount(np.asarray(placements.bucket)[uses.records], minlength=len(placements.buckets))
    sizes = np.array(placements.buckets, dtype=np.float64)[np.asarray(placements.bucket)[trained]]
    errors = np.abs(sizes[:, 0] / sizes[:, 1] - (index.width / index.height)[trained])
    return {
        "buckets": {
            str(number): {"resolution": [size.width, size.height], "count": int(counts[number])}
            for number, size in enumerate(placements.buckets)
            if not index.datasets[placements.bucket_dataset[number]].is_validation
        },
        "mean_img_ar_error": float(errors.mean()),
    }


def dataset_dirs(index: ImageIndex) -> dict[str, dict[str, float]]:
    """`ss_dataset_dirs`: folder name -> repeats and number of pictures, of the training folders."""
    return _folders_of(index, is_reg=False)


def reg_dataset_dirs(index: ImageIndex) -> dict[str, dict[str, float]]:
    """`ss_reg_dataset_dirs`: the same of the regularisation folders."""
    return _folders_of(index, is_reg=True)


def _folders_of(index: ImageIndex, is_reg: bool) -> dict[str, dict[str, float]]:
    counts = np.bincount(index.subset, minlength=len(index.folders))
    return {
        name: {"n_repeats": as_written(subset.num_repeats), "img_count": int(count)}
        for name, subset, count in zip(folder_names(index), index.folders, counts, strict=True)
        if subset.is_reg == is_reg and not subset.is_validation
    }
