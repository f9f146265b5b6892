"""Texts that lie beside the pictures already: is there anything in them, and are they of the other kind?"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from library.captioning.text_kinds import looks_like_caption, looks_like_tags, may_be_caption, may_be_tags
from library.core.errors import Problems, UserError
from library.core.wording import some_of
from library.data.captions.caption_files import read_caption, split_lines
from library.data.pictures.picture_kinds import system_path

_PERHAPS_EMPTY = 32  # bytes; nobody leaves so many blanks, and opening every file takes long on slow disks
_FILES_READ = 50  # of a folder, to find out of which kind its texts are
_HEAD = 4096  # bytes of such a file
_EXAMPLE = 60  # characters
_NAMES_TOLD = 3
_FEWEST_OF_OTHER_KIND = 2  # one text alone proves nothing: a model may have written it


def holds_text(file: Path) -> bool:
    """Whether a file is there and training finds something to read in it, or something that it cannot read."""
    try:
        found = os.stat(system_path(file))  # noqa: PTH116  it is asked for each of 10,000 files
        if not stat.S_ISREG(found.st_mode):
            return False
    except OSError:  # no such file, a link to nothing, a name that is too long
        return False
    if found.st_size >= _PERHAPS_EMPTY:
        return True
    try:
        return read_caption(file, whole=True) is not None
    except UserError:
        return True


class OtherKind:
    """Looks for texts of the other kind among those that are there (PRE-06).

    Captions must not come to stand among tags, nor tags among captions: a folder is refused where more than half of its
    texts read as the other kind. Where they would be overwritten all are read, and two of the other kind are enough.

    Args:
        extension: of the files.
        writes_tags: what is to be written; else captions.
        overwrites: texts take the place of those that are there.
        flag: the option that gives `extension`, for messages.
    """

    def __init__(self, extension: str, writes_tags: bool, overwrites: bool, flag: str) -> None:
        self._extension, self._overwrites, self._flag = extension, overwrites, flag
        self._own, self._other = ("tags", "captions") if writes_tags else ("captions", "tags")
        self._reads_as_other: Callable[[str], bool] = {
            (True, False): looks_like_caption,
            (True, True): may_be_caption,
            (False, False): looks_like_tags,
            (False, True): may_be_tags,
        }[writes_tags, overwrites]
        self._texts = 0
        self._found = _Found()
        self._refused = _Found()

    def look(self, files: Sequence[Path]) -> None:
        """Reads texts of one folder more."""
        step = 1 if self._overwrites else max(1, -(-len(files) // _FILES_READ))
        here, texts = _Found(), 0
        for file in files[::step]:
            text = _first_line(file)
            if text is not None:
                texts += 1
                if self._reads_as_other(text):
                    here.add(file, text)
        if here.count >= _FEWEST_OF_OTHER_KIND and texts < 2 * here.count:
            self._refused.extend(here)
        self._texts += texts
        self._found.extend(here)

    def tell(self, problems: Problems) -> None:
        """Adds what is wrong, once for all folders."""
        found = self._refused
        if self._overwrites or 2 * self._found.count > self._texts:  # also where each folder holds one text alone
            found = self._found
        if found.count < _FEWEST_OF_OTHER_KIND:
            return
        usual, unusual = (".txt", ".tags") if self._own == "tags" else (".caption", ".blip")
        ending = f"give another ending, such as {self._flag} {usual if self._extension != usual else unusual}"
        if self._overwrites:
            what = f"{found.count} files that would be overwritten hold {self._other}, not {self._own}: {found}"
            where = f"--overwrite with {self._flag} {self._extension}"
            fix = f"{ending}, or move these files away, or delete them if nobody needs them"
        else:
            what = f"files with this ending hold {self._other}, and {self._own} would stand among them: {found}"
            where, fix = f"{self._flag} {self._extension}", f"{ending}, or move those files away"
        problems.add(what, where, fix)


class _Found:
    """Texts of the other kind: how many, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[Path, str]] = []

    def add(self, file: Path, text: str) -> None:
        self.count += 1
        if len(self._first) < _NAMES_TOLD:
            self._first.append((file, text))

    def extend(self, other: _Found) -> None:
        self.count += other.count
        self._first = [*self._first, *other._first][:_NAMES_TOLD]

    def __str__(self) -> str:
        (file, text), *others = self._first
        example = text if len(text) <= _EXAMPLE else f"{text[:_EXAMPLE]}…"
        return some_of([f'{file} says "{example}"', *(str(other) for other, _ in others)], self.count)


def _first_line(file: Path) -> str | None:
    """The first line with something in it."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_HEAD).decode("utf-8-sig", "replace")
    except OSError:
        return None
    return next((line for line in map(str.strip, split_lines(text)) if line), "")
