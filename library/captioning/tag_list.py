"""What a tagger's folder holds: the model, and the list that says which tag each of its outputs stands for.

The list tells the family. WD: `selected_tags.csv` with the columns name and category (9 rating, 0 general, 4
character), a row for each output. DeepDanbooru: `tags.txt`, a tag a line, ratings as rating:…, and the names of
characters once more in `tags-character.txt`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from library.core.errors import UserError
from library.core.wording import some_of

WD_LIST = "selected_tags.csv"
DEEPDANBOORU_LIST = "tags.txt"
ONNX = ".onnx"

_CHARACTER_LIST = "tags-character.txt"
_KERAS = (".h5", ".keras")
_RATING_MARK = "rating:"
_MOST_BYTES = 1 << 26  # of a list; public ones have less than one megabyte
_TOLD = 4


class Family(Enum):
    """How a model wants its pictures."""

    WD = "WD tagger"
    DEEPDANBOORU = "DeepDanbooru"


class Category(Enum):
    """What a tag is about; general stands for everything that is neither of the others."""

    RATING = "rating"
    GENERAL = "general"
    CHARACTER = "character"


_WD_CATEGORIES = {"9": Category.RATING, "4": Category.CHARACTER}


@dataclass(frozen=True)
class TagList:
    """The tags in the order of the model's outputs, as the list writes them, and what each is about."""

    names: Sequence[str]
    categories: Sequence[Category]

    def of(self, category: Category) -> list[int]:
        """The outputs of a category."""
        return [number for number, found in enumerate(self.categories) if found is category]


@dataclass(frozen=True)
class TaggerFiles:
    """A tagger in a folder; `fix` is what to do when one of its files is broken."""

    model: Path
    tags: Path
    family: Family
    fix: str


def holds_tagger(folder: Path) -> bool:
    """Whether a tagger, or part of one, lies in the folder itself and not merely below it."""
    return any(_is_part(name) for name in _names_in(folder))


def holds_files(folder: Path) -> bool:
    """Whether files lie in the folder itself, besides hidden ones."""
    return any(not name.startswith(".") for name in _names_in(folder))


def find_tagger(folder: Path, where: str, fix: str) -> TaggerFiles:
    """The model and the list of tags in a folder.

    Args:
        folder: where they lie.
        where: option and value that name it, for messages.
        fix: what to do when a file is missing or broken.

    Raises:
        UserError: one of them is missing, or there are several.
    """
    names = _names_in(folder)
    models = [name for name in names if name.lower().endswith(ONNX)]
    lists = [name for name in names if name in (WD_LIST, DEEPDANBOORU_LIST)]
    if not models and any(name.lower().endswith(_KERAS) for name in names):
        what = "it holds a model of TensorFlow and none in ONNX form"
        raise UserError.of(
            what, where, "convert it: pip install tf2onnx, python -m tf2onnx.convert; or take a WD tagger"
        )
    if not models:
        raise UserError.of(f"no {ONNX} file in {folder}", where, fix)
    if not lists:
        what = f"no list of tags in {folder}: {WD_LIST} or, for DeepDanbooru, {DEEPDANBOORU_LIST}"
        raise UserError.of(what, where, fix)
    for found in (models, lists):
        if len(found) > 1:
            what = f"several files in {folder} could be meant: {some_of(found[:_TOLD], len(found))}"
            raise UserError.of(what, where, "keep the one that is to be used in a folder of its own")
    family = Family.WD if lists[0] == WD_LIST else Family.DEEPDANBOORU
    return TaggerFiles(folder / models[0], folder / lists[0], family, fix)


def read_tag_list(files: TaggerFiles) -> TagList:
    """The list of tags beside a model.

    Raises:
        UserError: the file cannot be read, or is no such list.
    """
    lines = _read_lines(files.tags, files.fix)
    tags = _read_wd(lines, files) if files.family is Family.WD else _read_deepdanbooru(lines, files)
    if not tags.names:
        raise UserError.of("it names no tag", str(files.tags), files.fix)
    return tags


def _read_wd(lines: list[str], files: TaggerFiles) -> TagList:
    names, categories = list[str](), list[Category]()
    try:
        rows = csv.DictReader(lines, strict=True)
        lacking = [key for key in ("name", "category") if key not in (rows.fieldnames or ())]
        if lacking:
            what = f"it has no column {' and no column '.join(lacking)}"
            raise UserError.of(what, str(files.tags), files.fix)
        for row in rows:
            name, category = row["name"], row["category"]
            if not name or not category or not category.strip().isdigit():
                what = f"line {rows.line_num} is no tag: a name and the number of a category are expected"
                raise UserError.of(what, str(files.tags), files.fix)
            names.append(name)
            categories.append(_WD_CATEGORIES.get(category.strip(), Category.GENERAL))
    except csv.Error as error:
        raise UserError.of(f"it is no table of tags: {error}", str(files.tags), files.fix) from error
    return TagList(names, categories)


def _read_deepdanbooru(lines: list[str], files: TaggerFiles) -> TagList:
    names = [line.strip() for line in lines if line.strip()]
    beside = files.tags.with_name(_CHARACTER_LIST)
    characters = {line.strip() for line in _read_lines(beside, files.fix)} if beside.is_file() else set()
    return TagList(names, [_category(name, characters) for name in names])


def _category(name: str, characters: set[str]) -> Category:
    if name.startswith(_RATING_MARK):
        return Category.RATING
    return Category.CHARACTER if name in characters else Category.GENERAL


def _read_lines(path: Path, fix: str) -> list[str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError.of("it is too large for a list of tags", str(path), fix)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError.of(f"it cannot be read: {error.strerror or error}", str(path), fix) from error
    except UnicodeDecodeError as error:
        raise UserError.of(f"it is no text in UTF-8: {error.reason}", str(path), fix) from error
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError:
        return []


def _is_part(name: str) -> bool:
    return name.lower().endswith((ONNX, *_KERAS)) or name in (WD_LIST, DEEPDANBOORU_LIST)
