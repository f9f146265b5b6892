"""Which pictures get a text, found and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from library.options.captioning import FolderOptions


class TextKind(Enum):
    """What the texts are, which tells when files of one kind would take the place of the other."""

    CAPTION = "captions"
    TAGS = "tags"


@dataclass(frozen=True)
class Target:
    """A picture, and the file that gets its text; `old` is what that file holds now, None where it is not there."""

    picture: Path
    file: Path


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        todo: pictures that need a text, in the order of folders and names.
        kept: pictures whose text is there already and stays.
        appends: texts are added to what the files hold.
    """

    todo: Sequence[Target]
    kept: Sequence[Target]
    appends: bool = False


def find_work(folders: FolderOptions, extension: str, kind: TextKind, appends: bool = False) -> Work:
    """The pictures in the folders, and which of them need a text.

    Raises:
        UserError: with everything that is wrong: a folder is missing, holds no pictures or cannot be written to, two
            pictures would share one file, the files that are there hold texts of the other kind.
    """
    raise NotImplementedError
