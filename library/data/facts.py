"""What a trained file's metadata tells about its pictures: the dataset's `ss_*` values. Folder names, never paths."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from library.core.log import get_logger
from library.data.captions.caption_changes import split_tags
from library.data.description.config import SubsetConfig
from library.data.index.index import ImageIndex
from library.data.placement import Placements

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


def tag_frequency(index: ImageIndex) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency`: folder name -> tag -> how often captions hold it; the 5,000 most frequent of each folder.

    Tags are the comma-separated parts of the captions, in lower case.
    """
    counters: dict[str, Counter[str]] = {folder_name(subset): Counter() for subset in index.folders}
    names = [folder_name(subset) for subset in index.folders]
    for record in range(len(index)):
        subset = int(index.subset[record])
        separator = index.folders[subset].caption_changes.separator
        counters[names[subset]].update(split_tags(index.caption(record).lower(), separator))
    for name, counter in counters.items():
        if len(counter) > MAX_TAGS_PER_FOLDER:
            _log.info(
                "%s: the file's metadata keeps the %d most frequent of %d tags", name, MAX_TAGS_PER_FOLDER, len(counter)
            )
    return {name: dict(counter.most_common(MAX_TAGS_PER_FOLDER)) for name, counter in counters.items() if counter}


def bucket_info(index: ImageIndex, placements: Placements) -> dict[str, Any]:
    """`ss_bucket_info`: each bucket's size and uses an epoch, and the mean difference of aspect ratios."""
    uses = np.bincount(placements.bucket, weights=index.repeats, minlength=len(placements.buckets))
    sizes = np.array(placements.buckets, dtype=np.float64)[placements.bucket]
    errors = np.abs(sizes[:, 0] / sizes[:, 1] - index.width / index.height)
    return {
        "buckets": {
            str(number): {"resolution": [size.width, size.height], "count": round(float(uses[number]))}
            for number, size in enumerate(placements.buckets)
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
    found: dict[str, dict[str, float]] = {}
    for number, subset in enumerate(index.folders):
        if subset.is_reg == is_reg:
            name, copies = folder_name(subset), 1
            while name in found:  # two folders of one name must not hide each other
                copies += 1
                name = f"{folder_name(subset)} ({copies})"
            found[name] = {"n_repeats": as_written(subset.num_repeats), "img_count": int(counts[number])}
    return found
