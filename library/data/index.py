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
from library.data.metadata import find_pictures, read_metadata

_MOST_TOLD = 20  # of one kind of problem in one folder; the rest is counted
_NAMES_TOLD = 5
_CHUNK = 4096  # pictures handed to the thread pool at once, so that a million do not queue up in memory


class CaptionSource(IntEnum):
    """Where the caption of a picture came from."""

    FILE = 0
    CLASS_TOKENS = 1
    EMPTY = 2
    METADATA = 3


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
    roots: tuple[Path, ...] = ()  # of each subset: the folder from which its names count
    notes: tuple[str, ...] = ()  # what deserves to be told although it is no mistake

    def __len__(self) -> int:
        return len(self.width)

    @cached_property
    def folders(self) -> tuple[SubsetConfig, ...]:
        """The subsets in the order in which the column `subset` counts them."""
        return tuple(subset for dataset in self.datasets for subset in dataset.subsets)

    def path(self, record: int) -> Path:
        return self.roots[int(self.subset[record])] / self.names[record]

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
    caption_problems: tuple[Problem, ...] = ()
    has_idle_file: bool = False  # a caption file stands beside the picture and is not read


class _Listing(NamedTuple):
    """The pictures of a subset before any is opened; `captions` where a metadata file holds them."""

    root: Path
    names: Sequence[str]
    captions: Sequence[str | None] | None = None


class _Scan(NamedTuple):
    """A subset read: the root of its names, a row for each usable picture."""

    root: Path
    rows: list[_Row]


def build_index(description: Description, prior_loss_weight: float) -> ImageIndex:
    """Finds and opens every picture and its caption.

    Args:
        description: the datasets.
        prior_loss_weight: loss weight of regularisation pictures; others have 1.

    Raises:
        UserError: with every missing or empty folder, broken picture, unreadable or missing caption.
    """
    problems, notes = Problems(), list[str]()
    subsets = [subset for dataset in description.datasets for subset in dataset.subsets]
    scans = [_scan_subset(subset, problems, notes) for subset in subsets]
    rows = [scan.rows for scan in scans]
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
        roots=tuple(scan.root for scan in scans),
        notes=tuple(notes),
    )


def _scan_subset(subset: SubsetConfig, problems: Problems, notes: list[str]) -> _Scan:
    listing = _list_pictures(subset, problems, notes)
    broken: list[Problem] = []
    unclear: list[Problem] = []
    without_caption: list[str] = []
    idle_files = 0
    rows = []
    for name, reading in zip(listing.names, _read_all(subset, listing), strict=True):
        unclear += reading.caption_problems
        idle_files += reading.has_idle_file
        if reading.size is None:
            place = str(listing.root / name)
            broken.append(Problem(reading.image_problem or "", place, "replace the file or take it out of the folder"))
            continue
        source = _caption_source(reading.caption, subset)
        if source is CaptionSource.EMPTY and not subset.allow_missing_captions and not reading.caption_problems:
            without_caption.append(name)
        caption = reading.caption or (subset.class_tokens if source is CaptionSource.CLASS_TOKENS else "") or ""
        rows.append(_Row(name, reading.size, caption, source))
    _tell_first(broken, subset, problems)
    _tell_first(unclear, subset, problems)
    if without_caption:
        _report_missing_captions(without_caption, len(listing.names), subset, problems)
    if idle_files:
        what = f"{idle_files} pictures also have a caption file, which is not read"
        notes.append(f"{subset.metadata_file}: {what}")
    return _Scan(listing.root, rows)


def _caption_source(caption: str | None, subset: SubsetConfig) -> CaptionSource:
    if caption is not None:
        return CaptionSource.FILE if subset.metadata_file is None else CaptionSource.METADATA
    return CaptionSource.CLASS_TOKENS if subset.class_tokens else CaptionSource.EMPTY


def _list_pictures(subset: SubsetConfig, problems: Problems, notes: list[str]) -> _Listing:
    if subset.metadata_file is None:
        return _Listing(subset.home, _list_folder(subset.home, problems))
    nothing = _Listing(subset.home, ())
    if subset.image_dir is not None and not subset.image_dir.is_dir():
        _list_folder(subset.image_dir, problems)  # which tells why
        return nothing
    texts = read_metadata(subset.metadata_file, problems)
    found = find_pictures(texts, subset.metadata_file, subset.image_dir, problems)
    if not found.pictures:
        return nothing
    if found.without_entry:
        what = f"{len(found.without_entry)} pictures in its folders have no entry and are not trained"
        notes.append(f"{subset.metadata_file}: {what}: {_some(found.without_entry)}")
    names, captions = zip(*found.pictures, strict=True)
    return _Listing(found.root, names, captions)


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


def _read_all(subset: SubsetConfig, listing: _Listing) -> Iterator[_Reading]:
    """Opens pictures and captions in threads (decoding releases Python's lock), in the order of the listing."""
    remaining = iter(range(len(listing.names)))
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(lambda number: _read_one(subset, listing, number), chunk)


def _read_one(subset: SubsetConfig, listing: _Listing, number: int) -> _Reading:
    path = listing.root / listing.names[number]
    image = examine(path)
    if listing.captions is not None:
        has_idle_file = bool(caption_files(path, subset.caption_extensions))
        return _Reading(image.size, image.problem, listing.captions[number], has_idle_file=has_idle_file)
    try:
        return _Reading(image.size, image.problem, find_caption(path, subset.caption_extensions))
    except UserError as error:
        return _Reading(image.size, image.problem, None, error.problems)


def _tell_first(found: Sequence[Problem], subset: SubsetConfig, problems: Problems) -> None:
    """Tells problems of one kind in one folder, but not thousands of them."""
    problems.extend(found[:_MOST_TOLD])
    if len(found) > _MOST_TOLD:
        problems.add(f"{len(found) - _MOST_TOLD} more like these", str(subset.home), found[-1].fix)


def _report_missing_captions(names: Sequence[str], total: int, subset: SubsetConfig, problems: Problems) -> None:
    if subset.metadata_file is not None:
        what = f"{len(names)} of {total} entries have neither caption nor tags, and no class tokens: {_some(names)}"
        fix = (
            "write them, give class_tokens in a dataset file, or train with an empty caption: --allow_missing_captions"
        )
        problems.add(what, str(subset.metadata_file), fix)
        return
    endings = " or ".join(subset.caption_extensions)
    what = f"{len(names)} of {total} pictures have neither a caption file ({endings}) nor class tokens: {_some(names)}"
    fix = (
        "add caption files, or name the folder N_identifier class (class_tokens in a dataset file), "
        "or train them with an empty caption: --allow_missing_captions"
    )
    problems.add(what, str(subset.home), fix)


def _report_unused_extensions(subsets: Sequence[SubsetConfig], rows: Sequence[list[_Row]], problems: Problems) -> None:
    """A caption ending that was asked for must be found at least once where it was asked for.

    One given for several folders may be missing in some, as regularisation pictures rarely have captions.
    """
    by_place: dict[str, list[int]] = defaultdict(list)
    for number, subset in enumerate(subsets):
        if subset.caption_extension_from is not None and subset.metadata_file is None and rows[number]:
            by_place[subset.caption_extension_from].append(number)
    for place, numbers in by_place.items():
        if not any(_has_caption_file(subsets[number], rows[number]) for number in numbers):
            folders = _some([str(subsets[number].home) for number in numbers])
            ending = subsets[numbers[0]].caption_extensions[0]
            fix = "correct the ending, or remove it: .txt and .caption are found by themselves"
            problems.add(f"no picture has a caption file ending in {ending} in {folders}", place, fix)


def _has_caption_file(subset: SubsetConfig, rows: Sequence[_Row]) -> bool:
    if any(row.source is CaptionSource.FILE for row in rows):
        return True
    return any(caption_files(subset.home / row.name, subset.caption_extensions) for row in rows)


def _some(names: Sequence[str]) -> str:
    return some_of(names[:_NAMES_TOLD], len(names))
