"""From a batch request to a batch. Stateless: any worker builds any batch alone, and always the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from library.core.errors import Problem, UserError
from library.core.randomness import NO_EPOCH, generator
from library.core.sizes import Size
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT, Batch
from library.data.caption_changes import change_caption
from library.data.images import load_pixels, to_tensor
from library.data.index import ImageIndex
from library.data.placement import Placements
from library.data.planner import BatchRequest

# captions -> token ids (B, n, L) int64 in n chunks, and their weights (B, n, L) float32 or None
Tokenize = Callable[[list[str]], tuple[Tensor, Tensor | None]]
ItemT = TypeVar("ItemT")


class LatentStore(Protocol):
    """Where encoded pictures are kept."""

    def get(self, record: int) -> Tensor:
        """The latents of one picture, (4, h, w) float32, unscaled."""


class TrainingDataset(Dataset[Batch]):
    """Builds batches.

    Args:
        index: all pictures.
        placements: their buckets and crops.
        tokenize: turns captions into token ids and their weights; must be picklable for workers started by spawn.
        store: the encoded pictures, or None to read the files each time.
        seed: the run's seed.
        num_timesteps: length of the noise schedule.
    """

    def __init__(
        self,
        index: ImageIndex,
        placements: Placements,
        tokenize: Tokenize,
        store: LatentStore | None,
        seed: int,
        num_timesteps: int = 1000,
    ) -> None:
        self._index = index
        self._placements = placements
        self._tokenize = tokenize
        self._store = store
        self._seed = seed
        self._num_timesteps = num_timesteps

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Reads the pictures of a request (or their latents) and makes its random draws.

        Raises:
            UserError: when a picture cannot be read any more; it is named.
        """
        records = list(request.records)
        latents = pixels = latent_noise = None
        if self._store is not None:
            latents = torch.stack([self._store.get(record) for record in records])
        else:
            pixels = torch.stack([read_picture(self._index, self._placements, record) for record in records])
            latent_noise = torch.stack(
                [draw_latent_noise(self._index, self._placements, record, self._seed) for record in records]
            )
        keys = [f"{self._index.key(r)}#{n}" for r, n in zip(records, request.repeats, strict=True)]
        size = self._placements.bucket_size(records[0])
        input_ids, token_weights = self._tokenize(
            [self._draw_caption(request.epoch, r, key) for r, key in zip(records, keys, strict=True)]
        )
        return Batch(
            latents=latents,
            pixels=pixels,
            latent_noise=latent_noise,
            input_ids=input_ids,
            token_weights=token_weights,
            noise=torch.stack([_normal(generator(self._seed, request.epoch, key, "noise"), size) for key in keys]),
            timesteps=torch.tensor([self._draw_timestep(request.epoch, key) for key in keys], dtype=torch.int64),
            loss_weights=torch.from_numpy(self._index.loss_weight[records]),
            is_reg=torch.from_numpy(self._index.is_reg[records]),
            names=tuple(self._index.names[record] for record in records),
            epoch=request.epoch,
            position=request.position,
            closes_update=request.closes_update,
            loss_scale=request.loss_scale,
        )

    def _draw_caption(self, epoch: int, record: int, key: str) -> str:
        changes = self._index.folders[int(self._index.subset[record])].caption_changes
        return change_caption(self._index.caption(record), changes, generator(self._seed, epoch, key, "caption"))

    def _draw_timestep(self, epoch: int, key: str) -> int:
        return int(generator(self._seed, epoch, key, "timestep").integers(0, self._num_timesteps))


def read_picture(index: ImageIndex, placements: Placements, record: int) -> Tensor:
    """The training pixels of one picture, (3, H, W) float32 from -1 to 1; raises UserError naming a broken file."""
    pixels = load_pixels(index.path(record), placements.resized_size(record), placements.crop_box(record))
    return to_tensor(pixels)


def draw_latent_noise(index: ImageIndex, placements: Placements, record: int, seed: int) -> Tensor:
    """The VAE's own draw for one picture, (4, h, w): the same in every epoch, so that caching changes nothing."""
    return _normal(generator(seed, NO_EPOCH, index.key(record), "latent"), placements.bucket_size(record))


def _normal(draws: np.random.Generator, size: Size) -> Tensor:
    shape = (LATENT_CHANNELS, size.height // PIXELS_PER_LATENT, size.width // PIXELS_PER_LATENT)
    return torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))


class Loader(Generic[ItemT]):
    """Iterates a dataset in the order of its requests, in worker processes or in this one.

    A `UserError` in a worker arrives here as itself; DataLoader alone would re-create it from a traceback's text.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[ItemT]:
        for item in self._items:
            if isinstance(item, _Failure):
                raise UserError(item.problems)
            yield item


@dataclass(frozen=True)
class _InThisProcess:
    """What DataLoader does without workers, and nothing beside it."""

    dataset: Dataset[Any]
    stream: Iterable[Any]
    pin_memory: bool

    def __iter__(self) -> Iterator[Any]:
        for request in self.stream:
            item = self.dataset[request]
            yield item.pin_memory() if self.pin_memory else item


def make_loader(
    dataset: Dataset[ItemT],
    stream: Iterable[Any],
    workers: int,
    pin_memory: bool,
    start_method: str | None = None,
) -> Loader[ItemT]:
    """A loader whose workers start once and stay.

    Args:
        dataset: builds one item a request.
        stream: the requests, such as a `RequestStream`.
        workers: processes that build batches; 0 builds them in this process.
        pin_memory: copy batches into page-locked memory, for faster transfer to a GPU.
        start_method: "fork", "spawn" or "forkserver"; None takes the platform's own.
    """
    if workers == 0:
        return Loader(_InThisProcess(dataset, stream, pin_memory))
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),
        sampler=stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_use_one_thread,
        persistent_workers=True,
        multiprocessing_context=start_method,
        generator=torch.Generator(),  # else starting an iteration would draw from the global generator
    )
    return Loader(loader)


@dataclass(frozen=True)
class _Failure:
    """A user's problem on its way from a worker to the main process."""

    problems: tuple[Problem, ...]


class _Guarded(Dataset[Any]):
    """Turns a `UserError` into a value that survives the way between processes."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._dataset[request]
        except UserError as error:
            return _Failure(error.problems)


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)
