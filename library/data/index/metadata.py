"""The metadata style: one JSON file holds the captions and tags of many pictures, `{key: {"caption": …, "tags": …}}`.

A key is a picture's stem, its path from the subset's folder with or without ending, or its full path. Where it fits
nothing there, a path counts from the working folder, as it does for the public tools.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from library.core.errors import Problem, Problems
from library.core.wording import some_of
from library.data.captions.caption_files import split_lines
from library.data.index.finder import PictureFinder, Place
from library.data.index.metadata_json import TEXT_KEYS, first_of, read_entries, wrong_key
from library.data.index.within import is_full_path

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
    from_here: tuple[str, ...]  # keys that fit only from the working folder


class Matches(NamedTuple):
    """What keys name: the key of each picture, the keys that name none, and what is wrong with the others.

    `from_here` are keys that fit nothing below the folders from which keys count, but from the working folder.
    """

    key_of: Mapping[Place, str]
    missing: Sequence[str]
    unclear: Sequence[Problem]
    from_here: Sequence[str]


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
    key_of, missing, unclear, from_here = match_keys(keys, path, finder)
    if missing:
        problems.extend(_report_missing(missing, len(keys), path, image_dir))
    problems.extend(unclear)
    base = finder.bases[0] if finder.bases else None
    root, named = _names_below(key_of, base, image_dir)
    pictures = [ListedPicture(named[place], keys[key]) for place, key in key_of.items()]
    return ListedPictures(root, tuple(sorted(pictures)), finder.others_than(key_of), tuple(from_here))


def match_keys(keys: Iterable[str], path: Path, finder: PictureFinder) -> Matches:
    """Looks up the keys of a metadata file; `path` is that file, for messages."""
    keys_of: dict[Place, list[str]] = defaultdict(list)
    missing: list[str] = []
    unclear: list[Problem] = []
    from_here: list[str] = []
    for key in keys:
        found = finder.find_below(key)
        if not found and (found := finder.find_here(key)):
            from_here.append(key)
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
    key_of = {place: several[0] for place, several in keys_of.items()}
    return Matches(key_of, missing, first_of(unclear, path), from_here)


def told_from_here(keys: Sequence[str]) -> str:
    """What is told of keys that are found only from the working folder."""
    return f"{len(keys)} keys fit only as paths from the working folder ({Path.cwd()}): {_some(keys)}"


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


def _some(keys: Sequence[str]) -> str:
    return some_of(list(keys[:_NAMES_TOLD]), len(keys))
