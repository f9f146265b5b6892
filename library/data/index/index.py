"""The index: one row a picture, in columns, so that a million of them fit and loader workers can share them."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from library.core.errors import Problem, Problems
from library.core.sizes import Size
from library.core.wording import some_of
from library.data.description.config import DatasetConfig, Description, SubsetConfig
from library.data.index.columns import SharedColumns
from library.data.index.masks import find_masks
from library.data.index.scan import FAIL, NOTHING_OPENED, CaptionSource, Opened, Rows, Scan, scan_subset
from library.data.index.texts import Texts

__all__ = ["CaptionSource", "ImageIndex", "Texts", "build_index"]

SLOW_SECONDS = 20.0  # a start that takes longer is told of cache_info
_NAMES_TOLD = 5


@dataclass(frozen=True)
class ImageIndex(SharedColumns):
    """All pictures of a run; row = record number. `subset` counts through all datasets, see `folders`."""

    datasets: tuple[DatasetConfig, ...]
    width: NDArray[np.int32]  # as seen, pixels
    height: NDArray[np.int32]
    has_alpha: NDArray[np.bool_]  # whether the file has transparency
    repeats: NDArray[np.float64]  # uses in an epoch; a fraction is meant over several
    loss_weight: NDArray[np.float32]
    subset: NDArray[np.int32]
    dataset: NDArray[np.int32]
    is_reg: NDArray[np.bool_]
    caption_source: NDArray[np.uint8]
    names: Texts
    captions: Texts
    roots: tuple[Path, ...] = ()  # of each subset: the folder from which its names count
    notes: tuple[str, ...] = ()  # what deserves to be told although it is no mistake
    opened: Opened = NOTHING_OPENED
    left_out: tuple[Problem, ...] = ()  # pictures that cannot be read, each with its reason (--bad_images skip)
    masks: Texts | None = None  # paths from the subset's conditioning_data_dir; None where no subset has one

    def __len__(self) -> int:
        return len(self.width)

    @cached_property
    def folders(self) -> tuple[SubsetConfig, ...]:
        """The subsets in the order in which the column `subset` counts them."""
        return tuple(subset for dataset in self.datasets for subset in dataset.subsets)

    @property
    def training_datasets(self) -> tuple[DatasetConfig, ...]:
        """Those that training uses; datasets of held-out pictures stand behind them."""
        return tuple(dataset for dataset in self.datasets if not dataset.is_validation)

    @cached_property
    def is_validation(self) -> NDArray[np.bool_]:
        """For each picture whether it is held out of the training."""
        held_out = np.array([subset.is_validation for subset in self.folders], dtype=np.bool_)
        return np.asarray(held_out[np.asarray(self.subset)], dtype=np.bool_)

    @cached_property
    def file_sizes(self) -> NDArray[np.int64]:
        """For each picture the bytes of its file and of its mask's, (N, 2); -1 where there is none. Looked up once."""
        found = np.full((len(self), 2), -1, dtype="<i8")
        for record in range(len(self)):
            found[record, 0] = _file_size(self.path(record))
            mask = self.mask_path(record)
            if mask is not None:
                found[record, 1] = _file_size(mask)
        return found

    def path(self, record: int) -> Path:
        return self.roots[int(self.subset[record])] / self.names[record]

    def has_mask(self, record: int) -> bool:
        """Whether parts of a picture may weigh less than others in the loss."""
        return self.counts_alpha(record) or self.mask_path(record) is not None

    def counts_alpha(self, record: int) -> bool:
        """Whether its transparency weighs the loss: opaque pictures have none, whatever is asked for."""
        return self.folders[int(self.subset[record])].alpha_mask and bool(self.has_alpha[record])

    def mask_path(self, record: int) -> Path | None:
        """The picture that weighs the loss of this one; None where there is none."""
        folder = self.folders[int(self.subset[record])].conditioning_data_dir
        return None if folder is None or self.masks is None else folder / self.masks[record]

    def caption(self, record: int) -> str:
        return self.captions[record]

    def size(self, record: int) -> Size:
        return Size(int(self.width[record]), int(self.height[record]))

    def key(self, record: int) -> str:
        """Names the picture in random draws: dataset number, subset number and file name, wherever the folder lies."""
        dataset = int(self.dataset[record])
        first = sum(len(earlier.subsets) for earlier in self.datasets[:dataset])
        return f"{dataset}/{int(self.subset[record]) - first}/{self.names[record]}"


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def build_index(description: Description, prior_loss_weight: float, bad_images: str = FAIL) -> ImageIndex:
    """Finds and opens every picture and its caption.

    Args:
        description: the datasets.
        prior_loss_weight: loss weight of regularisation pictures, times that of their subset; others have only that.
        bad_images: "fail", or "skip" to leave out pictures that cannot be read; they are told in `notes`.

    Raises:
        UserError: with every missing or empty folder, broken picture, unreadable or missing caption or mask.
    """
    problems, notes, rows = Problems(), list[str](), Rows()
    subsets = [subset for dataset in description.datasets for subset in dataset.subsets]
    start = time.monotonic()
    scans = [scan_subset(subset, bad_images, rows, problems, notes) for subset in subsets]
    _report_unused_extensions(subsets, scans, problems)
    names = rows.names.build()
    masks = _find_masks(subsets, scans, names, rows, problems, notes)
    problems.raise_if_any()
    notes += hints_of(time.monotonic() - start, sum(scan.opened.pictures for scan in scans), subsets)
    counts = [scan.pictures for scan in scans]
    dataset_of = [number for number, dataset in enumerate(description.datasets) for _ in dataset.subsets]
    weights = [subset.loss_weight * (prior_loss_weight if subset.is_reg else 1.0) for subset in subsets]
    return ImageIndex(
        datasets=description.datasets,
        width=_column(rows.width, np.int32),
        height=_column(rows.height, np.int32),
        has_alpha=_column(rows.has_alpha, np.bool_),
        repeats=_spread([subset.num_repeats for subset in subsets], counts, np.float64),
        loss_weight=_spread(weights, counts, np.float32),
        subset=_spread(range(len(subsets)), counts, np.int32),
        dataset=_spread(dataset_of, counts, np.int32),
        is_reg=_spread([subset.is_reg for subset in subsets], counts, np.bool_),
        caption_source=_column(rows.caption_source, np.uint8),
        names=names,
        captions=rows.captions.build(),
        roots=tuple(scan.root for scan in scans),
        notes=tuple(notes),
        opened=Opened(sum(scan.opened.pictures for scan in scans), sum(scan.opened.captions for scan in scans)),
        left_out=tuple(problem for scan in scans for problem in scan.left_out),
        masks=masks,
    )


def hints_of(seconds: float, opened: int, subsets: Sequence[SubsetConfig]) -> list[str]:
    """What could make the next start faster than this one of `seconds`, in which so many pictures were opened."""
    if seconds < SLOW_SECONDS or not opened or all(subset.cache_info for subset in subsets):
        return []
    what = f"opening {opened} pictures took {seconds:.0f} seconds"
    return [f"{what}; --cache_info keeps what was read, and the next start opens only what changed"]


def _find_masks(
    subsets: Sequence[SubsetConfig],
    scans: Sequence[Scan],
    names: Texts,
    rows: Rows,
    problems: Problems,
    notes: list[str],
) -> Texts | None:
    """The mask of every picture, "" in subsets without; None where no subset has any."""
    if all(subset.conditioning_data_dir is None for subset in subsets):
        return None
    found = list[str]()
    for subset, scan in zip(subsets, scans, strict=True):
        own = range(len(found), len(found) + scan.pictures)
        if subset.conditioning_data_dir is None:
            found += [""] * scan.pictures
        else:
            sizes = [Size(rows.width[record], rows.height[record]) for record in own]
            own_names = [names[record] for record in own]
            found += find_masks(subset.conditioning_data_dir, own_names, sizes, problems, notes)
    return Texts(found)


def _column(values: array[int], kind: Any) -> NDArray[Any]:
    return np.array(np.frombuffer(values, dtype=values.typecode), dtype=kind)


def _spread(values: Sequence[Any] | range, counts: Sequence[int], kind: Any) -> NDArray[Any]:
    """The value of each subset for each of its pictures."""
    return np.repeat(np.array(values, dtype=kind), counts)


def _report_unused_extensions(subsets: Sequence[SubsetConfig], scans: Sequence[Scan], problems: Problems) -> None:
    """A caption ending that was asked for must be found at least once where it was asked for.

    One given for several folders may be missing in some, as regularisation pictures rarely have captions.
    """
    by_place: dict[str, list[int]] = defaultdict(list)
    for number, subset in enumerate(subsets):
        if subset.caption_extension_from is not None and subset.metadata_file is None and scans[number].pictures:
            by_place[subset.caption_extension_from].append(number)
    for place, numbers in by_place.items():
        if not any(scans[number].has_caption_file for number in numbers):
            folders = [str(subsets[number].home) for number in numbers]
            ending = subsets[numbers[0]].caption_extensions[0]
            what = f"no picture has a caption file ending in {ending} in {some_of(folders[:_NAMES_TOLD], len(folders))}"
            problems.add(what, place, "correct the ending, or remove it: .txt and .caption are found by themselves")
