"""Batches of the pictures that are held out: always the same ones, with the same noise at the same diffusion times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from library.core.randomness import NO_EPOCH, generator
from library.data.augment import Choice
from library.data.batch import SentByValue
from library.data.captions.caption_changes import Moment, change_caption
from library.data.dataset import LatentStore, TextStore, Tokenize
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.data.views import Views, normal

STRATA = 4  # diffusion times at which each picture is measured, one in each quarter of those that are trained

_PLAIN = Choice()
_ANY_MOMENT = Moment(epoch=0, step=0, total_steps=1)  # captions of validation pictures do not change


@dataclass(frozen=True)
class ValidationRequest:
    """One batch: its number among all, and its pictures, which are of one bucket."""

    number: int
    records: tuple[int, ...]


def validation_requests(
    index: ImageIndex, placements: Placements, most: int | None = None
) -> tuple[ValidationRequest, ...]:
    """All batches of a validation, bucket by bucket, of at most as many pictures as those of the training.

    Args:
        index: all pictures; see `library.data.held_out` for those that are held out.
        placements: their buckets.
        most: at most so many batches, spread evenly over all; None for all.
    """
    held_out = np.flatnonzero(index.is_validation)
    bucket_of = np.asarray(placements.bucket)[held_out]
    batches: list[tuple[int, ...]] = []
    for bucket in np.unique(bucket_of).tolist():
        records = held_out[bucket_of == bucket].tolist()
        size = index.datasets[placements.bucket_dataset[bucket]].batch_size
        batches += [tuple(records[start : start + size]) for start in range(0, len(records), size)]
    if most is not None and most < len(batches):
        batches = [batches[number * len(batches) // most] for number in range(most)]
    return tuple(ValidationRequest(number, records) for number, records in enumerate(batches))


@dataclass(frozen=True)
class ValidationDraws:
    """What the noise and the times of validation depend on, beside the name of the picture.

    Attributes:
        seed: of `--validation_seed`.
        min_timestep: the lowest diffusion time.
        max_timestep: times lie below this one.
    """

    seed: int
    min_timestep: int
    max_timestep: int

    def timestep(self, name: str, stratum: int) -> int:
        """The time of a picture in one of the `STRATA` equal parts of all times, drawn within that part."""
        within = generator(self.seed, NO_EPOCH, f"{name}|{stratum}", "validation timestep").random()
        count = self.max_timestep - self.min_timestep
        return self.min_timestep + int((stratum + within) / STRATA * count)


@dataclass(frozen=True)
class ValidationBatch(SentByValue):
    """B pictures of one shape, each at S diffusion times. Either `latents`, or `pixels` with their `latent_noise`."""

    number: int  # of the request
    latents: Tensor | None  # (B, 4, h, w) float32, unscaled
    pixels: Tensor | None  # (B, 3, H, W) float32, -1 to 1
    latent_noise: Tensor | None  # (B, 4, h, w) float32, standard normal
    input_ids: Tensor  # (B, n, L) int64: captions in n chunks
    token_weights: Tensor | None  # (B, n, L) float32; None where captions are read without weights
    text_states: Tensor | None  # (B, R, D) float32: the captions encoded already, or None
    noise: Tensor  # (S, B, 4, h, w) float32, standard normal
    timesteps: Tensor  # (S, B) int64
    names: tuple[str, ...]  # file names, for messages


class ValidationDataset(Dataset[ValidationBatch]):
    """Builds the batches; a request always gives the same one, in whatever run with the same `draws`.

    Args:
        views: all pictures.
        draws: noise and times.
        tokenize: turns captions into token ids and their weights; must be picklable for workers started by spawn.
        store: the encoded pictures, or None to read the files each time.
        texts: the encoded captions, or None to leave that to the objective.
    """

    def __init__(
        self,
        views: Views,
        draws: ValidationDraws,
        tokenize: Tokenize,
        store: LatentStore | None = None,
        texts: TextStore | None = None,
    ) -> None:
        self._views = views
        self._draws = draws
        self._tokenize = tokenize
        self._store = store
        self._texts = texts

    @property
    def is_cached(self) -> bool:
        """Whether no picture has to be read."""
        return self._store is not None

    def __getitem__(self, request: ValidationRequest) -> ValidationBatch:
        """Reads the pictures of a request, or their latents.

        Raises:
            UserError: when a picture cannot be read any more; it is named.
        """
        records = request.records
        names = tuple(self._views.index.names[record] for record in records)
        input_ids, token_weights = self._tokenize([self._caption(record) for record in records])
        texts = self._texts
        return ValidationBatch(
            number=request.number,
            latents=self._latents(records),
            pixels=self._pixels(records),
            latent_noise=None if self._store else torch.stack([self._views.latent_noise(r, _PLAIN) for r in records]),
            input_ids=input_ids,
            token_weights=token_weights,
            text_states=None if texts is None else torch.stack([texts.get(record) for record in records]),
            noise=torch.stack([self._noise(records, stratum) for stratum in range(STRATA)]),
            timesteps=torch.tensor([[self._draws.timestep(n, s) for n in names] for s in range(STRATA)]),
            names=names,
        )

    def _caption(self, record: int) -> str:
        """The caption as it is written, its wildcards drawn once and for all."""
        index = self._views.index
        changes = index.folders[int(index.subset[record])].caption_changes
        draws = generator(self._draws.seed, NO_EPOCH, index.names[record], "validation caption")
        return change_caption(index.caption(record), changes, draws, _ANY_MOMENT)

    def _latents(self, records: Sequence[int]) -> Tensor | None:
        """Latents out of the cache: where it holds distributions, the draw is the one that a file of latents has."""
        if self._store is None:
            return None
        found = []
        for record in records:
            latents = self._store.get(record, _PLAIN).latents
            if self._views.drawing.redraws_latents:
                mean, deviation = latents.chunk(2)
                latents = mean + deviation * self._views.latent_noise(record, _PLAIN)
            found.append(latents)
        return torch.stack(found)

    def _pixels(self, records: Sequence[int]) -> Tensor | None:
        if self._store is not None:
            return None
        views = self._views
        return torch.stack([views.read(record, views.fixed(record, _PLAIN)).pixels for record in records])

    def _noise(self, records: Sequence[int], stratum: int) -> Tensor:
        """(B, 4, h, w)."""
        index, placements = self._views.index, self._views.placements
        keys = [f"{index.names[record]}|{stratum}" for record in records]
        draws = [generator(self._draws.seed, NO_EPOCH, key, "validation noise") for key in keys]
        return torch.stack([normal(d, placements.bucket_size(r)) for d, r in zip(draws, records, strict=True)])
