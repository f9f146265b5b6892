"""The latents of all pictures, encoded once and kept on disk, where the next run finds them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath

import torch
from torch import Tensor
from torch.utils.data import Dataset

from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT, SentByValue
from library.data.dataset import draw_latent_noise, make_loader, read_picture
from library.data.index import ImageIndex
from library.data.latent_files import (
    DIGEST_BYTES,
    REASONS,
    Fingerprint,
    State,
    picture_digest,
    read_entry,
    refuse_unknown,
    write_entry,
)
from library.data.latents import Encode, Progress, encode_picture
from library.data.placement import Placements

FLAG = "--cache_latents_to_disk"
_MOST_TOLD = 20  # problems of one kind; the rest is counted
_FOLDERS_TOLD = 3
_BYTES_BESIDE = 4096  # of an entry: its other fields, rounded up to what disks give out


class EntryPaths:
    """Where each picture's latents lie: beside it as STEM.npz.

    Pictures of one folder that share a stem (a.png, a.jpg) have the whole name in front of the ending. A picture that
    is used more than once, for example at two resolutions, has STEM.npz, STEM.2.npz, …, in the order of the datasets.
    """

    def __init__(self, index: ImageIndex) -> None:
        self._index = index
        self._unusual = _unusual_names(index)

    def __getitem__(self, record: int) -> Path:
        picture = self._index.path(record)
        return picture.with_name(self._unusual.get(record, f"{picture.stem}.npz"))


@dataclass(frozen=True)
class LatentFiles:
    """What the entries of a run must be. `vae` is the digest of the weights that encode."""

    index: ImageIndex
    placements: Placements
    paths: EntryPaths
    vae: str
    seed: int

    def expected(self, record: int, picture: str) -> Fingerprint:
        """The fingerprint of one picture's latents; `picture` is the digest of its bytes."""
        resized = self.placements.resized_size(record)
        return Fingerprint(
            picture=picture,
            vae=self.vae,
            resized=(resized.width, resized.height),
            crop=self.placements.crop_box(record),
            seed=self.seed,
            draw=self.index.key(record),
        )


@dataclass(frozen=True)
class DiskLatentStore:
    """Reads one file at a time, when a batch asks for it."""

    files: LatentFiles
    digests: Tensor  # (N, 16) uint8: the pictures as they were when the run began

    def get(self, record: int) -> Tensor:
        """The latents of one picture, (4, h, w) float32, unscaled.

        Raises:
            UserError: when the file is not any more what it was at the start.
        """
        path = self.files.paths[record]
        entry = read_entry(path, self.files.expected(record, bytes(self.digests[record].tolist()).hex()))
        if entry.latents is None:
            what = f"the cached latents are not those of the start any more ({REASONS[entry.state]})"
            fix = "start again; runs with other settings on the same pictures must not replace each other's latents"
            raise UserError.of(what, str(path), fix)
        return torch.from_numpy(entry.latents)


@dataclass(frozen=True)
class Processes:
    """Processes that fill one cache together: picture n belongs to process n % count alone.

    Attributes:
        total: the sum of a whole-number tensor over all processes; every process has to call it.
    """

    number: int
    count: int
    total: Callable[[Tensor], Tensor]

    def share(self, pictures: int) -> range:
        """The records of this process."""
        return range(self.number, pictures, self.count)


ALONE = Processes(0, 1, lambda tensor: tensor)


@dataclass(frozen=True)
class Reuse:
    """How many pictures had which state before the cache was filled."""

    counts: Mapping[State, int]

    @property
    def encoded(self) -> int:
        return sum(self.counts[state] for state in REASONS)

    def line(self) -> str:
        """What the start report says."""
        line = f"latents on disk: {self.counts[State.FITS]} reused, {self.encoded} encoded"
        reasons = [f"{self.counts[state]} {reason}" for state, reason in REASONS.items() if self.counts[state]]
        return f"{line} ({', '.join(reasons)})" if reasons else line


def fill_disk_store(
    files: LatentFiles,
    encode: Encode,
    workers: int,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> tuple[DiskLatentStore, Reuse]:
    """Encodes every picture whose entry does not fit, and writes it at once, so that a stopped run loses nothing.

    Args:
        files: what the entries must be.
        encode: see `library.data.latents.Encode`.
        workers: processes that read pictures and entries; 0 reads them in this one.
        processes: who else fills the same cache.
        progress: told the pictures done and the number of all that this process looks after.

    Raises:
        UserError: when a picture cannot be read, its latents are not finite, or its entry cannot be written.
    """
    index, share = files.index, processes.share(len(files.index))
    digests = torch.zeros(len(index), DIGEST_BYTES, dtype=torch.uint8)
    states = torch.zeros(len(State), dtype=torch.int64)
    loader = make_loader(_Entries(files), share, workers, pin_memory=False)
    for done, looked in enumerate(loader, 1):
        states[looked.state] += 1
        digests[looked.record] = torch.tensor(list(bytes.fromhex(looked.digest)), dtype=torch.uint8)
        if looked.pixels is not None and looked.latent_noise is not None:
            latents = encode_picture(encode, looked.pixels, looked.latent_noise, index.path(looked.record))
            expected = files.expected(looked.record, looked.digest)
            write_entry(files.paths[looked.record], latents.cpu().numpy(), index.size(looked.record), expected)
        if progress is not None:
            progress(done, len(share))
    counts = processes.total(states).tolist()
    return DiskLatentStore(files, processes.total(digests)), Reuse({state: counts[state] for state in State})


def check_disk_cache(index: ImageIndex, placements: Placements, problems: Problems) -> None:
    """What can be known to be wrong before a model is loaded: foreign files in the way, no right to write, no room."""
    paths = EntryPaths(index)
    listed: dict[Path, frozenset[str]] = {}
    needed: dict[Path, int] = defaultdict(int)
    unknown: list[Problem] = []
    for record in range(len(index)):
        path = paths[record]
        if path.parent not in listed:
            listed[path.parent] = frozenset(entry.name for entry in path.parent.iterdir())
        if path.name not in listed[path.parent]:
            size = placements.bucket_size(record)
            cells = (size.width // PIXELS_PER_LATENT) * (size.height // PIXELS_PER_LATENT)
            needed[path.parent] += 4 * LATENT_CHANNELS * cells + _BYTES_BESIDE
            continue
        try:
            refuse_unknown(path)
        except UserError as error:
            unknown += error.problems
    problems.extend(unknown[:_MOST_TOLD])
    if len(unknown) > _MOST_TOLD:
        problems.add(f"{len(unknown) - _MOST_TOLD} more files like these", FLAG, unknown[-1].fix)
    _check_folders(needed, problems)


def _check_folders(needed: Mapping[Path, int], problems: Problems) -> None:
    """`needed`: bytes that each folder has to take in."""
    by_disk: dict[int, list[Path]] = defaultdict(list)
    for folder in needed:
        if (reason := _why_not_writable(folder)) is not None:
            what = f"latents cannot be written beside the pictures: {reason}"
            fix = "give the right to write there, copy the pictures, or use --cache_latents, which keeps them in memory"
            problems.add(what, str(folder), fix)
        else:
            by_disk[folder.stat().st_dev].append(folder)
    for folders in by_disk.values():
        wanted, free = sum(needed[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if free < wanted:
            what = f"only {free >> 20} MiB are free on its disk, the latents need {-(-wanted >> 20)} MiB"
            place = some_of([str(folder) for folder in folders[:_FOLDERS_TOLD]], len(folders))
            problems.add(what, place, f"make room, or leave out {FLAG}")


def _why_not_writable(folder: Path) -> str | None:
    """Tries it: rights alone do not tell of disks that are mounted for reading."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


@dataclass(frozen=True)
class _Looked(SentByValue):
    """One picture's entry; with pixels (3, H, W) and the VAE's draw (4, h, w) where it has to be encoded."""

    record: int
    state: State
    digest: str
    pixels: Tensor | None = None
    latent_noise: Tensor | None = None


class _Entries(Dataset[_Looked]):
    """Every entry once; what does not fit comes with its picture. So reading, too, runs beside the encoding."""

    def __init__(self, files: LatentFiles) -> None:
        self._files = files

    def __getitem__(self, record: int) -> _Looked:
        files = self._files
        picture = files.index.path(record)
        digest = picture_digest(picture)
        state = read_entry(files.paths[record], files.expected(record, digest)).state
        if state is State.FITS:
            return _Looked(record, state, digest)
        pixels = read_picture(files.index, files.placements, record)
        noise = draw_latent_noise(files.index, files.placements, record, files.seed)
        # once more: an old digest must never stand beside the latents of a picture that was exchanged in between
        return _Looked(record, state, picture_digest(picture), pixels, noise)


def _unusual_names(index: ImageIndex) -> dict[int, str]:
    """The entries' names that are not simply STEM.npz."""
    by_folder: dict[str, list[int]] = defaultdict(list)
    real: dict[Path, str] = {}  # two subsets may reach one folder by different paths
    for record in range(len(index)):
        folder = index.path(record).parent
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        by_folder[real[folder]].append(record)
    unusual: dict[int, str] = {}
    for records in by_folder.values():
        unusual.update(_unusual_in_folder({record: index.path(record).name for record in records}))
    return unusual


def _unusual_in_folder(names: Mapping[int, str]) -> dict[int, str]:
    # without regard to capitals, because some disks see A.npz and a.npz as one file
    stems = Counter(PurePath(name).stem.casefold() for name in set(names.values()))
    taken: set[str] = set()
    left: list[int] = []
    for record, name in names.items():
        usual = f"{PurePath(name).stem}.npz".casefold()
        if stems[PurePath(name).stem.casefold()] > 1 or usual in taken:
            left.append(record)
        else:
            taken.add(usual)
    unusual = {}
    for record in left:
        name = names[record]
        base = name if stems[PurePath(name).stem.casefold()] > 1 else PurePath(name).stem
        unusual[record] = next(free for free in _candidates(base) if free.casefold() not in taken)
        taken.add(unusual[record].casefold())
    return unusual


def _candidates(base: str) -> Iterable[str]:
    yield f"{base}.npz"
    yield from (f"{base}.{number}.npz" for number in count(2))
