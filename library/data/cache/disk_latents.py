"""The latents of all pictures, encoded once and kept on disk, where the next run finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from library.core.errors import UserError
from library.data.augment import Choice
from library.data.batch import SentByValue
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.filling import (
    ALONE,
    BatchEncoder,
    Encoder,
    Finished,
    Processes,
    Progress,
    Variants,
    draw_latents,
    list_variants,
    read_looks,
    sides_of,
)
from library.data.cache.foreign_latents import flip_file
from library.data.cache.latent_files import (
    DIGEST_BYTES,
    NO_MASK,
    REASONS,
    UNKNOWN_MASK,
    USABLE,
    Fingerprint,
    Look,
    State,
    picture_digest,
    read_entry,
    write_entry,
)
from library.data.cache.trusted import refuse_lacking
from library.data.dataset import Encoded, make_loader
from library.data.index.index import ImageIndex
from library.data.views import Views

_MOST_READINGS = 5  # of a picture that changes each time


@dataclass(frozen=True)
class VaeWork:
    """How pictures are encoded: digest of the weights that encode, number format, pictures encoded together."""

    digest: str
    precision: str = "float"
    batch_size: int = 1


@dataclass(frozen=True)
class LatentFiles:
    """What the entries of a run must be.

    Attributes:
        trusts_foreign: entries of other programs are used, if they have the right shape.
    """

    views: Views
    paths: EntryPaths
    vae: VaeWork
    trusts_foreign: bool = False

    def expected(self, record: int, variant: int, picture: str, mask: str = UNKNOWN_MASK) -> Fingerprint:
        """The fingerprint of one variant of a picture.

        `picture` is the digest of its bytes, `mask` that of its mask's; it counts where there is one.
        """
        views = self.views
        view = views.fixed(record, Choice(variant))
        index = views.index
        return Fingerprint(
            picture=picture,
            vae=self.vae.digest,
            resized=(view.resized.width, view.resized.height),
            crop=view.crop,
            name=None if views.drawing.redraws_latents else f"{views.file_name(record)}|{variant}",
            colour=(view.colour.hue, view.colour.gamma),
            precision=self.vae.precision,
            vae_batch=self.vae.batch_size,
            has_mask=index.counts_alpha(record),
            mask=NO_MASK if index.mask_path(record) is None else mask,
        )

    def may_be_foreign(self, variant: int) -> bool:
        """Whether the file of this variant is used where another program wrote it: others know no variants."""
        return self.trusts_foreign and variant == 0


class Digests(NamedTuple):
    """Of the bytes of a picture and of its mask (`NO_MASK` where it has none), hex."""

    picture: str
    mask: str

    @classmethod
    def of_files(cls, index: ImageIndex, record: int) -> Digests:
        """Of the files as they are now.

        Raises:
            UserError: when one cannot be read.
        """
        mask = index.mask_path(record)
        return cls(picture_digest(index.path(record)), NO_MASK if mask is None else picture_digest(mask))

    @classmethod
    def from_row(cls, row: Tensor) -> Digests:
        """From 32 bytes, see `as_row`."""
        both = bytes(row.tolist())
        return cls(both[:DIGEST_BYTES].hex(), both[DIGEST_BYTES:].hex())

    def as_row(self) -> Tensor:
        """(32,) uint8; zeros for what is not there."""
        both = bytes.fromhex(self.picture) + bytes.fromhex(self.mask)
        return torch.tensor(list(both.ljust(2 * DIGEST_BYTES, b"\0")), dtype=torch.uint8)


@dataclass(frozen=True)
class DiskLatentStore:
    """Reads one look at a time, when a batch asks for it."""

    files: LatentFiles
    digests: Tensor  # (N, 32) uint8: the pictures and their masks as they were when the run began, see `Digests`

    def get(self, record: int, choice: Choice) -> Encoded:
        """One look of a picture.

        Raises:
            UserError: when the file is not any more what it was at the start.
        """
        path = self.files.paths.latents(record, choice.variant)
        expected = self.files.expected(record, choice.variant, *Digests.from_row(self.digests[record]))
        entry = read_entry(path, expected, (choice.flipped,), self.files.may_be_foreign(choice.variant))
        if entry.state not in USABLE:
            what = f"the cached latents are not those of the start any more ({REASONS[entry.state]})"
            fix = "start again; runs with other settings on the same pictures must not replace each other's latents"
            raise UserError.of(what, str(path), fix)
        (look,) = entry.looks
        return Encoded(torch.from_numpy(look.latents), None if look.mask is None else torch.from_numpy(look.mask)[None])


@dataclass(frozen=True)
class Reuse:
    """What was there before the cache was filled.

    Attributes:
        counts: how many files had which state.
        redone: pictures that were encoded again in float.
        idle_flip_files: files STEM_flip.npz of other programs that are not used.
    """

    counts: Mapping[State, int]
    redone: NDArray[np.int64]
    idle_flip_files: int = 0

    @property
    def encoded(self) -> int:
        return sum(self.counts[state] for state in REASONS)

    def lines(self) -> list[str]:
        """What the start report says."""
        line = f"latents on disk: {self.counts[State.FITS]} reused, {self.encoded} encoded"
        reasons = [f"{self.counts[state]} {reason}" for state, reason in REASONS.items() if self.counts[state]]
        lines = [f"{line} ({', '.join(reasons)})" if reasons else line]
        if trusted := self.counts[State.TRUSTED]:
            lines.append(f"latents of another program, used as they are although their VAE is unknown: {trusted}")
        if self.idle_flip_files:
            what = "files STEM_flip.npz of another program, which are not used and stay as they are"
            lines.append(f"{what}: {self.idle_flip_files}")
        return lines


def fill_disk_store(
    files: LatentFiles,
    encoder: Encoder,
    workers: int,
    processes: Processes = ALONE,
    progress: Progress | None = None,
    ahead: int = 0,
) -> tuple[DiskLatentStore, Reuse]:
    """Encodes every variant whose entry does not fit, and writes it at once, so that a stopped run loses nothing.

    Args:
        files: what the entries must be.
        encoder: the VAE.
        workers: processes that read pictures and entries; 0 reads them in this one.
        processes: who else fills the same cache.
        progress: told the files done and the number of all that this process looks after.
        ahead: pictures that workers read before the encoder asks for them, see `make_loader`.

    Raises:
        UserError: when a picture cannot be read or changes while it is, its latents are not finite, its entry cannot be
            written, or is a file of another program that is trusted and lacks something.
    """
    index, variants = files.views.index, list_variants(files.views, processes)
    digests = torch.zeros(len(index), 2 * DIGEST_BYTES, dtype=torch.uint8)
    redone = torch.zeros(len(index), dtype=torch.uint8)
    counts = torch.zeros(len(State) + 1, dtype=torch.int64)  # the last one: flip files without use
    requests = range(len(variants.records))
    loader = make_loader(_Entries(files, variants), requests, workers, pin_memory=False, ahead=ahead)
    finished_entries = BatchEncoder[_Looked](encoder, files.vae.batch_size, index).encode(loader)
    for done, finished in enumerate(finished_entries, 1):
        looked = finished.item
        counts[looked.state] += 1
        counts[-1] += looked.has_idle_flip_file
        if looked.variant == 0:
            digests[looked.record] = looked.digests.as_row()
        if looked.pixels is not None:
            redone[looked.record] |= int(finished.was_redone)
            _write(files, finished)
        if progress is not None:
            progress(done, len(variants.records))
    total = processes.total(counts).tolist()
    reuse = Reuse(
        counts={state: total[state] for state in State},
        redone=np.flatnonzero(processes.total(redone).numpy()),
        idle_flip_files=total[-1],
    )
    return DiskLatentStore(files, processes.total(digests)), reuse


def _write(files: LatentFiles, finished: Finished[_Looked]) -> None:
    looked = finished.item
    mask = None if looked.mask is None else looked.mask[0].numpy()
    looks = []
    for side, distribution in enumerate(finished.rows):
        latents = distribution if looked.noise is None else draw_latents(distribution, looked.noise[side])
        looks.append(Look(latents.numpy(), mask))
    expected = files.expected(looked.record, looked.variant, *looked.digests)
    path = files.paths.latents(looked.record, looked.variant)
    write_entry(path, looks, files.views.index.size(looked.record), expected)


@dataclass(frozen=True)
class _Looked(SentByValue):
    """The entry of one variant of a picture; with pixels, noise and mask (see `filling.Looks`) where it has to be
    encoded."""

    record: int
    variant: int
    state: State
    digests: Digests
    has_idle_flip_file: bool
    pixels: Tensor | None = None
    noise: Tensor | None = None
    mask: Tensor | None = None


class _Entries(Dataset[_Looked]):
    """Every entry once; what does not fit comes with its picture. So reading, too, runs beside the encoding."""

    def __init__(self, files: LatentFiles, variants: Variants) -> None:
        self._files = files
        self._variants = variants

    def __getitem__(self, number: int) -> _Looked:
        files, views = self._files, self._files.views
        record, variant = int(self._variants.records[number]), int(self._variants.numbers[number])
        path = files.paths.latents(record, variant)
        for _ in range(_MOST_READINGS):
            digests = Digests.of_files(views.index, record)
            expected = files.expected(record, variant, *digests)
            entry = read_entry(path, expected, sides_of(views, record), files.may_be_foreign(variant))
            refuse_lacking(path, entry.lacks)
            has_idle_flip_file = entry.state is State.FOREIGN and flip_file(path) is not None
            if entry.state in USABLE:
                return _Looked(record, variant, entry.state, digests, has_idle_flip_file)
            looks = read_looks(views, record, variant)
            # an exchanged picture's digest must not stand beside the old one's latents, nor the other way round
            if Digests.of_files(views.index, record) == digests:
                return _Looked(record, variant, entry.state, digests, has_idle_flip_file, *looks)
        fix = "wait until nothing writes into its folder any more, and start again"
        what = "the picture changed while it was read, again and again"
        raise UserError.of(what, str(views.index.path(record)), fix)
