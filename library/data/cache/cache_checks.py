"""What can be known to be wrong with caches on disk before a model is loaded."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.augment import choices_of
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.latent_files import refuse_unknown
from library.data.cache.text_files import refuse_unknown_texts
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.options.caching import CachingOptions

LATENTS_FLAG = "--cache_latents_to_disk"
TEXTS_FLAG = "--cache_text_encoder_outputs_to_disk"
_MOST_TOLD = 20  # problems of one kind; the rest is counted
_FOLDERS_TOLD = 3
_BYTES_BESIDE = 4096  # of an entry: its other fields, rounded up to what disks give out
_WIDEST_STATES = 1024  # SD 2.x; 768 in SD 1.x
_ENDING = ".npz"


def check_disk_cache(
    index: ImageIndex,
    placements: Placements,
    problems: Problems,
    caching: CachingOptions = CachingOptions(),  # noqa: B008  # frozen
    variants: int | None = None,
) -> None:
    """Looks for foreign files in the way of latents, for the right to write, and for room.

    Args:
        index: all pictures.
        placements: their buckets.
        problems: takes what is found.
        caching: what is kept.
        variants: fixed crops and colours of each picture, see `--augmentation_variants`.
    """
    paths, folders = EntryPaths(index), _Folders("latents", LATENTS_FLAG, refuse_unknown)
    arrays = LATENT_CHANNELS * (2 if caching.cache_latent_distribution else 1)
    choices = [choices_of(subset.augmentations, variants) for subset in index.folders]
    sides = [1 + any(choice.flipped for choice in found) for found in choices]
    for record in range(len(index)):
        subset = int(index.subset[record])
        size = placements.bucket_size(record)
        cells = (size.width // PIXELS_PER_LATENT) * (size.height // PIXELS_PER_LATENT)
        needed = 4 * cells * (arrays * sides[subset] + index.folders[subset].alpha_mask)
        for variant in range(len(choices[subset]) // sides[subset]):
            folders.look_at(paths.latents(record, variant), needed)
    folders.report(problems, "use --cache_latents, which keeps them in memory")


def check_text_disk_cache(index: ImageIndex, rows: int, problems: Problems) -> None:
    """Looks for foreign files in the way of text states, for the right to write, and for room.

    Args:
        index: all pictures.
        rows: text states of a caption, 77 or more.
        problems: takes what is found.
    """
    paths, folders = EntryPaths(index), _Folders("text states", TEXTS_FLAG, refuse_unknown_texts)
    for record in range(len(index)):
        folders.look_at(paths.texts(record), 4 * rows * _WIDEST_STATES)
    folders.report(problems, "use --cache_text_encoder_outputs, which keeps them in memory")


class _Folders:
    """Gathers what the folders of pictures have to take in, and what is in the way there."""

    def __init__(self, content: str, flag: str, refuse: Callable[[Path], None]) -> None:
        self._content = content
        self._flag = flag
        self._refuse = refuse
        self._listed: dict[Path, frozenset[str]] = {}
        self._needed: dict[Path, int] = defaultdict(int)
        self._unknown: list[Problem] = []

    def look_at(self, path: Path, needed: int) -> None:
        """`needed`: bytes of its arrays, if it is not there yet."""
        folder = path.parent
        if folder not in self._listed:
            with os.scandir(folder) as found:  # one by one would take a million questions
                self._listed[folder] = frozenset(entry.name for entry in found if entry.name.endswith(_ENDING))
        if path.name not in self._listed[folder]:
            self._needed[folder] += needed + _BYTES_BESIDE
            return
        try:
            self._refuse(path)
        except UserError as error:
            self._unknown += error.problems

    def report(self, problems: Problems, way_out: str) -> None:
        """Adds what was found to be wrong; `way_out` is what to do where nothing can be written."""
        unknown = self._unknown
        problems.extend(unknown[:_MOST_TOLD])
        if len(unknown) > _MOST_TOLD:
            problems.add(f"{len(unknown) - _MOST_TOLD} more files like these", self._flag, unknown[-1].fix)
        by_disk: dict[int, list[Path]] = defaultdict(list)
        for folder in self._needed:
            if (reason := _why_not_writable(folder)) is not None:
                what = f"{self._content} cannot be written beside the pictures: {reason}"
                problems.add(what, str(folder), f"give the right to write there, copy the pictures, or {way_out}")
            else:
                by_disk[folder.stat().st_dev].append(folder)
        for folders in by_disk.values():
            wanted, free = sum(self._needed[folder] for folder in folders), shutil.disk_usage(folders[0]).free
            if free < wanted:
                what = f"only {free >> 20} MiB are free on its disk, the {self._content} need {-(-wanted >> 20)} MiB"
                place = some_of([str(folder) for folder in folders[:_FOLDERS_TOLD]], len(folders))
                problems.add(what, place, f"make room, or leave out {self._flag}")


def _why_not_writable(folder: Path) -> str | None:
    """Tries it: rights alone do not tell of disks that are mounted for reading."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
