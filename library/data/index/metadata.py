"""The metadata style: one JSON file holds the captions and tags of many pictures, `{key: {"caption": …, "tags": …}}`.

A key is a picture's stem, its path from the subset's folder with or without ending, or its full path.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from library.core.errors import Problem, Problems
from library.core.wording import some_of
from library.data.captions.caption_files import split_lines
from library.data.index.metadata_json import TEXT_KEYS, first_of, read_entries, wrong_key
from library.data.pictures.picture_kinds import list_images

JOINT = ", "

_NAMES_TOLD = 5


class ListedPicture(NamedTuple):
    """A picture that an entry names: its path from the root, with forward slashes, and the text of the entry."""

    name: str
    caption: str | None


class ListedPictures(NamedTuple):
    """What the entries of a metadata file stand for, sorted by name as the pictures of a folder are."""

    root: Path
    pictures: tuple[ListedPicture, ...]
    without_entry: tuple[str, ...]  # names of other pictures in the same folders and in the subset's own


class Place(NamedTuple):
    """Where a picture lies: the absolute path of its folder, and its file name."""

    folder: str
    name: str


class Matches(NamedTuple):
    """What keys name: the key of each picture, the keys that name none, and what is wrong with the others."""

    key_of: Mapping[Place, str]
    missing: Sequence[str]
    unclear: Sequence[Problem]


def read_metadata(path: Path, problems: Problems) -> dict[str, str | None]:
    """The text of every entry by its key: caption and tags joined by a comma, None where there is neither.

    Args:
        path: the metadata file.
        problems: receives what is wrong, see `read_entries`.
    """
    return {key: _joined(entry) for key, entry in read_entries(path, problems).items()}


def find_pictures(
    keys: Mapping[str, str | None], path: Path, image_dir: Path | None, problems: Problems
) -> ListedPictures:
    """The pictures that the keys of a metadata file name.

    Args:
        keys: the text of every entry by its key, see `read_metadata`.
        path: the metadata file, for messages.
        image_dir: the folder from which keys count that are no full paths; None where all are.
        problems: receives every key that names no picture or several, and every picture that several keys name.

    Returns:
        The pictures. Their root is `image_dir`, or the nearest folder that holds all of them where some lie elsewhere;
        so their names are the same wherever that folder lies.
    """
    finder = PictureFinder(() if image_dir is None else (image_dir,))
    key_of, missing, unclear = match_keys(keys, path, finder)
    if missing:
        problems.extend(_report_missing(missing, len(keys), path, image_dir))
    problems.extend(unclear)
    base = finder.bases[0] if finder.bases else None
    root, named = _names_below(key_of, base, image_dir)
    pictures = [ListedPicture(named[place], keys[key]) for place, key in key_of.items()]
    return ListedPictures(root, tuple(sorted(pictures)), finder.others_than(key_of))


def match_keys(keys: Iterable[str], path: Path, finder: PictureFinder) -> Matches:
    """Looks up the keys of a metadata file; `path` is that file, for messages."""
    keys_of: dict[Place, list[str]] = defaultdict(list)
    missing: list[str] = []
    unclear: list[Problem] = []
    for key in keys:
        found = finder.find(key)
        if len(found) > 1:
            unclear.append(wrong_key(path, key, *_fits_several(found)))
        elif found:
            keys_of[found[0]].append(key)
        else:
            missing.append(key)
    for place, several in keys_of.items():
        if len(several) > 1:
            what = f"it names the same picture as the key {_some(several[:-1])}: {Path(*place)}"
            unclear.append(wrong_key(path, several[-1], what, "keep one of them"))
    return Matches({place: several[0] for place, several in keys_of.items()}, missing, first_of(unclear, path))


class _Folder:
    """The pictures directly in one folder, by name and by stem."""

    def __init__(self, path: str) -> None:
        self._path = path

    @cached_property
    def names(self) -> frozenset[str]:
        try:
            return frozenset(list_images(Path(self._path)))
        except (OSError, ValueError):  # not there, or a name that the file system cannot have
            return frozenset()

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self.names):
            found[name.rpartition(".")[0]].append(name)
        return dict(found)

    def matching(self, name: str) -> Sequence[str]:
        """A whole file name fits that file alone, also where it is another's stem."""
        return [name] if name in self.names else self._by_stem.get(name, ())


class PictureFinder:
    """Looks keys up; every folder is listed once.

    Args:
        bases: the folders from which keys count that are no full paths.
    """

    def __init__(self, bases: Sequence[Path]) -> None:
        self.bases = tuple(from_root(base) for base in bases)
        self._folders: dict[str, _Folder] = {}  # by absolute path
        self._absolute: dict[str, tuple[str, ...]] = {}  # by the folder part of keys

    def know(self, folder: str, names: Iterable[str]) -> None:
        """Takes the pictures directly in a folder, given by its absolute path, from one who has listed it."""
        self._folders[folder] = known = _Folder(folder)
        known.names = frozenset(names)

    def find(self, key: str) -> list[Place]:
        """Every picture that the key fits; with the slashes as they are, then all forward."""
        for spelling in dict.fromkeys((key, key.replace("\\", "/"))):
            part, name = os.path.split(spelling)
            found = [
                Place(folder, match) for folder in self._named(part) for match in self._folder(folder).matching(name)
            ]
            if found:
                return found
        return []

    def shortest_name(self, place: Place) -> str:
        """The name without its ending, where that leads to this picture and no other, or else the whole name."""
        stem = place.name.rpartition(".")[0]
        return stem if list(self._folder(place.folder).matching(stem)) == [place.name] else place.name

    def others_than(self, known: Mapping[Place, object]) -> tuple[str, ...]:
        """Pictures in the bases and in the folders of the known ones that are none of these; sorted by folder."""
        folders = {*self.bases, *(folder for folder, _ in known)}
        return tuple(
            name
            for folder in sorted(folders)
            for name in sorted(self._folder(folder).names)
            if Place(folder, name) not in known
        )

    def _named(self, part: str) -> tuple[str, ...]:
        """The absolute folders that the folder part of a key may mean."""
        if part not in self._absolute:
            homes = ("",) if Path(part).is_absolute() else self.bases
            self._absolute[part] = tuple(dict.fromkeys(from_root(Path(home, part)) for home in homes))
        return self._absolute[part]

    def _folder(self, path: str) -> _Folder:
        if path not in self._folders:
            self._folders[path] = _Folder(path)
        return self._folders[path]


def from_root(path: Path) -> str:
    """The path from the root of the disk, without `..`; links stay as they are, since names are told by them."""
    return os.path.normpath(path.absolute())


def _names_below(places: Iterable[Place], base: str | None, image_dir: Path | None) -> tuple[Path, dict[Place, str]]:
    """The root, and the path of every picture from there."""
    places = list(places)
    folders = {place.folder for place in places}
    try:
        root = os.path.commonpath(folders if base is None else {*folders, base})
    except ValueError:  # several drives of Windows have no root, so full paths must do
        return Path(), {place: Path(*place).as_posix() for place in places}
    below = {folder: "" if folder == root else f"{Path(folder).relative_to(root).as_posix()}/" for folder in folders}
    names = {place: below[place.folder] + place.name for place in places}
    return (image_dir if image_dir is not None and root == base else Path(root)), names


def _joined(entry: Mapping[str, str]) -> str | None:
    """Caption and tags; of a caption of several lines, each has the tags behind it."""
    captions, tags = (_lines(entry.get(key, "")) for key in TEXT_KEYS)
    return "\n".join(JOINT.join([line, *tags]) for line in captions) or JOINT.join(tags) or None


def _lines(text: str) -> list[str]:
    """The lines of a text that hold more than blanks, without blanks around them."""
    return [line.strip() for line in split_lines(text) if line.strip()]


def _fits_several(found: Sequence[Place]) -> tuple[str, str]:
    """What is wrong with a key that fits several pictures, and its mend."""
    if len({folder for folder, _ in found}) > 1:
        return f"it fits {' and '.join(str(Path(*place)) for place in found)}", "write the full path as the key"
    names = " and ".join(name for _, name in found)
    return f"it fits {names}", "write the ending in the key, or move one away"


def _report_missing(missing: Sequence[str], total: int, path: Path, image_dir: Path | None) -> list[Problem]:
    """Keys without a picture; those that need a folder apart, where none was given."""
    problems = []
    relative = [key for key in missing if image_dir is None and not is_full_path(key)]
    others = [key for key in missing if image_dir is not None or is_full_path(key)]
    if relative:
        what = f"{len(relative)} of {total} keys are no full paths, and no folder is named from which they count"
        fix = "name it with image_dir (--train_data_dir with --in_json)"
        problems.append(Problem(f"{what}: {_some(relative)}", str(path), fix))
    if others:
        what = f"{len(others)} of {total} entries have no picture: {_some(others)}"
        fix = "bring the pictures back, or take the entries out"
        if image_dir is not None:
            what = f"{what} (looked in {image_dir})"
            fix = f"{fix}; keys are stems, paths from that folder, or full paths"
        problems.append(Problem(what, str(path), fix))
    return problems


def is_full_path(key: str) -> bool:
    """Whether the key is a full path here or on another system."""
    return key.startswith("/") or PureWindowsPath(key).is_absolute()


def _some(keys: Sequence[str]) -> str:
    return some_of(list(keys[:_NAMES_TOLD]), len(keys))
