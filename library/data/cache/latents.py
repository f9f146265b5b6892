"""The latents of all pictures, encoded once and kept in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from library.data.augment import Choice
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT, SentByValue
from library.data.cache.filling import (
    ALONE,
    BatchEncoder,
    Encoder,
    Processes,
    Progress,
    Variants,
    draw_latents,
    list_variants,
    may_have_masks,
    read_looks,
    sides_of,
    variant_counts,
)
from library.data.dataset import Encoded, make_loader
from library.data.index.columns import SharedColumns
from library.data.views import Views


class MemoryLatentStore(SharedColumns):
    """For each bucket one float32 tensor of all looks, (N, 4, h, w), or (N, 8, h, w) where each use draws for itself.

    Workers share them: forked ones see the same pages, and for spawned ones torch moves a tensor into shared memory
    when it is first sent, once for all of them.
    """

    def __init__(self, views: Views) -> None:
        index, placements = views.index, views.placements
        subsets = np.asarray(index.subset)
        counts = variant_counts(views)[subsets]
        self._sides = np.fromiter((len(sides_of(views, record)) for record in range(len(index))), dtype=np.int64)
        self._bucket = np.asarray(placements.bucket)
        self._first, totals = _rows_within_bucket(self._bucket, counts * self._sides, len(placements.buckets))
        channels = LATENT_CHANNELS * (2 if views.drawing.redraws_latents else 1)
        may_have_mask = np.array([may_have_masks(subset) for subset in index.folders], dtype=np.bool_)[subsets]
        self._latents, self._masks = list[Tensor](), list[Tensor | None]()
        for bucket, size in enumerate(placements.buckets):
            cells = size.height // PIXELS_PER_LATENT, size.width // PIXELS_PER_LATENT
            total = int(totals[bucket])
            self._latents.append(torch.zeros(total, channels, *cells))
            has_masks = bool(may_have_mask[self._bucket == bucket].any())
            self._masks.append(torch.zeros(total, 1, *cells) if has_masks else None)
        self._has_mask = torch.zeros(len(index), dtype=torch.uint8)
        self.redone = torch.zeros(len(index), dtype=torch.uint8)  # pictures that were encoded again in float

    def get(self, record: int, choice: Choice) -> Encoded:
        """One look of a picture."""
        bucket, row = self._place(record, choice)
        masks = self._masks[bucket]
        return Encoded(self._latents[bucket][row], masks[row] if masks is not None and self._has_mask[record] else None)

    def put(self, record: int, choice: Choice, look: Encoded) -> None:
        """Keeps one look of a picture."""
        bucket, row = self._place(record, choice)
        self._latents[bucket][row].copy_(look.latents)
        masks = self._masks[bucket]
        if look.mask is not None and masks is not None:
            masks[row].copy_(look.mask)
            self._has_mask[record] = 1

    def exchange(self, processes: Processes) -> None:
        """Adds what other processes have put."""
        for tensor in (*self._latents, *(masks for masks in self._masks if masks is not None)):
            processes.exchange(tensor)
        for column in (self._has_mask, self.redone):
            column.copy_(processes.total(column))

    def _place(self, record: int, choice: Choice) -> tuple[int, int]:
        row = int(self._first[record]) + choice.variant * int(self._sides[record]) + choice.flipped
        return int(self._bucket[record]), row


def fill_memory_store(
    views: Views,
    encoder: Encoder,
    workers: int,
    batch_size: int = 1,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> MemoryLatentStore:
    """Encodes every look of every picture once.

    Args:
        views: all pictures and their looks.
        encoder: the VAE.
        workers: processes that read pictures; 0 reads them in this one.
        batch_size: looks of one shape that are encoded together.
        processes: who shares the work; each of them has all latents in the end.
        progress: told the files done and the number of all that this process looks after.

    Raises:
        UserError: when a picture cannot be read, or its latents are not finite; it is named.
    """
    store, variants = MemoryLatentStore(views), list_variants(views, processes)
    loader = make_loader(_Pictures(views, variants), range(len(variants.records)), workers, pin_memory=False)
    for done, finished in enumerate(BatchEncoder[_Picture](encoder, batch_size, views.index).encode(loader), 1):
        picture = finished.item
        for side, distribution in enumerate(finished.rows):
            latents = distribution if picture.noise is None else draw_latents(distribution, picture.noise[side])
            mask = picture.mask.flip(-1) if picture.mask is not None and side else picture.mask
            store.put(picture.record, Choice(picture.variant, bool(side)), Encoded(latents, mask))
        store.redone[picture.record] |= int(finished.was_redone)
        if progress is not None:
            progress(done, len(variants.records))
    store.exchange(processes)
    return store


@dataclass(frozen=True)
class _Picture(SentByValue):
    """One variant of a picture, plain and perhaps mirrored; see `filling.Looks`."""

    record: int
    variant: int
    pixels: Tensor
    noise: Tensor | None
    mask: Tensor | None


class _Pictures(Dataset[_Picture]):
    """Every variant once."""

    def __init__(self, views: Views, variants: Variants) -> None:
        self._views = views
        self._variants = variants

    def __getitem__(self, number: int) -> _Picture:
        record, variant = int(self._variants.records[number]), int(self._variants.numbers[number])
        return _Picture(record, variant, *read_looks(self._views, record, variant))


def _rows_within_bucket(
    bucket: NDArray[np.int32], rows: NDArray[np.int64], buckets: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first of each picture's `rows` in the tensor of its bucket, and how many rows each bucket has."""
    order = np.argsort(bucket, kind="stable")
    totals = np.bincount(bucket, weights=rows, minlength=buckets).astype(np.int64)
    starts = np.cumsum(totals) - totals
    first = np.empty(len(bucket), dtype=np.int64)
    first[order] = np.cumsum(rows[order]) - rows[order] - starts[bucket[order]]
    return first, totals
