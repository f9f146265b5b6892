"""Reads a subset: opens its pictures and captions, or takes what is kept of them, and tells what is wrong or odd."""

from __future__ import annotations

import os
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.captions.caption_files import caption_names, only_caption, read_caption
from library.data.description.config import SubsetConfig
from library.data.index.index_cache import (
    InfoBuilder,
    InfoWalk,
    KeptInfo,
    PictureInfo,
    caption_settings,
    check_writable,
    info_path,
    read_info,
    report_unwritable,
)
from library.data.index.listing import NO_STAMP, Listing, Stamp, list_pictures
from library.data.index.texts import TextsBuilder
from library.data.pictures.images import Examination, examine

FAIL, SKIP = "fail", "skip"  # what to do about pictures that cannot be read

_MOST_TOLD = 20  # problems of one wording in one folder; the rest is counted
_MOST_TOLD_IN_ALL = 200  # of one kind in one folder
_NAMES_TOLD = 5
_CHUNK = 128  # pictures looked at together; few, so that their objects die before Python looks for garbage
_CHUNKS_AHEAD = 8  # that the threads have to do while the results of earlier ones are taken
_BLOCK = 32  # pictures that a thread takes at once


@dataclass(frozen=True)
class More(Problem):
    """A problem that stands for many.

    Attributes:
        others: those that are not told beside it, each with its reason.
        are_left_out: they are pictures that would be left out, and no problems by themselves.
    """

    others: tuple[Problem, ...]
    are_left_out: bool = False


class CaptionSource(IntEnum):
    """Where the caption of a picture came from."""

    FILE = 0
    CLASS_TOKENS = 1
    EMPTY = 2
    METADATA = 3


class Opened(NamedTuple):
    """How many files were opened to build the index; the others were known from the last time."""

    pictures: int
    captions: int


NOTHING_OPENED = Opened(0, 0)


class Rows:
    """The columns of the index that differ from picture to picture, while they grow."""

    def __init__(self) -> None:
        self.names, self.captions = TextsBuilder(), TextsBuilder()
        self.width, self.height = array("i"), array("i")
        self.caption_source, self.has_alpha = array("B"), array("B")

    def __len__(self) -> int:
        return len(self.width)


class Scan(NamedTuple):
    """What was read of a subset.

    Attributes:
        root: the folder from which its names count.
        pictures: how many of its pictures can be used.
        has_caption_file: there is a caption file beside one of them at least.
        opened: the files that were opened.
        left_out: pictures that cannot be read, where those are left out.
    """

    root: Path
    pictures: int
    has_caption_file: bool
    opened: Opened
    left_out: tuple[Problem, ...]


@dataclass(slots=True)
class _Look:
    """One picture while it is looked at.

    Attributes:
        kept: what was known of it, whether that still counts or not, from row `kept_row`.
        examination: None until it is opened.
        caption_stamp: of its only caption file, where stamps are asked for.
    """

    name: str
    stamp: Stamp = NO_STAMP
    kept: PictureInfo | None = None
    kept_row: int = -1
    examination: Examination | None = None
    caption_files: Sequence[str] = ()
    caption_stamp: Stamp = NO_STAMP
    caption: str | None = None
    must_read_caption: bool = False
    caption_problems: tuple[Problem, ...] = ()


@dataclass
class _Findings:
    """What is to be told of a subset, gathered picture by picture."""

    root: Path
    total: int  # pictures that were found
    broken: list[Problem] = field(default_factory=list)
    unclear: list[Problem] = field(default_factory=list)
    without_caption: list[str] = field(default_factory=list)
    odd: dict[str, list[str]] = field(default_factory=dict)
    with_caption_file: int = 0
    opened_pictures: int = 0
    opened_captions: int = 0


def scan_subset(subset: SubsetConfig, bad_images: str, rows: Rows, problems: Problems, notes: list[str]) -> Scan:
    """Reads a subset.

    Args:
        subset: the subset.
        bad_images: `FAIL`: pictures that cannot be read are problems. `SKIP`: they are left out, and told in `notes`.
        rows: receives a row for each usable picture.
        problems: receives everything that is wrong.
        notes: receives what deserves to be told although it is no mistake.
    """
    listing = list_pictures(subset, problems, notes)
    findings, first_row = _Findings(listing.root, len(listing.names)), len(rows)
    keeper = _Keeper(subset, problems, notes) if subset.cache_info and listing.names else None
    for look in _look_at_all(subset, listing, keeper, findings):
        _take(look, subset, rows, findings)
        if keeper is not None:
            keeper.keep(look)
    del listing  # of a million pictures it takes hundreds of megabytes
    if keeper is not None:
        keeper.write(problems)
    _tell(findings, subset, bad_images, problems, notes)
    opened = Opened(findings.opened_pictures, findings.opened_captions)
    left_out = tuple(findings.broken) if bad_images == SKIP else ()
    return Scan(findings.root, len(rows) - first_row, bool(findings.with_caption_file), opened, left_out)


def _tell(findings: _Findings, subset: SubsetConfig, bad_images: str, problems: Problems, notes: list[str]) -> None:
    if bad_images == SKIP and findings.broken:
        _tell_left_out(findings, subset, problems, notes)
    else:
        _tell_first(findings.broken, subset, problems)
    _tell_first(findings.unclear, subset, problems)
    if findings.without_caption:
        _report_missing_captions(findings.without_caption, findings.total, subset, problems)
    if subset.metadata_file is not None and findings.with_caption_file:
        what = f"{findings.with_caption_file} pictures also have a caption file, which is not read"
        notes.append(f"{subset.metadata_file}: {what}")
    notes += [f"{subset.home}: {note} ({len(names)}: {_some(names)})" for note, names in findings.odd.items()]


class _Keeper:
    """What is kept of a subset from one start to the next."""

    def __init__(self, subset: SubsetConfig, problems: Problems, notes: list[str]) -> None:
        self._path, self._settings = info_path(subset), caption_settings(subset)
        self._kept: KeptInfo | None = read_info(subset, notes)
        if self._kept is None:
            check_writable(self._path, problems)
        self._walk = None if self._kept is None else InfoWalk(self._kept)
        self._same = 0  # so many first rows are those of the file
        self._new: InfoBuilder | None = None  # all rows, from the first difference on
        self.has_captions = self._kept is not None and self._kept.settings == self._settings

    def find(self, name: str) -> PictureInfo | None:
        """What was known of a picture; to be asked in the order of the names."""
        return None if self._walk is None else self._walk.find(name)

    def keep(self, look: _Look) -> None:
        """Takes what was found of a picture. Broken ones are not kept: what mends them may not show in the file."""
        if look.examination is None or look.examination.size is None or look.stamp == NO_STAMP:
            return
        knows_caption = look.caption_stamp != NO_STAMP and not look.caption_problems
        info = PictureInfo(
            name=look.name,
            stamp=look.stamp,
            size=look.examination.size,
            has_alpha=look.examination.has_alpha,
            note=look.examination.note or "",
            caption_name=look.caption_files[0] if knows_caption else "",
            caption_stamp=look.caption_stamp if knows_caption else NO_STAMP,
            caption=(look.caption or "") if knows_caption else "",
        )
        if self._new is None and look.kept_row == self._same and info == look.kept:
            self._same += 1
        else:
            self._rows().add(info)

    def write(self, problems: Problems) -> None:
        """Replaces the file where it differs."""
        if self.has_captions and self._new is None and self._kept is not None and len(self._kept) == self._same:
            return
        try:
            self._rows().write(self._path, self._settings)
        except OSError as error:
            if not any(problem.where == str(self._path) for problem in problems):  # else told before
                report_unwritable(self._path, error, problems)

    def _rows(self) -> InfoBuilder:
        if self._new is None:
            self._new = InfoBuilder(islice(self._kept or (), self._same))
        return self._new

    @property
    def row(self) -> int:
        """The number of the row that `find` gave last."""
        return -1 if self._walk is None else self._walk.row - 1


def _look_at_all(
    subset: SubsetConfig, listing: Listing, keeper: _Keeper | None, findings: _Findings
) -> Iterator[_Look]:
    """Looks at every picture in the order of the listing; opens in threads (decoding releases Python's lock)."""
    whole = subset.caption_changes.wildcard

    def open_block(block: Sequence[_Look]) -> None:
        for look in block:
            _open(look, listing.root, whole)

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[list[_Look], list[Future[None]]]] = deque()
        for first in range(0, len(listing.names), _CHUNK):
            numbers = range(first, min(first + _CHUNK, len(listing.names)))
            looks = [_first_look(subset, listing, number, keeper) for number in numbers]
            closed = [look for look in looks if look.examination is None or look.must_read_caption]
            findings.opened_pictures += sum(look.examination is None for look in closed)
            findings.opened_captions += sum(look.must_read_caption for look in closed)
            blocks = [closed[start : start + _BLOCK] for start in range(0, len(closed), _BLOCK)]
            waiting.append((looks, [pool.submit(open_block, block) for block in blocks]))
            while waiting and (len(waiting) > _CHUNKS_AHEAD or not waiting[0][1]):
                yield from _finished(*waiting.popleft())
        for looks, work in waiting:
            yield from _finished(looks, work)


def _finished(looks: list[_Look], work: list[Future[None]]) -> list[_Look]:
    """The looks when all their files were read; raises what a thread raised."""
    for part in work:
        part.result()
    return looks


def _first_look(subset: SubsetConfig, listing: Listing, number: int, keeper: _Keeper | None) -> _Look:
    """What is known of a picture without opening a file."""
    name = listing.names[number]
    part, _, own_name = name.rpartition("/")
    folder = listing.folders.get(part)
    look = _Look(name)
    if folder is not None:
        look.caption_files = caption_names(own_name, subset.caption_extensions, folder)
    if keeper is not None and folder is not None:
        look.stamp = folder.picture_stamp(own_name)
        look.kept = keeper.find(name)
        look.kept_row = keeper.row
        if look.kept is not None and look.kept.stamp == look.stamp != NO_STAMP:
            look.examination = Examination(look.kept.size, None, look.kept.note or None, look.kept.has_alpha)
    if listing.captions is not None:
        look.caption = listing.captions[number]
        return look
    look.must_read_caption = bool(look.caption_files)
    if keeper is not None and folder is not None and len(look.caption_files) == 1:
        found = (look.caption_files[0], folder.caption_stamp(look.caption_files[0]))
        look.caption_stamp = found[1]
        if look.kept is not None and keeper.has_captions and (look.kept.caption_name, look.kept.caption_stamp) == found:
            look.caption, look.must_read_caption = look.kept.caption or None, found[1] == NO_STAMP
    return look


def _open(look: _Look, root: Path, whole: bool) -> None:
    path = root / look.name
    if look.examination is None:
        look.examination = examine(path)
    if look.must_read_caption:
        try:
            caption_path = only_caption(path, look.caption_files)
            look.caption = None if caption_path is None else read_caption(caption_path, whole)
        except UserError as error:
            look.caption_problems = error.problems


def _take(look: _Look, subset: SubsetConfig, rows: Rows, findings: _Findings) -> None:
    """Adds the row of a picture, or tells why there is none."""
    findings.unclear += look.caption_problems
    findings.with_caption_file += bool(look.caption_files)
    found = look.examination
    if found is None or found.size is None:
        what = (found.problem if found is not None else None) or "it cannot be read"
        fix = f"replace the file or take it out of the folder; --bad_images {SKIP} trains without such files"
        findings.broken.append(Problem(what, str(findings.root / look.name), fix))
        return
    if found.note:
        findings.odd.setdefault(found.note, []).append(look.name)
    source = _caption_source(look.caption, subset)
    if source is CaptionSource.EMPTY and not subset.allow_missing_captions and not look.caption_problems:
        findings.without_caption.append(look.name)
    caption = look.caption or (subset.class_tokens if source is CaptionSource.CLASS_TOKENS else "") or ""
    rows.names.add(look.name)
    rows.captions.add(caption)
    rows.width.append(found.size.width)
    rows.height.append(found.size.height)
    rows.caption_source.append(source)
    rows.has_alpha.append(found.has_alpha)


def _caption_source(caption: str | None, subset: SubsetConfig) -> CaptionSource:
    if caption is not None:
        return CaptionSource.FILE if subset.metadata_file is None else CaptionSource.METADATA
    return CaptionSource.CLASS_TOKENS if subset.class_tokens else CaptionSource.EMPTY


def _tell_left_out(findings: _Findings, subset: SubsetConfig, problems: Problems, notes: list[str]) -> None:
    broken = findings.broken
    if len(broken) == findings.total:
        what = f"none of its {findings.total} pictures can be read, such as {broken[0].where}: {broken[0].what}"
        problems.extend([More(what, str(subset.home), broken[0].fix, tuple(broken), are_left_out=True)])
        return
    names = [Path(problem.where).relative_to(findings.root).as_posix() for problem in broken[:_NAMES_TOLD]]
    reasons = [f"{name} ({problem.what})" for name, problem in zip(names, broken, strict=False)]
    what = f"{len(broken)} of {findings.total} pictures cannot be read and are left out"
    notes.append(f"{subset.home}: {what}: {some_of(reasons, len(broken))}")


def _tell_first(found: Sequence[Problem], subset: SubsetConfig, problems: Problems) -> None:
    """Tells problems of one kind in one folder: of each wording the first ones, but not thousands of them."""
    times: dict[str, int] = {}
    told: list[Problem] = []
    others: list[Problem] = []
    for problem in found:
        times[problem.what] = times.get(problem.what, 0) + 1
        is_told = times[problem.what] <= _MOST_TOLD and len(told) < _MOST_TOLD_IN_ALL
        (told if is_told else others).append(problem)
    problems.extend(told)
    if others:
        what = f"{len(others)} more like these"
        problems.extend([More(what, str(subset.home), others[-1].fix, tuple(others))])


def _report_missing_captions(names: Sequence[str], total: int, subset: SubsetConfig, problems: Problems) -> None:
    if subset.metadata_file is not None:
        what = f"{len(names)} of {total} entries have neither caption nor tags, and no class tokens: {_some(names)}"
        fix = (
            "write them, give class_tokens in a dataset file, or train with an empty caption: --allow_missing_captions"
        )
        problems.add(what, str(subset.metadata_file), fix)
        return
    endings = " or ".join(subset.caption_extensions)
    what = f"{len(names)} of {total} pictures have neither a caption file ({endings}) nor class tokens: {_some(names)}"
    fix = (
        "add caption files, or name the folder N_identifier class (class_tokens in a dataset file), "
        "or train them with an empty caption: --allow_missing_captions"
    )
    problems.add(what, str(subset.home), fix)


def _some(names: Sequence[str]) -> str:
    return some_of(list(names[:_NAMES_TOLD]), len(names))
