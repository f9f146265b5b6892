"""What can be known to be wrong with caches on disk before a model is loaded."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from library.core.atomic_io import why_not_writable
from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.augment import choices_of
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT
from library.data.cache.disk_latents import LatentFiles, VaeWork
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.filling import sides_of
from library.data.cache.foreign_latents import Lack
from library.data.cache.latent_files import REASONS, State, is_ours, look_ahead, read_entry, refuse_unknown
from library.data.cache.text_files import TEXT_REASONS, caption_digest, look_ahead_at_texts, refuse_unknown_texts
from library.data.cache.text_states import constant_caption
from library.data.cache.trusted import report_lacking
from library.data.index.index import ImageIndex
from library.data.placement import Placements
from library.data.views import Drawing, Views
from library.options.caching import CachingOptions

LATENTS_FLAG = "--cache_latents_to_disk"
TEXTS_FLAG = "--cache_text_encoder_outputs_to_disk"
_MOST_TOLD = 20  # problems of one kind; the rest is counted
_FOLDERS_TOLD = 3
_BYTES_BESIDE = 4096  # of an entry: its other fields, rounded up to what disks give out
_WIDEST_STATES = 1024  # SD 2.x; 768 in SD 1.x
_ENDING = ".npz"
_USUAL_LONGEST_NAME = 255


def check_disk_cache(
    index: ImageIndex,
    placements: Placements,
    problems: Problems,
    caching: CachingOptions = CachingOptions(),  # noqa: B008  # frozen
    variants: int | None = None,
    seed: int | None = None,
) -> None:
    """Looks for foreign files in the way of latents, for the right to write, for room, and for names that are too long.

    Where nothing can be written, entries that are there are compared with what the run needs.

    Args:
        index: all pictures.
        placements: their buckets.
        problems: takes what is found.
        caching: what is kept.
        variants: fixed crops and colours of each picture, see `--augmentation_variants`.
        seed: the run's; without it, crops and colours that are drawn are not compared.
    """
    paths, folders = EntryPaths(index), _Folders("latents", LATENTS_FLAG, "use --cache_latents, which needs no disk")
    drawing = Drawing(seed or 0, variants, redraws_latents=caching.cache_latent_distribution)
    work = VaeWork("", caching.vae_precision, caching.vae_batch_size)
    files = LatentFiles(Views(index, placements, drawing), paths, work, caching.trust_foreign_latents)
    judge = _LatentJudge(files, knows_draws=seed is not None)
    arrays = LATENT_CHANNELS * (2 if caching.cache_latent_distribution else 1)
    choices = [choices_of(subset.augmentations, variants) for subset in index.folders]
    sides = [1 + any(choice.flipped for choice in found) for found in choices]
    for record in range(len(index)):
        subset = int(index.subset[record])
        size, has_mask = placements.bucket_size(record), index.has_mask(record)
        cells = (size.width // PIXELS_PER_LATENT) * (size.height // PIXELS_PER_LATENT)
        needed = 4 * cells * (arrays * sides[subset] + has_mask)
        count = len(choices[subset]) // sides[subset]
        folders.measure(paths.latents(record, count - 1))
        for variant in range(count):
            folders.look_at(paths.latents(record, variant), needed, partial(judge, record, variant), can_grow=True)
    folders.report(problems)
    report_lacking(judge.lacking, problems)


def check_text_disk_cache(index: ImageIndex, rows: int, problems: Problems) -> None:
    """Looks for foreign files in the way of text states, for the right to write, for room, and for names too long.

    Args:
        index: all pictures.
        rows: text states of a caption, 77 or more.
        problems: takes what is found.
    """
    way_out = "use --cache_text_encoder_outputs, which needs no disk"
    paths, folders = EntryPaths(index), _Folders("text states", TEXTS_FLAG, way_out)
    for record in range(len(index)):
        path = paths.texts(record)
        folders.measure(path)
        folders.look_at(path, 4 * rows * _WIDEST_STATES, partial(_judge_texts, index, record))
    folders.report(problems)


class _LatentJudge:
    """Looks at entries that are there; keeps which trusted files lack what."""

    def __init__(self, files: LatentFiles, knows_draws: bool) -> None:
        self._files = files
        self._knows_draws = knows_draws
        self.lacking: dict[Lack, list[Path]] = defaultdict(list)

    def __call__(self, record: int, variant: int, path: Path, is_writable: bool) -> str | None:
        """Why the entry does not fit; of one that could be replaced, only whether it may be.

        Raises:
            UserError: when it is no cache of latents, or cannot be read.
        """
        files, views = self._files, self._files.views
        own, trusts = is_ours(path), files.may_be_foreign(variant)
        if is_writable and (own or not trusts):
            if not own:
                refuse_unknown(path)
            return None
        expected, sides = files.expected(record, variant, ""), sides_of(views, record)
        if own:
            state = look_ahead(path, expected, sides)
            is_drawn = views.augmentations(record).has_variants and not self._knows_draws
            return None if is_drawn and state in (State.SIZE, State.COLOUR) else REASONS.get(state)
        entry = read_entry(path, expected, sides, trusts)
        for lack in entry.lacks:
            self.lacking[lack].append(path)
        return None if entry.lacks else REASONS.get(entry.state)


def _judge_texts(index: ImageIndex, record: int, path: Path, is_writable: bool) -> str | None:
    """The same of text states."""
    if is_writable:
        refuse_unknown_texts(path)
        return None
    return TEXT_REASONS.get(look_ahead_at_texts(path, caption_digest(constant_caption(index, record))))


@dataclass
class _Folder:
    """A folder of pictures.

    Attributes:
        names: of the files there that may be entries.
        reason: why nothing can be written there, or None.
        longest_name: bytes.
        needed: bytes of all that is still to be written, and `misfits` why it is to replace what is there.
        needs_writing: whether anything is.
    """

    names: frozenset[str]
    reason: str | None
    longest_name: int
    needed: int = 0
    needs_writing: bool = False
    misfits: Counter[str] = field(default_factory=Counter)


class _Folders:
    """Gathers what the folders of pictures have to take in, and what is in the way there."""

    def __init__(self, content: str, flag: str, way_out: str) -> None:
        self._content = content
        self._flag = flag
        self._way_out = way_out  # what to do where nothing can be written
        self._folders: dict[Path, _Folder] = {}
        self._unknown: list[Problem] = []
        self._too_long: list[Problem] = []

    def measure(self, path: Path) -> None:
        """Is the name longer than the disk takes? To be asked once for each picture, with its longest one."""
        longest = self._at(path.parent).longest_name
        if (length := len(os.fsencode(path.name))) > longest:
            what = (
                f"its {self._content} would lie in a file whose name has {length} bytes, {longest} are possible there"
            )
            fix = f"shorten the picture's name by {length - longest} bytes, or {self._way_out}"
            self._too_long.append(Problem(what, str(path), fix))

    def look_at(
        self, path: Path, needed: int, judge: Callable[[Path, bool], str | None], can_grow: bool = False
    ) -> None:
        """Looks at one entry.

        Args:
            path: where it is or will be.
            needed: bytes of its arrays.
            judge: asked if it is there and whether it could be replaced: why it does not fit.
            can_grow: `needed` is exact, so that one with less will be replaced.
        """
        folder = self._at(path.parent)
        if path.name not in folder.names:
            folder.needs_writing = True
            folder.needed += needed + _BYTES_BESIDE
            return
        try:
            reason = judge(path, folder.reason is None)
        except UserError as error:
            self._unknown += error.problems
            return
        with suppress(FileNotFoundError):  # another run may have taken it away meanwhile
            folder.needed += max(0, needed - path.stat().st_size) if can_grow else 0
        if reason is not None:
            folder.needs_writing = True
            folder.misfits[reason] += 1

    def report(self, problems: Problems) -> None:
        """Adds what was found to be wrong."""
        for found in (self._unknown, self._too_long):
            problems.extend(found[:_MOST_TOLD])
            if len(found) > _MOST_TOLD:
                problems.add(f"{len(found) - _MOST_TOLD} more files like these", self._flag, found[-1].fix)
        by_disk: dict[int, list[Path]] = defaultdict(list)
        for path, folder in self._folders.items():
            if folder.reason is None:
                if folder.needed:
                    by_disk[path.stat().st_dev].append(path)
            elif folder.needs_writing:
                reasons = ", ".join(f"{count} {reason}" for reason, count in folder.misfits.items())
                misfits = f"; of those that are there, some do not fit ({reasons})" if reasons else ""
                what = f"{self._content} cannot be written beside the pictures: {folder.reason}{misfits}"
                problems.add(what, str(path), f"give the right to write there, copy the pictures, or {self._way_out}")
        for paths in by_disk.values():
            wanted, free = sum(self._folders[path].needed for path in paths), shutil.disk_usage(paths[0]).free
            if free < wanted:
                what = f"only {free >> 20} MiB are free on its disk, the {self._content} need {-(-wanted >> 20)} MiB"
                place = some_of([str(path) for path in paths[:_FOLDERS_TOLD]], len(paths))
                problems.add(what, place, f"make room, or leave out {self._flag}")

    def _at(self, path: Path) -> _Folder:
        if path not in self._folders:
            with os.scandir(path) as found:  # one by one would take a million questions
                names = frozenset(entry.name for entry in found if entry.name.endswith(_ENDING))
            error = why_not_writable(path)
            reason = None if error is None else error.strerror or str(error)
            self._folders[path] = _Folder(names, reason, _longest_name(path))
        return self._folders[path]


def _longest_name(folder: Path) -> int:
    """Bytes that a file's name can have there."""
    with suppress(OSError, ValueError, AttributeError):  # Windows has no such question
        return os.pathconf(folder, "PC_NAME_MAX")
    return _USUAL_LONGEST_NAME
