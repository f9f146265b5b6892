"""Pictures of folders and the texts in files beside them: one file for each picture, its first line counts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.captions.caption_files import caption_names, read_caption
from library.data.index.metadata import Place, from_root
from library.data.pictures.picture_kinds import IMAGE_EXTENSIONS, is_picture_name, system_path

_MOST_TOLD = 20  # files that cannot be read; the rest is counted
_ENDINGS_TOLD = 5


@dataclass(frozen=True)
class Listing:
    """What lies in a folder, found without a call of the system for each file.

    Attributes:
        folder: its absolute path.
        pictures: names of the pictures in it, sorted by code point.
        texts: names of the files with the ending of texts.
        endings: of the other files.
        below: names of the folders in it, but for hidden ones, sorted by code point; links to folders apart.
    """

    folder: str
    pictures: Sequence[str]
    texts: Container[str]
    endings: Counter[str]
    below: Sequence[str]
    links: Sequence[str]


class Text(NamedTuple):
    """A picture and its text; None where there is no file, or nothing in its first line."""

    place: Place
    text: str | None


@dataclass
class Texts:
    """The texts of the pictures of a folder.

    Attributes:
        found: each picture, in the order of folders and names.
        without_file: pictures without a text file.
        empty: text files with nothing in their first line.
        longer: text files with more behind it.
        unreadable: what is wrong with text files.
    """

    found: list[Text] = field(default_factory=list)
    without_file: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)
    unreadable: list[Problem] = field(default_factory=list)


def list_folders(top: str, ending: str, recursive: bool, seen: set[str], problems: Problems) -> Iterator[Listing]:
    """A folder and, where `recursive`, those below, sorted by code point.

    Links to folders are followed last, so that a picture has the name of its own folder where both lead to it.

    Args:
        top: absolute path of the folder.
        ending: of the texts.
        recursive: take the folders below as well.
        seen: where the folders really are that were listed; they are passed over, and new ones are added.
        problems: receives which folders are missing or cannot be read.
    """
    waiting, links = [top], list[str]()
    while waiting or links:  # no recursion: folders may lie deeper than Python's stack
        folder = waiting.pop() if waiting else links.pop(0)
        real = os.path.normcase(os.path.realpath(folder))
        if real in seen:
            continue
        seen.add(real)
        listing = _list(folder, ending, problems)
        if listing is None:
            continue
        yield listing
        if recursive:
            waiting += [str(Path(folder, name)) for name in reversed(listing.below)]
            links += [str(Path(folder, name)) for name in listing.links]


def read_texts(
    listings: Sequence[Listing], ending: str, normalise: Callable[[str], str], top: str, problems: Problems
) -> Texts:
    """Reads the text of every picture.

    Args:
        listings: of a folder and those below.
        ending: of the texts.
        normalise: what becomes of each; "" where it holds nothing.
        top: the folder as it was named, for messages.
        problems: receives what is wrong: texts that cannot be read, and a folder without pictures or without any text.
    """
    texts = Texts()
    for listing in listings:
        for name in listing.pictures:
            place = Place(listing.folder, name)
            files = caption_names(name, (ending,), listing.texts)
            text = _read(Path(listing.folder, files[0]), normalise, texts) if files else None
            if not files:
                texts.without_file.append(str(Path(*place)))
            texts.found.append(Text(place, text))
    unread = texts.unreadable
    problems.extend(unread[:_MOST_TOLD])
    if len(unread) > _MOST_TOLD:
        problems.add(f"{len(unread) - _MOST_TOLD} more files like these", top, unread[-1].fix)
    if not unread and all(text is None for _, text in texts.found):
        problems.add(*_why_nothing(listings, texts, ending, top))
    return texts


def _read(path: Path, normalise: Callable[[str], str], texts: Texts) -> str | None:
    try:
        line = read_caption(path, whole=False)
        text = normalise(line) if line else ""
        if _is_longer(path, line or "") and (more := read_caption(path, whole=True)) and more != line:
            texts.longer.append(str(path))
    except UserError as error:
        texts.unreadable += error.problems
        return None
    if not text:
        texts.empty.append(str(path))
    return text or None


def _is_longer(path: Path, line: str) -> bool:
    """Whether a file may hold more than a line, its end and a byte order mark: most need not be read twice."""
    try:
        return path.stat().st_size > len(line.encode()) + 1
    except OSError:  # gone meanwhile; what was read counts
        return False


def _list(folder: str, ending: str, problems: Problems) -> Listing | None:
    pictures, texts, below, links = list[str](), set[str](), list[str](), list[str]()
    endings: Counter[str] = Counter()
    try:
        with os.scandir(system_path(Path(folder))) as entries:
            for entry in entries:
                if _is_folder(entry):
                    if not entry.name.startswith("."):
                        (links if entry.is_symlink() else below).append(entry.name)
                elif is_picture_name(entry.name):
                    pictures.append(entry.name)
                elif entry.name.endswith(ending):
                    texts.add(entry.name)
                else:
                    endings[PurePath(entry.name).suffix] += 1
    except FileNotFoundError:
        problems.add("the folder does not exist", folder, "check the path")
    except OSError as error:
        problems.add(f"cannot read the folder: {error.strerror}", folder, "name a folder that can be read")
    else:
        return Listing(folder, sorted(pictures), texts, endings, sorted(below), sorted(links))
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _why_nothing(listings: Sequence[Listing], texts: Texts, ending: str, top: str) -> tuple[str, str, str]:
    """What is wrong where no picture of a folder has a text, where, and what to do."""
    if not texts.found:
        below = [name for listing in listings if listing.folder == from_root(Path(top)) for name in listing.below]
        if below and len(listings) == 1:
            names = some_of(below[:_ENDINGS_TOLD], len(below))
            return f"no pictures directly in this folder; it holds the folders {names}", top, "give --recursive"
        return "no pictures in this folder", top, f"accepted are {' '.join(IMAGE_EXTENSIONS)}"
    if texts.empty:
        what = f"none of the {len(texts.empty)} {ending} files holds a text in its first line"
        return what, top, "write the texts first, or leave this folder out"
    endings = sum((listing.endings for listing in listings), Counter[str]())
    there = [name for name, _ in endings.most_common() if name]
    others = f"there are files with {some_of(there[:_ENDINGS_TOLD], len(there))}" if there else "there are no others"
    what = f"none of {len(texts.found)} pictures has a {ending} file beside it; {others}"
    return what, top, "name the ending with --caption_extension, make the texts first, or leave this folder out"
