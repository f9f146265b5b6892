"""The index: one row a picture, in columns, so that a million of them fit and loader workers can share them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from library.core.errors import Problem, Problems, UserError
from library.core.sizes import Size
from library.core.wording import some_of
from library.data.captions import caption_files, find_caption
from library.data.config import DatasetConfig, Description, SubsetConfig
from library.data.images import IMAGE_EXTENSIONS, examine, list_images

_MOST_TOLD = 20  # of one kind of problem in one folder; the rest is counted
_NAMES_TOLD = 5
_CHUNK = 4096  # pictures handed to the thread pool at once, so that a million do not queue up in memory


class CaptionSource(IntEnum):
    """Where the caption of a picture came from."""

    FILE = 0
    CLASS_TOKENS = 1
    EMPTY = 2


class Texts:
    """Many short texts in two tensors. Tensors, because torch moves them into shared memory when it starts a worker."""

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]  # file names may be any bytes
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._ends = torch.from_numpy(ends)
        self._bytes = torch.from_numpy(np.frombuffer(b"".join(encoded) or b"\0", dtype=np.uint8).copy())

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        start, end = self._ends[number].item(), self._ends[number + 1].item()
        return self._bytes[start:end].numpy().tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class ImageIndex:
    """All pictures of a run; row = record number. `subset` counts through all datasets, see `folders`."""

    datasets: tuple[DatasetConfig, ...]
    width: NDArray[np.int32]  # as seen, pixels
    height: NDArray[np.int32]
    repeats: NDArray[np.int32]
    loss_weight: NDArray[np.float32]
    subset: NDArray[np.int32]
    dataset: NDArray[np.int32]
    is_reg: NDArray[np.bool_]
    caption_source: NDArray[np.uint8]
    names: Texts
    captions: Texts

    def __len__(self) -> int:
        return len(self.width)

    @cached_property
    def folders(self) -> tuple[SubsetConfig, ...]:
        """The subsets in the order in which the column `subset` counts them."""
        return tuple(subset for dataset in self.datasets for subset in dataset.subsets)

    def path(self, record: int) -> Path:
        return self.folders[int(self.subset[record])].image_dir / self.names[record]

    def caption(self, record: int) -> str:
        return self.captions[record]

    def size(self, record: int) -> Size:
        return Size(int(self.width[record]), int(self.height[record]))

    def key(self, record: int) -> str:
        """Names the picture in random draws: dataset number, subset number and file name, wherever the folder lies."""
        dataset = int(self.dataset[record])
        first = sum(len(earlier.subsets) for earlier in self.datasets[:dataset])
        return f"{dataset}/{int(self.subset[record]) - first}/{self.names[record]}"


class _Row(NamedTuple):
    name: str
    size: Size
    caption: str
    source: CaptionSource


class _Reading(NamedTuple):
    """What was found for one picture file."""

    size: Size | None
    image_problem: str | None
    caption: str | None
    caption_problems: tuple[Problem, ...]


def build_index(description: Description, prior_loss_weight: float) -> ImageIndex:
    """Finds and opens every picture and its caption.

    Args:
        description: the datasets.
        prior_loss_weight: loss weight of regularisation pictures; others have 1.

    Raises:
        UserError: with every missing or empty folder, broken picture, unreadable or missing caption.
    """
    problems = Problems()
    subsets = [subset for dataset in description.datasets for subset in dataset.subsets]
    rows = [_scan_subset(subset, problems) for subset in subsets]
    _report_unused_extensions(subsets, rows, problems)
    problems.raise_if_any()
    counts = [len(found) for found in rows]
    dataset_of = [number for number, dataset in enumerate(description.datasets) for _ in dataset.subsets]
    is_reg = np.repeat(np.array([subset.is_reg for subset in subsets], dtype=np.bool_), counts)
    flat = [row for found in rows for row in found]
    return ImageIndex(
        datasets=description.datasets,
        width=np.array([row.size.width for row in flat], dtype=np.int32),
        height=np.array([row.size.height for row in flat], dtype=np.int32),
        repeats=np.repeat(np.array([subset.num_repeats for subset in subsets], dtype=np.int32), counts),
        loss_weight=np.where(is_reg, prior_loss_weight, 1.0).astype(np.float32),
        subset=np.repeat(np.arange(len(subsets), dtype=np.int32), counts),
        dataset=np.repeat(np.array(dataset_of, dtype=np.int32), counts),
        is_reg=is_reg,
        caption_source=np.array([row.source for row in flat], dtype=np.uint8),
        names=Texts(row.name for row in flat),
        captions=Texts(row.caption for row in flat),
    )


def _scan_subset(subset: SubsetConfig, problems: Problems) -> list[_Row]:
    names = _list_folder(subset.image_dir, problems)
    broken: list[Problem] = []
    unclear: list[Problem] = []
    without_caption: list[str] = []
    rows = []
    for name, reading in zip(names, _read_all(subset, names), strict=True):
        unclear += reading.caption_problems
        if reading.size is None:
            place = str(subset.image_dir / name)
            broken.append(Problem(reading.image_problem or "", place, "replace the file or take it out of the folder"))
            continue
        source = _caption_source(reading.caption, subset)
        if source is CaptionSource.EMPTY and not subset.allow_missing_captions and not reading.caption_problems:
            without_caption.append(name)
        caption = (reading.caption, subset.class_tokens, "")[source] or ""
        rows.append(_Row(name, reading.size, caption, source))
    _tell_first(broken, subset, problems)
    _tell_first(unclear, subset, problems)
    if without_caption:
        _report_missing_captions(without_caption, len(names), subset, problems)
    return rows


def _caption_source(caption: str | None, subset: SubsetConfig) -> CaptionSource:
    if caption is not None:
        return CaptionSource.FILE
    return CaptionSource.CLASS_TOKENS if subset.class_tokens else CaptionSource.EMPTY


def _list_folder(folder: Path, problems: Problems) -> list[str]:
    """The pictures of a folder; none and a complaint when it is missing or empty."""
    try:
        names = list_images(folder)
        if not names:
            problems.add(_describe_empty(folder), str(folder), f"accepted are {' '.join(IMAGE_EXTENSIONS)}")
        return names
    except FileNotFoundError:
        problems.add(f"the folder does not exist (looked for {folder.absolute()})", str(folder), "check the path")
    except OSError as error:
        problems.add(f"cannot read the folder: {error.strerror}", str(folder), "name a folder that can be read")
    return []


def _describe_empty(folder: Path) -> str:
    entries = sorted(folder.iterdir())
    files = [entry.name for entry in entries if not entry.is_dir()]
    below = [entry.name for entry in entries if entry.is_dir() and list_images(entry)]
    if below:
        return f"no pictures directly in this folder; they lie in its folders {_some(below)}, each needs its own subset"
    return f"no pictures in this folder; it holds {_some(files)}" if files else "the folder is empty"


def _read_all(subset: SubsetConfig, names: Sequence[str]) -> Iterator[_Reading]:
    """Opens pictures and captions in threads (decoding releases Python's lock), in the order of `names`."""
    remaining = iter(names)
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(lambda name: _read_one(subset, name), chunk)


def _read_one(subset: SubsetConfig, name: str) -> _Reading:
    path = subset.image_dir / name
    image = examine(path)
    try:
        return _Reading(image.size, image.problem, find_caption(path, subset.caption_extensions), ())
    except UserError as error:
        return _Reading(image.size, image.problem, None, error.problems)


def _tell_first(found: Sequence[Problem], subset: SubsetConfig, problems: Problems) -> None:
    """Tells problems of one kind in one folder, but not thousands of them."""
    problems.extend(found[:_MOST_TOLD])
    if len(found) > _MOST_TOLD:
        problems.add(f"{len(found) - _MOST_TOLD} more like these", str(subset.image_dir), found[-1].fix)


def _report_missing_captions(names: Sequence[str], total: int, subset: SubsetConfig, problems: Problems) -> None:
    endings = " or ".join(subset.caption_extensions)
    what = f"{len(names)} of {total} pictures have neither a caption file ({endings}) nor class tokens: {_some(names)}"
    fix = (
        "add caption files, or name the folder N_identifier class (class_tokens in a dataset file), "
        "or train them with an empty caption: --allow_missing_captions"
    )
    problems.add(what, str(subset.image_dir), fix)


def _report_unused_extensions(subsets: Sequence[SubsetConfig], rows: Sequence[list[_Row]], problems: Problems) -> None:
    """A caption ending that was asked for must be found at least once where it was asked for.

    One given for several folders may be missing in some, as regularisation pictures rarely have captions.
    """
    by_place: dict[str, list[int]] = defaultdict(list)
    for number, subset in enumerate(subsets):
        if subset.caption_extension_from is not None and rows[number]:
            by_place[subset.caption_extension_from].append(number)
    for place, numbers in by_place.items():
        if not any(_has_caption_file(subsets[number], rows[number]) for number in numbers):
            folders = _some([str(subsets[number].image_dir) for number in numbers])
            ending = subsets[numbers[0]].caption_extensions[0]
            fix = "correct the ending, or remove it: .txt and .caption are found by themselves"
            problems.add(f"no picture has a caption file ending in {ending} in {folders}", place, fix)


def _has_caption_file(subset: SubsetConfig, rows: Sequence[_Row]) -> bool:
    if any(row.source is CaptionSource.FILE for row in rows):
        return True
    return any(caption_files(subset.image_dir / row.name, subset.caption_extensions) for row in rows)


def _some(names: Sequence[str]) -> str:
    return some_of(names[:_NAMES_TOLD], len(names))
