"""What every filling of a cache has in common: who encodes what, in which order, and how many at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.core.errors import UserError
from library.core.wording import some_of
from library.data.augment import Choice, choices_of
from library.data.description.config import SubsetConfig
from library.data.index.index import ImageIndex
from library.data.views import Views

Progress = Callable[[int, int], None]  # pictures done, pictures in all

_NAMES_TOLD = 3
_EXCHANGED_AT_ONCE = 1 << 24  # numbers; 64 MiB


class Encoding(NamedTuple):
    """What a VAE gives for pictures.

    Attributes:
        distribution: (B, 8, h, w) float32 on the CPU: mean and standard deviation of the latents, unscaled.
        redone: rows that were not finite in the precision that was asked for, and were encoded again in float32.
    """

    distribution: Tensor
    redone: tuple[int, ...] = ()


class Encoder(Protocol):
    """A VAE."""

    def distribution(self, pixels: Tensor) -> Encoding:
        """Encodes pictures (B, 3, H, W), from -1 to 1, together."""


def draw_latents(distribution: Tensor, noise: Tensor) -> Tensor:
    """Latents (…, 4, h, w) from mean and deviation (…, 8, h, w) and standard normal numbers (…, 4, h, w)."""
    mean, deviation = distribution.chunk(2, dim=-3)
    return mean + deviation * noise


@dataclass(frozen=True)
class Processes:
    """Processes that fill one cache together: each encodes its share.

    Attributes:
        total: the sum of a whole-number tensor over all processes; every process has to call it.
    """

    number: int
    count: int
    total: Callable[[Tensor], Tensor]

    def share(self, items: int) -> range:
        """The numbers of the items of this process."""
        return range(self.number, items, self.count)

    def exchange(self, numbers: Tensor) -> None:
        """Fills in place what the others have made: of a contiguous float32 tensor that is 0 wherever they work.

        Bits are added as whole numbers, so that every number arrives as it is; in pieces, for the sake of memory.
        """
        if self.count == 1:
            return
        for piece in numbers.view(-1).view(torch.int32).split(_EXCHANGED_AT_ONCE):
            piece.copy_(self.total(piece))


ALONE = Processes(0, 1, lambda tensor: tensor)


class Variants(NamedTuple):
    """Variants of pictures, bucket by bucket, so that pictures of one shape follow one another."""

    records: NDArray[np.int64]
    numbers: NDArray[np.int64]


def list_variants(views: Views, processes: Processes) -> Variants:
    """The share of this process. All variants of a picture are in one share."""
    records = np.argsort(views.placements.bucket, kind="stable").astype(np.int64)
    records = records[processes.number :: processes.count]
    counts = variant_counts(views)[np.asarray(views.index.subset)[records]]
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    return Variants(np.repeat(records, counts), np.arange(int(counts.sum()), dtype=np.int64) - firsts)


def variant_counts(views: Views) -> NDArray[np.int64]:
    """The fixed crops and colours that a picture of each subset has."""
    found = [choices_of(subset.augmentations, views.drawing.variants) for subset in views.index.folders]
    return np.array([1 + max(choice.variant for choice in choices) for choices in found], dtype=np.int64)


def may_have_masks(subset: SubsetConfig) -> bool:
    """Whether pictures of a subset can have weights of the loss."""
    return subset.alpha_mask or subset.conditioning_data_dir is not None


def sides_of(views: Views, record: int) -> tuple[bool, ...]:
    """The looks of each variant: False for the plain one, True for the mirrored one."""
    return (False, True) if views.augmentations(record).flip else (False,)


class Looks(NamedTuple):
    """One variant of a picture, plain and perhaps mirrored.

    Attributes:
        pixels: (K, 3, H, W) float32, -1 to 1.
        noise: the VAE's draw for each, (K, 4, h, w); None where each use draws for itself.
        mask: (1, h, w) of the plain one, or None.
    """

    pixels: Tensor
    noise: Tensor | None
    mask: Tensor | None


def read_looks(views: Views, record: int, variant: int) -> Looks:
    """Reads the file once; the mirrored look is what reading it mirrored would give.

    Raises:
        UserError: when the file is no readable picture; it is named.
    """
    plain = views.read(record, views.fixed(record, Choice(variant)))
    sides = sides_of(views, record)
    pixels = torch.stack([plain.pixels.flip(-1) if flipped else plain.pixels for flipped in sides])
    if views.drawing.redraws_latents:
        return Looks(pixels, None, plain.mask)
    noise = torch.stack([views.latent_noise(record, Choice(variant, flipped)) for flipped in sides])
    return Looks(pixels, noise, plain.mask)


class HasPixels(Protocol):
    """Something that may have pictures (K, 3, H, W) to encode."""

    @property
    def record(self) -> int: ...
    @property
    def pixels(self) -> Tensor | None: ...


ItemT = TypeVar("ItemT", bound=HasPixels)


@dataclass
class Finished(Generic[ItemT]):
    """An item and, row by row, the distributions (8, h, w) of its pictures."""

    item: ItemT
    rows: list[Tensor] = field(default_factory=list)
    was_redone: bool = False

    @property
    def is_complete(self) -> bool:
        return self.item.pixels is None or len(self.rows) == len(self.item.pixels)


class BatchEncoder(Generic[ItemT]):
    """Encodes the pictures of items in batches of one size.

    With a size of 1 the numbers are those that are made without a cache. Of larger batches only equal shapes share
    one, and an incomplete one is filled up with copies of its last picture: what a VAE makes of a picture depends, in
    the last bits, on how many are encoded together, but not on which ones (seen on CPUs).
    """

    def __init__(self, encoder: Encoder, batch_size: int, index: ImageIndex) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._index = index
        self._waiting: deque[Finished[ItemT]] = deque()
        self._rows: list[tuple[Finished[ItemT], Tensor]] = []  # not encoded yet; all of one shape

    def encode(self, items: Iterable[ItemT]) -> Iterator[Finished[ItemT]]:
        """Every item as soon as its pictures are encoded; those without pictures at once, whatever waits before them.

        Raises:
            UserError: when a picture's latents are not finite; it is named.
        """
        for item in items:
            new = Finished(item)
            if item.pixels is None:
                yield new
                continue
            pixels = list(item.pixels)
            if self._rows and self._rows[0][1].shape != pixels[0].shape:
                self._encode_rows(len(self._rows))
            self._waiting.append(new)
            self._rows += [(new, picture) for picture in pixels]
            while len(self._rows) >= self._batch_size:
                self._encode_rows(self._batch_size)
            yield from self._finished()
        self._encode_rows(len(self._rows))
        yield from self._finished()

    def _finished(self) -> Iterator[Finished[ItemT]]:
        while self._waiting and self._waiting[0].is_complete:
            yield self._waiting.popleft()

    def _encode_rows(self, count: int) -> None:
        if not count:
            return
        rows, self._rows = self._rows[:count], self._rows[count:]
        pictures = [picture for _, picture in rows]
        filled_up = [*pictures, *[pictures[-1]] * (self._batch_size - count)]
        encoding = self._encoder.distribution(torch.stack(filled_up))
        for number, (target, _) in enumerate(rows):
            distribution = encoding.distribution[number]
            refuse_not_finite(distribution, self._index.path(target.item.record))
            target.rows.append(distribution)
            target.was_redone |= number in encoding.redone


def refuse_not_finite(distribution: Tensor, picture: Path | str) -> None:
    """Raises:
    UserError: when a picture's latents are not finite; it is named.
    """
    if not torch.isfinite(distribution).all():
        what = "the VAE turns this picture into numbers that are not finite"
        raise UserError.of(what, str(picture), "use another VAE, or take the picture out")


def describe_redone(index: ImageIndex, redone: Sequence[int], precision: str) -> str | None:
    """What the start report says of pictures whose latents were not finite at first."""
    if not redone:
        return None
    names = some_of([index.names[record] for record in redone[:_NAMES_TOLD]], len(redone))
    return f"pictures that overflow in {precision} and were encoded in float: {len(redone)} ({names})"
