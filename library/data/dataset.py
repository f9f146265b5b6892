"""From a batch request to a batch. Stateless: any worker builds any batch alone, and always the same one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from types import FrameType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from library.core.errors import Problem, UserError
from library.core.signals import handled_by
from library.core.sizes import Size
from library.data.augment import Choice
from library.data.batch import Batch
from library.data.captions.caption_changes import Moment
from library.data.planner import BatchRequest
from library.data.views import Views

# captions -> token ids (B, n, L) int64 in n chunks, and their weights (B, n, L) float32 or None
Tokenize = Callable[[list[str]], tuple[Tensor, Tensor | None]]
ItemT = TypeVar("ItemT")
_LOOK_FOR_TRAINER = 2.0  # seconds
_USUALLY_AHEAD = 2  # items that a worker has ready


class Drawn(Protocol):
    """What is drawn for the diffusion of one use; see `Batch` for the fields, here without the first dimension."""

    @property
    def noise(self) -> Tensor: ...
    @property
    def timestep(self) -> int: ...
    @property
    def input_noise(self) -> Tensor | None: ...
    @property
    def offset_noise(self) -> Tensor | None: ...
    @property
    def offset_strength(self) -> Tensor | None: ...


# epoch, name of the use within it, size of the picture in pixels
DrawNoise = Callable[[int, str, Size], Drawn]


class Encoded(NamedTuple):
    """One look of a picture in a cache.

    Attributes:
        latents: (4, h, w) float32, unscaled; or (8, h, w), mean and deviation, where each use draws for itself.
        mask: (1, h, w) float32, weights of the loss; None where all are 1.
    """

    latents: Tensor
    mask: Tensor | None = None


class LatentStore(Protocol):
    """Where encoded pictures are kept."""

    def get(self, record: int, choice: Choice) -> Encoded:
        """One look of a picture; `choice` is one of `Views.choices`."""


class TextStore(Protocol):
    """Where encoded captions are kept."""

    def get(self, record: int) -> Tensor:
        """The text states of a picture's caption, (R, D) float32."""


class TrainingDataset(Dataset[Batch]):
    """Builds batches.

    Args:
        views: all pictures, and how uses see them.
        tokenize: turns captions into token ids and their weights; must be picklable for workers started by spawn.
        draw_noise: the draws of each use that concern diffusion; picklable as well.
        store: the encoded pictures, or None to read the files each time.
        texts: the encoded captions, or None to leave that to the objective.
    """

    def __init__(
        self,
        views: Views,
        tokenize: Tokenize,
        draw_noise: DrawNoise,
        store: LatentStore | None = None,
        texts: TextStore | None = None,
    ) -> None:
        self._views = views
        self._index = views.index
        self._drawing = views.drawing
        self._tokenize = tokenize
        self._draw_noise = draw_noise
        self._store = store
        self._texts = texts

    def __getitem__(self, request: BatchRequest) -> Batch:
        """Reads the pictures of a request (or their latents) and makes its random draws.

        Raises:
            UserError: when a picture cannot be read any more; it is named.
        """
        index, epoch = self._index, request.epoch
        records = list(request.records)
        uses = [_Use(r, self._views.use(r, n)) for r, n in zip(records, request.repeats, strict=True)]
        latents, pixels, latent_noise, masks = self._pictures(uses, epoch)
        moment = Moment(epoch, request.step, self._drawing.total_steps)
        input_ids, token_weights = self._tokenize([self._views.caption(use.record, use.key, moment) for use in uses])
        size = self._views.placements.bucket_size(records[0])
        drawn = [self._draw_noise(epoch, use.key, size) for use in uses]
        return Batch(
            latents=latents,
            pixels=pixels,
            latent_noise=latent_noise,
            masks=masks,
            input_ids=input_ids,
            token_weights=token_weights,
            text_states=None if self._texts is None else torch.stack([self._texts.get(record) for record in records]),
            noise=torch.stack([draw.noise for draw in drawn]),
            input_noise=_stack([draw.input_noise for draw in drawn]),
            offset_noise=_stack([draw.offset_noise for draw in drawn]),
            offset_strength=_stack([draw.offset_strength for draw in drawn]),
            timesteps=torch.tensor([draw.timestep for draw in drawn], dtype=torch.int64),
            loss_weights=torch.from_numpy(np.asarray(index.loss_weight)[records]),
            is_reg=torch.from_numpy(np.asarray(index.is_reg)[records]),
            names=tuple(index.names[record] for record in records),
            epoch=epoch,
            position=request.position,
            closes_update=request.closes_update,
            closes_epoch=request.closes_epoch,
            loss_scale=request.loss_scale,
        )

    def _pictures(self, uses: Sequence[_Use], epoch: int) -> _Pictures:
        choices = [self._views.choose(use.record, epoch, use.key) for use in uses]
        looks = list(zip(uses, choices, strict=True))
        if self._store is not None:
            found = [self._store.get(use.record, choice) for use, choice in looks]
            latents = [self._draw_latents(entry, use, epoch) for entry, use in zip(found, uses, strict=True)]
            return _Pictures(torch.stack(latents), None, None, _stack_masks([entry.mask for entry in found]))
        seen = [
            self._views.read(use.record, self._views.of_use(use.record, choice, epoch, use.key))
            for use, choice in looks
        ]
        noise = [self._draw_latent_noise(use, choice, epoch) for use, choice in looks]
        masks = _stack_masks([look.mask for look in seen])
        return _Pictures(None, torch.stack([look.pixels for look in seen]), torch.stack(noise), masks)

    def _draw_latents(self, entry: Encoded, use: _Use, epoch: int) -> Tensor:
        """Latents (4, h, w) of one use."""
        if not self._drawing.redraws_latents:
            return entry.latents
        mean, deviation = entry.latents.chunk(2)
        return mean + deviation * self._views.new_latent_noise(use.record, epoch, use.key)

    def _draw_latent_noise(self, use: _Use, choice: Choice, epoch: int) -> Tensor:
        if self._drawing.redraws_latents:
            return self._views.new_latent_noise(use.record, epoch, use.key)
        return self._views.latent_noise(use.record, choice)


class _Use(NamedTuple):
    """One use of a picture; `key` names it within its epoch."""

    record: int
    key: str


class _Pictures(NamedTuple):
    """The fields of a `Batch` that pictures give."""

    latents: Tensor | None
    pixels: Tensor | None
    latent_noise: Tensor | None
    masks: Tensor | None


def _stack(drawn: Sequence[Tensor | None]) -> Tensor | None:
    """What every use has, or none."""
    there = [tensor for tensor in drawn if tensor is not None]
    return torch.stack(there) if there else None


def _stack_masks(masks: Sequence[Tensor | None]) -> Tensor | None:
    """Masks of a batch, (B, 1, h, w); pictures without one count fully. None where no picture has one."""
    shape = next((mask.shape for mask in masks if mask is not None), None)
    if shape is None:
        return None
    return torch.stack([torch.ones(shape) if mask is None else mask for mask in masks])


class Loader(Generic[ItemT]):
    """Iterates a dataset in the order of its requests, in worker processes or in this one.

    A `UserError` in a worker arrives here as itself; DataLoader alone would re-create it from a traceback's text.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[ItemT]:
        with _signals_wait():
            items = iter(self._items)  # starts the workers
        for item in items:
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
    ahead: int = 0,
) -> Loader[ItemT]:
    """A loader whose workers start once and stay.

    Args:
        dataset: builds one item a request.
        stream: the requests, such as a `RequestStream`.
        workers: processes that build batches; 0 builds them in this process.
        pin_memory: copy batches into page-locked memory, for faster transfer to a GPU.
        start_method: "fork", "spawn" or "forkserver"; None takes the platform's own.
        ahead: items that all workers together have ready at least; two for each worker are usual.
    """
    if workers == 0:
        return Loader(_InThisProcess(dataset, stream, pin_memory))
    loader: DataLoader[Any] = DataLoader(
        _Guarded(dataset),
        sampler=stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
        persistent_workers=True,
        prefetch_factor=max(_USUALLY_AHEAD, -(-ahead // workers)),
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


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM are only noted; afterwards they do what they would have done.

    Python swallows what a handler raises while it forks: a Ctrl-C would be lost, and a lock of `logging` stay taken.
    A worker begins with what is in force here, so a signal to all processes does not end it before `_begin_worker`.
    """
    came: dict[int, FrameType | None] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came[number] = frame

    former: dict[int, Any] = {}
    try:
        with handled_by(note, (signal.SIGTERM, signal.SIGINT)) as former:  # the one that raises is put back last
            yield
    finally:
        for number, frame in came.items():
            handler = former.get(number)
            if callable(handler):  # not by a second signal, which would be counted as one
                handler(number, frame)
            else:
                signal.raise_signal(number)


def _begin_worker(worker: int) -> None:
    """One thread for each; and signals that go to all processes are for the trainer, who still wants batches.

    Ends with the trainer, also where that was killed: a worker that waits to hand over a batch would never notice.
    """
    torch.set_num_threads(1)
    Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    signal.set_wakeup_fd(-1)  # a forked process has that of the trainer, who would take its signals for his own
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _pass_over_once)


def _end_without(trainer: int) -> None:
    """Ends this process when its parent is gone; on Windows, where the number stays, the loader's own watch does."""
    while os.getppid() == trainer:
        time.sleep(_LOOK_FOR_TRAINER)
    os.kill(os.getpid(), signal.SIGKILL)


def _pass_over_once(number: int, frame: FrameType | None) -> None:
    """What comes twice is meant: a loader that is shut down sends it again to a worker that does not end."""
    signal.signal(number, signal.SIG_DFL)
