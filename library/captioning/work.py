"""Which pictures get a text, found and checked before a model is loaded."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import overload

from library.captioning.texts_there import OtherKind, holds_text
from library.core.atomic_io import remove_left_overs, why_not_writable
from library.core.errors import Problems
from library.core.log import get_logger
from library.core.wording import some_of
from library.data.captions.caption_files import DEFAULT_CAPTION_EXTENSIONS
from library.data.pictures.folders import Listing, list_folders
from library.data.pictures.picture_kinds import is_picture_name
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
_EXAMPLE = 60  # characters
_LONGEST_NAME = 255  # bytes, on Windows UTF-16 units


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
            pictures would share one file, a file's name would be too long, the files that are there hold texts of the
            other kind.
    """
    problems = Problems()
    problems.attempt(lambda: _check_extension(extension))
    problems.raise_if_any()  # without it the files in the folders say nothing
    todo, kept = Targets(extension), Targets(extension)
    overwrites = folders.overwrite and not appends
    other_kind = OtherKind(extension, kind is TextKind.TAGS, overwrites, _FLAG)
    pairs = there = 0
    endings = dict.fromkeys((extension, *DEFAULT_CAPTION_EXTENSIONS))
    for listing in list_folders(folders.train_data_dir, folders.recursive, problems, tuple(endings)):
        texts = {os.path.normcase(name) for name in listing.files if name not in listing.broken}
        named = [name for name in listing.pictures if _has(texts, name, extension)]
        files = {name: listing.folder / text_name(name, extension) for name in named}
        with_text = [name for name, file in files.items() if holds_text(file)]
        stays = frozenset() if folders.overwrite or appends else frozenset(with_text)
        without = [name for name in listing.pictures if name not in stays] if stays else listing.pictures
        there += len(with_text)
        if not appends:  # which makes no text of the other kind, but one of both, in which nothing is lost
            other_kind.look([files[name] for name in with_text])
        kept.add(listing.folder, with_text if stays else ())
        todo.add(listing.folder, without)
        pairs += _count_pairs(texts, without, extension)
        _check_shared(listing, extension, problems)
        _check_lengths(listing.folder, without, extension, problems)
        if without:
            _check_writable(listing.folder, problems)
    other_kind.tell(problems)
    problems.raise_if_any()
    for folder in {**dict.fromkeys(todo.folders), **dict.fromkeys(kept.folders)}:
        remove_left_overs(folder, Path(text_name("a", extension)).suffix)
    work = Work(todo, kept, appends, overwrites)
    _tell_found(work, extension, there, pairs)
    return work


def _has(texts: Container[str], picture: str, extension: str) -> bool:
    return os.path.normcase(text_name(picture, extension)) in texts


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
    for file in (_in_capitals(text_name(name, extension)) for name in listing.pictures):
        (twice if file in seen else seen).add(file)
    by_file: dict[str, list[str]] = {}
    for name in listing.pictures if twice else ():
        by_file.setdefault(_in_capitals(text_name(name, extension)), []).append(name)
    shared = [names for file, names in by_file.items() if file in twice]
    if shared:
        told = some_of([" and ".join(names) for names in shared[:_NAMES_TOLD]], len(shared))
        fix = "rename all but one of each, or move them to a folder of their own"
        problems.add(f"pictures whose names differ only in their ending share one {extension}: {told}",
                     str(listing.folder), fix)  # fmt: skip


def _in_capitals(name: str) -> str:
    """A name as NTFS compares it: letter by letter, so that "Straße" and "Strasse", "ı" and "i" stay two."""
    return name.upper() if name.isascii() else "".join(map(_capital, name))


def _capital(letter: str) -> str:
    capital = letter.upper()
    return capital if len(capital) == 1 and letter.isascii() == capital.isascii() else letter


def _check_lengths(folder: Path, names: Sequence[str], extension: str, problems: Problems) -> None:
    """Texts whose names no usual disk takes; a disk that has longer names of pictures is none."""
    too_long = [name for name in names if _length(text_name(name, extension)) > _LONGEST_NAME >= _length(name)]
    if too_long:
        told = some_of([f"{name[:_EXAMPLE]}…" for name in too_long[:_NAMES_TOLD]], len(too_long))
        what = f"names of pictures are so long that with {extension} no file can have them: {told}"
        problems.add(what, str(folder), "shorten these names")


def _length(name: str) -> int:
    if len(name) * 4 <= _LONGEST_NAME:  # UTF-8 has 4 bytes for a letter at most
        return len(name)
    return len(name.encode("utf-16-le", "surrogatepass")) // 2 if os.name == "nt" else len(os.fsencode(name))


def _check_writable(folder: Path, problems: Problems) -> None:
    error = why_not_writable(folder)
    if error is not None:
        what = f"no file can be written here: {error.strerror or error}"
        problems.add(what, str(folder), "check rights and free space, or copy the pictures to another place")


def _count_pairs(texts: Container[str], without: Sequence[str], extension: str) -> int:
    """Pictures that will have both a .txt and a .caption file."""
    if extension not in DEFAULT_CAPTION_EXTENSIONS:
        return 0
    others = [ending for ending in DEFAULT_CAPTION_EXTENSIONS if ending != extension]
    return sum(any(_has(texts, name, other) for other in others) for name in without)


def _tell_found(work: Work, extension: str, there: int, pairs: int) -> None:
    stay = "these get more" if work.appends else "these are overwritten" if work.overwrites else "these stay"
    has = f"{there} have their {extension}" + (f" ({stay})" if there else "")
    _log.info("%s", f"pictures: {len(work.todo) + len(work.kept)}, of them {len(work.todo)} to do, {has}")
    if pairs:
        both = " and ".join(DEFAULT_CAPTION_EXTENSIONS)
        _log.info(
            "%s",
            f"{pairs} pictures will have {both} files: training on these folders then asks for {_FLAG}; "
            "metadata files take captions and tags together",
        )
