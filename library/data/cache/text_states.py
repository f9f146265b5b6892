"""What the text encoder makes of captions that never vary, encoded once and kept in memory or on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from library.core.errors import UserError
from library.core.randomness import NO_EPOCH, generator
from library.data.batch import SentByValue
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.filling import ALONE, Processes, Progress
from library.data.cache.text_files import (
    TEXT_REASONS,
    TextFingerprint,
    TextState,
    caption_digest,
    read_texts,
    write_texts,
)
from library.data.captions.caption_changes import Moment, change_caption
from library.data.dataset import make_loader
from library.data.index.columns import SharedColumns
from library.data.index.index import ImageIndex

EncodeCaption = Callable[[str], Tensor]  # caption -> its states, (R, D) float32 on the CPU

_ANY_MOMENT = Moment(epoch=0, step=0, total_steps=1)
_MOST_REMEMBERED = 64  # captions, of a quarter of a megabyte each


def constant_caption(index: ImageIndex, record: int) -> str:
    """The caption that every use of a picture has; its changes must be such that it does not vary."""
    changes = index.folders[int(index.subset[record])].caption_changes
    return change_caption(index.caption(record), changes, generator(0, NO_EPOCH, "", "caption"), _ANY_MOMENT)


class MemoryTextStore(SharedColumns):
    """The states of every distinct caption once, (K, R, D) float32; workers share them."""

    def __init__(self, index: ImageIndex) -> None:
        numbers: dict[str, int] = {}
        self.captions: list[str] = []
        self._row = np.zeros(len(index), dtype=np.int32)
        for record in range(len(index)):
            caption = constant_caption(index, record)
            digest = caption_digest(caption)
            if digest not in numbers:
                numbers[digest] = len(numbers)
                self.captions.append(caption)
            self._row[record] = numbers[digest]
        self._states = torch.zeros(0, 0, 0)

    def get(self, record: int) -> Tensor:
        """The text states of a picture's caption, (R, D)."""
        return self._states[int(self._row[record])]

    def fill(self, encode: EncodeCaption, processes: Processes, progress: Progress | None) -> None:
        """Encodes every caption; done once."""
        captions, self.captions = self.captions, []
        share = processes.share(len(captions))
        first = encode(captions[0])  # tells all processes the shape
        self._states = torch.zeros(len(captions), *first.shape)
        for done, number in enumerate(share, 1):
            self._states[number] = first if number == 0 else encode(captions[number])
            if progress is not None:
                progress(done, len(share))
        processes.exchange(self._states)


def fill_memory_texts(
    index: ImageIndex, encode: EncodeCaption, processes: Processes = ALONE, progress: Progress | None = None
) -> MemoryTextStore:
    """Encodes every distinct caption once, each alone.

    Args:
        index: all pictures.
        encode: the text encoder.
        processes: who shares the work; each of them has all states in the end.
        progress: told the captions done and the number of all that this process looks after.
    """
    store = MemoryTextStore(index)
    store.fill(encode, processes, progress)
    return store


@dataclass(frozen=True)
class TextFiles:
    """What the entries of a run must be; `encoder` and `reading` as in `TextFingerprint`."""

    index: ImageIndex
    paths: EntryPaths
    encoder: str
    reading: str

    def expected(self, record: int) -> TextFingerprint:
        """The fingerprint of the states of a picture's caption."""
        return TextFingerprint(caption_digest(constant_caption(self.index, record)), self.encoder, self.reading)


@dataclass(frozen=True)
class DiskTextStore:
    """Reads one file at a time, when a batch asks for it."""

    files: TextFiles

    def get(self, record: int) -> Tensor:
        """The text states of a picture's caption, (R, D).

        Raises:
            UserError: when the file is not any more what it was at the start.
        """
        path = self.files.paths.texts(record)
        entry = read_texts(path, self.files.expected(record))
        if entry.states is None:
            what = f"the cached text states are not those of the start any more ({TEXT_REASONS[entry.state]})"
            raise UserError.of(what, str(path), "start again; runs with other models must not share a folder's caches")
        return torch.from_numpy(entry.states)


@dataclass(frozen=True)
class TextReuse:
    """How many files had which state before the cache was filled."""

    counts: Mapping[TextState, int]

    @property
    def encoded(self) -> int:
        return sum(self.counts[state] for state in TEXT_REASONS)

    def line(self) -> str:
        """What the start report says."""
        line = f"text states on disk: {self.counts[TextState.FITS]} reused, {self.encoded} written"
        reasons = [f"{self.counts[state]} {reason}" for state, reason in TEXT_REASONS.items() if self.counts[state]]
        return f"{line} ({', '.join(reasons)})" if reasons else line


def fill_disk_texts(
    files: TextFiles,
    encode: EncodeCaption,
    workers: int,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> tuple[DiskTextStore, TextReuse]:
    """Encodes the caption of every picture whose entry does not fit, and writes it at once.

    Args:
        files: what the entries must be.
        encode: the text encoder; equal captions that follow one another are encoded once.
        workers: processes that read entries; 0 reads them in this one.
        processes: who else fills the same cache.
        progress: told the pictures done and the number of all that this process looks after.

    Raises:
        UserError: when an entry cannot be read or written.
    """
    share = processes.share(len(files.index))
    counts = torch.zeros(len(TextState), dtype=torch.int64)
    remembered: OrderedDict[str, Tensor] = OrderedDict()
    for done, looked in enumerate(make_loader(_Entries(files), share, workers, pin_memory=False), 1):
        counts[looked.state] += 1
        if looked.state is not TextState.FITS:
            expected = files.expected(looked.record)
            if expected.caption not in remembered:
                remembered[expected.caption] = encode(constant_caption(files.index, looked.record))
            remembered.move_to_end(expected.caption)
            if len(remembered) > _MOST_REMEMBERED:
                remembered.popitem(last=False)
            write_texts(files.paths.texts(looked.record), remembered[expected.caption].numpy(), expected)
        if progress is not None:
            progress(done, len(share))
    total = processes.total(counts).tolist()
    return DiskTextStore(files), TextReuse({state: total[state] for state in TextState})


@dataclass(frozen=True)
class _Looked(SentByValue):
    record: int
    state: TextState


class _Entries(Dataset[_Looked]):
    """The state of every entry."""

    def __init__(self, files: TextFiles) -> None:
        self._files = files

    def __getitem__(self, record: int) -> _Looked:
        files = self._files
        return _Looked(record, read_texts(files.paths.texts(record), files.expected(record)).state)
