"""Pictures of folders and the texts in files beside them: one file for each picture, its first line counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.captions.caption_files import caption_names, read_caption
from library.data.index.finder import Place
from library.data.pictures.folders import Listing

_MOST_TOLD = 20  # files that cannot be read; the rest is counted
_ENDINGS_TOLD = 5


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
        shared: text files that belong to several pictures, which differ in their ending alone.
        orphans: text files without a picture; those of pictures that are not read are no such files.
        unreadable: what is wrong with text files.
    """

    found: list[Text] = field(default_factory=list)
    without_file: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unreadable: list[Problem] = field(default_factory=list)


def read_texts(
    listings: Sequence[Listing], ending: str, normalise: Callable[[str], str], top: str, problems: Problems
) -> Texts:
    """Reads the text of every picture.

    Args:
        listings: of a folder and those below, see `list_folders`.
        ending: of the texts.
        normalise: what becomes of each; "" where it holds nothing.
        top: the folder as it was named, for messages.
        problems: receives what is wrong: texts that cannot be read, and pictures of which none has a text.
    """
    texts = Texts()
    for listing in listings:
        users = Counter[str]()
        for name in listing.pictures:
            place = Place(str(listing.folder), name)
            files = caption_names(name, (ending,), listing.files)
            text = _read(listing.folder / files[0], normalise, texts) if files else None
            users.update(files)
            if not files:
                texts.without_file.append(str(Path(*place)))
            texts.found.append(Text(place, text))
        texts.shared += [str(listing.folder / name) for name, count in users.items() if count > 1]
        for name in listing.unread:
            users.update(caption_names(name, (ending,), listing.files))
        texts.orphans += [str(listing.folder / name) for name in sorted({*listing.files} - users.keys())]
    unread = texts.unreadable
    problems.extend(unread[:_MOST_TOLD])
    if len(unread) > _MOST_TOLD:
        problems.add(f"{len(unread) - _MOST_TOLD} more files like these", top, unread[-1].fix)
    if texts.found and not unread and all(text is None for _, text in texts.found):
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


def _why_nothing(listings: Sequence[Listing], texts: Texts, ending: str, top: str) -> tuple[str, str, str]:
    """What is wrong where no picture of a folder has a text, where, and what to do."""
    if texts.empty:
        what = f"none of the {len(texts.empty)} {ending} files holds a text in its first line"
        return what, top, "write the texts first, or leave this folder out"
    endings = Counter[str]()
    for listing in listings:
        endings.update(listing.endings)
    there = [name for name, _ in endings.most_common() if name]
    others = f"there are files with {some_of(there[:_ENDINGS_TOLD], len(there))}" if there else "there are no others"
    what = f"none of {len(texts.found)} pictures has a {ending} file beside it; {others}"
    return what, top, "name the ending with --caption_extension, make the texts first, or leave this folder out"
