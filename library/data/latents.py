"""The latents of all pictures, encoded once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from library.core.errors import UserError
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT, SentByValue
from library.data.dataset import draw_latent_noise, make_loader, read_picture
from library.data.index import ImageIndex
from library.data.placement import Placements

Encode = Callable[[Tensor, Tensor], Tensor]  # pixels (1, 3, H, W), latent_noise (1, 4, h, w) -> latents (1, 4, h, w)
Progress = Callable[[int, int], None]  # pictures done, pictures in all


class MemoryLatentStore:
    """One float32 tensor (N, 4, h, w) for each bucket.

    Workers share them: forked ones see the same pages, and for spawned ones torch moves a tensor into shared memory
    when it is first sent, once for all of them.
    """

    def __init__(self, placements: Placements) -> None:
        counts = np.bincount(placements.bucket, minlength=len(placements.buckets))
        self._bucket = placements.bucket
        self._row = _rows_within_bucket(placements.bucket)
        self._latents = [
            torch.full(
                (int(count), LATENT_CHANNELS, size.height // PIXELS_PER_LATENT, size.width // PIXELS_PER_LATENT),
                torch.nan,
            )
            for count, size in zip(counts, placements.buckets, strict=True)
        ]

    def get(self, record: int) -> Tensor:
        """The latents of one picture, (4, h, w) float32, unscaled."""
        return self._latents[int(self._bucket[record])][int(self._row[record])]

    def put(self, record: int, latents: Tensor) -> None:
        """Keeps the latents of one picture, (4, h, w)."""
        self.get(record).copy_(latents)


def fill_memory_store(
    index: ImageIndex,
    placements: Placements,
    encode: Encode,
    seed: int,
    workers: int,
    progress: Progress | None = None,
) -> MemoryLatentStore:
    """Encodes every picture once.

    Args:
        index: all pictures.
        placements: their buckets and crops.
        encode: the VAE: pixels (1, 3, H, W) and the draw (1, 4, h, w) to unscaled latents (1, 4, h, w).
        seed: the run's seed.
        workers: processes that read pictures; 0 reads them in this one.
        progress: told the pictures done and the number of all after each one.

    Raises:
        UserError: when a picture cannot be read, or its latents are not finite; it is named.
    """
    store = MemoryLatentStore(placements)
    loader = make_loader(_Pictures(index, placements, seed), range(len(index)), workers, pin_memory=False)
    for done, picture in enumerate(loader, 1):
        latents = encode_picture(encode, picture.pixels, picture.latent_noise, index.path(picture.record))
        store.put(picture.record, latents)
        if progress is not None:
            progress(done, len(index))
    return store


def encode_picture(encode: Encode, pixels: Tensor, latent_noise: Tensor, path: Path) -> Tensor:
    """The latents (4, h, w) of one picture, (3, H, W) with the VAE's draw (4, h, w).

    One picture at a time, in the cache as without it: in a larger batch the VAE's float results differ in the last
    bits, and caching must not change the training.

    Raises:
        UserError: when they are not finite; the picture is named.
    """
    latents = encode(pixels[None], latent_noise[None])[0]
    if not torch.isfinite(latents).all():
        what = "the VAE turns this picture into numbers that are not finite"
        fix = "train with --mixed_precision no or bf16, use another VAE, or take the picture out"
        raise UserError.of(what, str(path), fix)
    return latents


@dataclass(frozen=True)
class _Picture(SentByValue):
    record: int
    pixels: Tensor  # (3, H, W)
    latent_noise: Tensor  # (4, h, w)


class _Pictures(Dataset[_Picture]):
    """Every picture once, with the VAE's draw."""

    def __init__(self, index: ImageIndex, placements: Placements, seed: int) -> None:
        self._index = index
        self._placements = placements
        self._seed = seed

    def __getitem__(self, record: int) -> _Picture:
        pixels = read_picture(self._index, self._placements, record)
        return _Picture(record, pixels, draw_latent_noise(self._index, self._placements, record, self._seed))


def _rows_within_bucket(bucket: NDArray[np.int32]) -> NDArray[np.int64]:
    """For each picture how many of its bucket come before it."""
    order = np.argsort(bucket, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(bucket))])
    rows = np.empty(len(bucket), dtype=np.int64)
    rows[order] = np.arange(len(bucket)) - starts[bucket[order]]
    return rows
