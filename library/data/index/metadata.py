"""The metadata style: one JSON file holds the captions and tags of many pictures, `{key: {"caption": …, "tags": …}}`.

A key is a picture's stem, its path from the subset's folder with or without ending, or its full path.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.captions.caption_files import split_lines
from library.data.pictures.images import list_images

TEXT_KEYS = (
    "caption",
    "tags",
)  # of an entry, in the order in which they are joined; other keys are no business of ours
JOINT = ", "

_MOST_TOLD = 20  # problems of one kind; the rest is counted
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


def read_metadata(path: Path, problems: Problems) -> dict[str, str | None]:
    """The text of every entry by its key: caption and tags joined by a comma, None where there is neither.

    Args:
        path: the metadata file, UTF-8 with or without a byte order mark.
        problems: receives what is wrong: the file cannot be read, is no JSON object, is empty, gives a key twice, or
            has entries of a wrong type, which are left out.
    """
    twice: list[str] = []
    try:
        content = _read_json(path, twice)
    except UserError as error:
        problems.extend(error.problems)
        return {}
    wrong: list[Problem] = [_wrong(path, key, "stands twice in one object", "keep one of them") for key in twice]
    captions: dict[str, str | None] = {}
    for key, entry in content.items():
        complaint = _complaint_about(entry)
        if complaint:
            wrong.append(_wrong(path, key, *complaint))
        else:
            captions[key] = _joined(entry)
    problems.extend(_first_of(wrong, path))
    return captions


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
    finder = _Finder(image_dir)
    keys_of: dict[tuple[str, str], list[str]] = defaultdict(list)
    missing: list[str] = []
    unclear: list[Problem] = []
    for key in keys:
        found = finder.find(key)
        if len(found) > 1:
            names = " and ".join(name for _, name in found)
            unclear.append(_wrong(path, key, f"it fits {names}", "write the ending in the key, or move one away"))
        elif found:
            keys_of[found[0]].append(key)
        else:
            missing.append(key)
    for (folder, name), several in keys_of.items():
        if len(several) > 1:
            what = f"it names the same picture as the key {_some(several[:-1])}: {Path(folder, name)}"
            unclear.append(_wrong(path, several[-1], what, "keep one of them"))
    if missing:
        problems.extend(_report_missing(missing, len(keys), path, image_dir))
    problems.extend(_first_of(unclear, path))
    root, named = _names_below(keys_of, finder.base, image_dir)
    pictures = [ListedPicture(named[place], keys[several[0]]) for place, several in keys_of.items()]
    return ListedPictures(root, tuple(sorted(pictures)), finder.others_than(keys_of))


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


class _Finder:
    """Looks keys up; every folder is listed once."""

    def __init__(self, image_dir: Path | None) -> None:
        self.base = None if image_dir is None else _whole(image_dir)
        self._folders: dict[str, _Folder] = {}  # by absolute path
        self._absolute: dict[str, str] = {}  # by the folder part of keys

    def find(self, key: str) -> list[tuple[str, str]]:
        """Folder and name of every picture that the key fits; with the slashes as they are, then all forward."""
        for spelling in dict.fromkeys((key, key.replace("\\", "/"))):
            folder, name = os.path.split(spelling)
            if self.base is None and not Path(spelling).is_absolute():
                continue
            listed = self._folder(folder)
            if found := self._folders[listed].matching(name):
                return [(listed, match) for match in found]
        return []

    def others_than(self, known: Mapping[tuple[str, str], object]) -> tuple[str, ...]:
        """Pictures in the base and in the folders of the known ones that are none of these; sorted by folder."""
        folders = {folder for folder, _ in known}
        if self.base is not None:
            folders.add(self._folder(""))
        return tuple(
            name
            for folder in sorted(folders)
            for name in sorted(self._folders[folder].names)
            if (folder, name) not in known
        )

    def _folder(self, part: str) -> str:
        if part not in self._absolute:
            whole = _whole(Path(self.base or "", part))
            self._absolute[part] = whole
            self._folders.setdefault(whole, _Folder(whole))
        return self._absolute[part]


def _whole(path: Path) -> str:
    """From the root of the disk, without `..`; links stay as they are, since names are told by them."""
    return os.path.normpath(path.absolute())


def _names_below(
    places: Iterable[tuple[str, str]], base: str | None, image_dir: Path | None
) -> tuple[Path, dict[tuple[str, str], str]]:
    """The root, and the path of every picture from there."""
    places = list(places)
    folders = {folder for folder, _ in places}
    try:
        root = os.path.commonpath(folders if base is None else {*folders, base})
    except ValueError:  # several drives of Windows have no root, so full paths must do
        return Path(), {place: Path(*place).as_posix() for place in places}
    below = {folder: "" if folder == root else f"{Path(folder).relative_to(root).as_posix()}/" for folder in folders}
    names = {(folder, name): below[folder] + name for folder, name in places}
    return (image_dir if image_dir is not None and root == base else Path(root)), names


def _read_json(path: Path, twice: list[str]) -> dict[str, Any]:
    """The object in the file; `twice` receives the keys that an object of it gives several times."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return built

    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=build)
    except FileNotFoundError:
        raise UserError.of("the metadata file does not exist", str(path), "check the path") from None
    except IsADirectoryError:
        raise UserError.of("it is a folder, a .json file is needed", str(path), "name the file itself") from None
    except OSError as error:
        raise UserError.of(f"cannot read the file: {error.strerror}", str(path), "check its rights") from None
    except UnicodeDecodeError as error:
        what = f"the metadata is not UTF-8 text (byte {error.start})"
        raise UserError.of(what, str(path), "save it again as UTF-8") from None
    except (ValueError, RecursionError) as error:
        what = f"the metadata is not valid JSON: {error}"
        raise UserError.of(what, str(path), "mend that place, or make the file again") from None
    if isinstance(content, dict) and content:
        return content
    what = "the metadata holds no entries" if content == {} else "the metadata is no JSON object"
    fix = 'it must be {"picture": {"caption": "a text", "tags": "one, two"}} with an entry for each picture'
    raise UserError.of(what, str(path), fix)


def _complaint_about(entry: Any) -> tuple[str, str] | None:
    """What is wrong with an entry, and its mend."""
    if not isinstance(entry, dict):
        return f"the entry must be an object, got {_shown(entry)}", 'write {"caption": "a text", "tags": "one, two"}'
    for key in TEXT_KEYS:
        text = entry.get(key, "")
        if not isinstance(text, str):
            mend = "write one text, tags separated by commas, or leave it out"
            return f"{key} must be text, got {_shown(text)}", mend
        if not _can_be_written(text):
            return f"{key} holds half of a character ({text!r})", "write that character again"
    return None


def _can_be_written(text: str) -> bool:
    """JSON can spell one half of a surrogate pair, which is no text."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else f"{shown[:40]} …"


def _joined(entry: Mapping[str, str]) -> str | None:
    """Caption and tags; of a caption of several lines, each has the tags behind it."""
    captions, tags = (_lines(entry.get(key, "")) for key in TEXT_KEYS)
    return "\n".join(JOINT.join([line, *tags]) for line in captions) or JOINT.join(tags) or None


def _lines(text: str) -> list[str]:
    """The lines of a text that hold more than blanks, without blanks around them."""
    return [line.strip() for line in split_lines(text) if line.strip()]


def _report_missing(missing: Sequence[str], total: int, path: Path, image_dir: Path | None) -> list[Problem]:
    """Keys without a picture; those that need a folder apart, where none was given."""
    problems = []
    relative = [key for key in missing if image_dir is None and not _is_full_path(key)]
    others = [key for key in missing if image_dir is not None or _is_full_path(key)]
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


def _is_full_path(key: str) -> bool:
    """Whether the key is a full path here or on another system."""
    return key.startswith("/") or PureWindowsPath(key).is_absolute()


def _some(keys: Sequence[str]) -> str:
    return some_of(list(keys[:_NAMES_TOLD]), len(keys))


def _wrong(path: Path, key: str, what: str, fix: str) -> Problem:
    return Problem(what, f"{path}, key {key}", fix)


def _first_of(found: Sequence[Problem], path: Path) -> list[Problem]:
    """The first problems of one kind, and how many follow."""
    rest = len(found) - _MOST_TOLD
    more = [Problem(f"{rest} more like these", str(path), found[-1].fix)] if rest > 0 else []
    return [*found[:_MOST_TOLD], *more]
