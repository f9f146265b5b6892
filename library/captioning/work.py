"""Which pictures get a text, found and checked before a model is loaded."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import overload

from library.captioning.folders import Listing, list_folders
from library.captioning.text_kinds import looks_like_caption, looks_like_tags
from library.core.atomic_io import remove_left_overs, why_not_writable
from library.core.errors import Problems, printable
from library.core.log import get_logger
from library.core.wording import some_of
from library.data.captions.caption_files import DEFAULT_CAPTION_EXTENSIONS, split_lines
from library.data.pictures.picture_kinds import is_picture_name, other_pictures, why_not_read
from library.options.captioning import FolderOptions
from library.options.data import default_worker_count

_log = get_logger(__name__)
_FLAG = "--caption_extension"
_NO_TEXTS = {
    *(".npz", ".npy", ".json", ".jsonl", ".toml", ".csv", ".safetensors", ".ckpt", ".pt", ".pth", ".onnx"),
    *(".gif", ".tif", ".tiff", ".jxl", ".avif", ".heic", ".svg", ".psd", ".zip", ".py"),
}
_NOT_IN_NAMES = re.compile('[\x00-\x1f\x7f-\x9f<>:"|?*/\\\\]')  # separators, and what Windows refuses
_NAMES_TOLD = 3
_FILES_READ = 50  # to find out of which kind the texts are that are there
_HEAD = 4096  # bytes of such a file
_EXAMPLE = 60  # characters
_FEWEST_OF_OTHER_KIND = 2  # one text alone proves nothing: a model may have written it


class TextKind(Enum):
    """What the texts are, which tells when files of one kind would take the place of the other."""

    CAPTION = "captions"
    TAGS = "tags"


@dataclass(frozen=True)
class Target:
    """A picture, and the file that gets its text."""

    picture: Path
    file: Path


class Targets(Sequence[Target]):
    """Targets of several folders, made when they are asked for: only names are kept, so that a million pictures fit."""

    def __init__(self, extension: str) -> None:
        self.folders: list[Path] = []
        self._extension = extension
        self._names: list[Sequence[str]] = []
        self._starts: list[int] = []
        self._count = 0

    def add(self, folder: Path, names: Sequence[str]) -> None:
        """Pictures of one more folder, behind those that are there."""
        if names:
            self.folders.append(folder)
            self._names.append(names)
            self._starts.append(self._count)
            self._count += len(names)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Target: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Target]: ...
    def __getitem__(self, index: int | slice) -> Target | Sequence[Target]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._count))]
        number = range(self._count)[index]  # which raises IndexError
        block = bisect_right(self._starts, number) - 1
        return self._target(block, self._names[block][number - self._starts[block]])

    def __iter__(self) -> Iterator[Target]:
        for block, names in enumerate(self._names):
            for name in names:
                yield self._target(block, name)

    def _target(self, block: int, name: str) -> Target:
        folder = self.folders[block]
        return Target(folder / name, folder / text_name(name, self._extension))


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        todo: pictures that need a text, in the order of folders and names.
        kept: pictures whose text is there already and stays.
        appends: texts are added to what the files hold.
        overwrites: texts take the place of those that are there.
    """

    todo: Sequence[Target]
    kept: Sequence[Target]
    appends: bool = False
    overwrites: bool = False


def threads_of(folders: FolderOptions) -> int:
    """Threads that read pictures: as asked for, else as many as training has loader processes, but at least one."""
    asked = folders.max_data_loader_n_workers
    return max(1, default_worker_count() if asked is None else asked)


def text_name(picture: str, extension: str) -> str:
    """The name of the file with the text of a picture; training looks for it by the same rule."""
    return (picture.rpartition(".")[0] or picture) + extension


def find_work(folders: FolderOptions, extension: str, kind: TextKind, appends: bool = False) -> Work:
    """The pictures in the folders, and which of them need a text. Left-overs of killed runs are removed there.

    Args:
        folders: see there.
        extension: of the files that get the texts, with the dot.
        kind: what the texts are.
        appends: texts are added to those that are there, so every picture needs one; `overwrite` then does nothing.

    Raises:
        UserError: with everything that is wrong: a folder is missing, holds no pictures or cannot be written to, two
            pictures would share one file, the files that are there hold texts of the other kind.
    """
    problems = Problems()
    problems.attempt(lambda: _check_extension(extension))
    problems.raise_if_any()  # without it the files in the folders say nothing
    todo, kept, there = Targets(extension), Targets(extension), Targets(extension)
    others, pairs = _Unread(), 0
    endings = dict.fromkeys((extension, *DEFAULT_CAPTION_EXTENSIONS))
    for listing in list_folders(folders.train_data_dir, tuple(endings), folders.recursive, problems):
        with_text = [name for name in listing.pictures if _has(listing, name, extension)]
        stays = frozenset() if folders.overwrite or appends else frozenset(with_text)
        without = [name for name in listing.pictures if name not in stays] if stays else listing.pictures
        there.add(listing.folder, with_text)
        kept.add(listing.folder, with_text if stays else ())
        todo.add(listing.folder, without)
        pairs += _count_pairs(listing, without, extension)
        others.add(listing.folder)
        _check_shared(listing, extension, problems)
        if without:
            _check_writable(listing.folder, problems)
    if not appends:  # which makes no text of the other kind, but one of both, in which nothing is lost
        _check_kind(there, extension, kind, problems)
    problems.raise_if_any()
    for folder in {**dict.fromkeys(todo.folders), **dict.fromkeys(kept.folders)}:
        remove_left_overs(folder, Path(text_name("a", extension)).suffix)
    _tell_found(todo, kept, others, extension, pairs)
    return Work(todo, kept, appends, folders.overwrite and not appends)


def _has(listing: Listing, picture: str, extension: str) -> bool:
    return os.path.normcase(text_name(picture, extension)) in listing.texts


def _check_extension(extension: str) -> None:
    problems, where = Problems(), f"{_FLAG} {extension}"
    if not extension.startswith("."):
        problems.add("it does not begin with a dot", where, f"give .{extension}")
    elif _NOT_IN_NAMES.search(extension) or extension.endswith((".", " ")) or extension.strip() != extension:
        problems.add("no file name can end so everywhere", where, "give a dot and letters, such as .txt")
    elif is_picture_name(f"a{extension}") or Path(f"a{extension.lower()}").suffix in _NO_TEXTS:
        problems.add("files with this ending hold no captions or tags", where, "give .txt or .caption")
    problems.raise_if_any()


def _check_shared(listing: Listing, extension: str, problems: Problems) -> None:
    """Two pictures of one text file. Capitals make no difference: on many disks they are none."""
    seen, twice = set[str](), set[str]()
    for file in (text_name(name, extension).casefold() for name in listing.pictures):
        (twice if file in seen else seen).add(file)
    by_file: dict[str, list[str]] = {}
    for name in listing.pictures if twice else ():
        by_file.setdefault(text_name(name, extension).casefold(), []).append(name)
    shared = [names for file, names in by_file.items() if file in twice]
    if shared:
        told = some_of([" and ".join(names) for names in shared[:_NAMES_TOLD]], len(shared))
        fix = "rename all but one of each, or move them to a folder of their own"
        problems.add(f"pictures whose names differ only in their ending share one {extension}: {told}",
                     str(listing.folder), fix)  # fmt: skip


def _check_writable(folder: Path, problems: Problems) -> None:
    error = why_not_writable(folder)
    if error is not None:
        what = f"no file can be written here: {error.strerror or error}"
        problems.add(what, str(folder), "check rights and free space, or copy the pictures to another place")


def _check_kind(there: Targets, extension: str, kind: TextKind, problems: Problems) -> None:
    """Captions must not come to stand among tags, nor tags among captions (PRE-06)."""
    step = max(1, -(-len(there) // _FILES_READ))
    texts = [(there[number].file, _first_line(there[number].file)) for number in range(0, len(there), step)]
    reads_as_other = looks_like_tags if kind is TextKind.CAPTION else looks_like_caption
    found = [(file, text) for file, text in texts if text is not None and reads_as_other(text)]
    if len(found) < _FEWEST_OF_OTHER_KIND or 2 * len(found) <= len(texts):
        return
    (file, text), other = found[0], TextKind.TAGS if kind is TextKind.CAPTION else TextKind.CAPTION
    example = text if len(text) <= _EXAMPLE else f"{text[:_EXAMPLE]}…"
    usual, unusual = (".caption", ".blip") if kind is TextKind.CAPTION else (".txt", ".tags")
    better = usual if extension != usual else unusual
    problems.add(
        f"files with this ending hold {other.value}, and {kind.value} would take their place or stand among them: "
        f"{file} says \"{example}\"",
        f"{_FLAG} {extension}",
        f"give another ending, such as {_FLAG} {better}, or move those files away",
    )  # fmt: skip


def _first_line(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            return split_lines(opened.read(_HEAD).decode("utf-8-sig", "replace"))[0].strip()
    except OSError:
        return None


def _count_pairs(listing: Listing, without: Sequence[str], extension: str) -> int:
    """Pictures that will have both a .txt and a .caption file."""
    if extension not in DEFAULT_CAPTION_EXTENSIONS:
        return 0
    others = [ending for ending in DEFAULT_CAPTION_EXTENSIONS if ending != extension]
    return sum(any(_has(listing, name, other) for other in others) for name in without)


class _Unread:
    """Pictures of kinds that are not read, by the reason: how many, and the first of them."""

    def __init__(self) -> None:
        self.by_reason: dict[str, tuple[int, list[str]]] = {}

    def add(self, folder: Path) -> None:
        for name in other_pictures(folder):
            count, first = self.by_reason.get(why_not_read(name), (0, []))
            first += [str(folder / name)] if count < _NAMES_TOLD else []
            self.by_reason[why_not_read(name)] = count + 1, first


def _tell_found(todo: Targets, kept: Targets, others: _Unread, extension: str, pairs: int) -> None:
    for reason, (count, first) in others.by_reason.items():
        _log.warning("%s", printable(f"{count} pictures are left out ({reason}): {some_of(first, count)}"))
    _log.info("%s", f"pictures: {len(todo) + len(kept)}, of them {len(todo)} to do, {len(kept)} have their {extension}")
    if pairs:
        both = " and ".join(DEFAULT_CAPTION_EXTENSIONS)
        _log.info(
            "%s",
            f"{pairs} pictures will have {both} files: training on these folders then asks for {_FLAG}; "
            "metadata files take captions and tags together",
        )
