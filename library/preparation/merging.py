"""The texts of files beside pictures become fields of a metadata file: captions and tags alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.core.errors import Problems, printable
from library.core.log import get_logger
from library.core.wording import some_of
from library.data.captions.caption_changes import split_tags
from library.data.index.metadata import JOINT, Matches, PictureFinder, Place, from_root, is_full_path, match_keys
from library.options.preparation import MergeCaptionsOptions, MergeTagsOptions
from library.preparation.metadata_file import check_output, read_entries, write_entries
from library.preparation.texts_beside import Text, Texts, list_folders, read_texts

log = get_logger(__name__)

Entries = dict[str, dict[str, Any]]

_ORDER = "DIR [DIR ...] OUT_JSON"
_NAMES_TOLD = 5


def tidy_tags(line: str) -> str:
    """Tags with a comma and a blank between them; their order and spelling stay, empty ones go."""
    return JOINT.join(split_tags(line))


# What becomes of the text of a file, by the field that it is for.
_NORMALISED: Mapping[str, Callable[[str], str]] = MappingProxyType({"caption": str, "tags": tidy_tags})


@dataclass
class Counts:
    """Entries of pictures with a text, by what became of them: made, given the field, given another text, kept."""

    new: int = 0
    added: int = 0
    changed: int = 0
    same: int = 0


def merge_texts(field: str, options: MergeCaptionsOptions | MergeTagsOptions) -> None:
    """Gathers the texts beside pictures in one field of a metadata file's entries, and tells what changed.

    Entries that are there keep their keys, their place and their other fields; a picture's entry is found by any key
    that training understands. Entries without a picture stay, and so do texts of pictures that have no file now.

    Args:
        field: of the entries, "caption" or "tags".
        options: of the script.

    Raises:
        UserError: with everything that is wrong; nothing is written then.
    """
    problems = Problems()
    tops = _unique_folders(options.train_data_dir)
    several = sum(not top.is_file() for top in tops.values())
    if several > 1 and not options.full_path:
        what = f"pictures of {several} folders may have the same names"
        problems.add(what, "DIR", "add --full_path, which names each picture by its full path")
    source, entries = _read_source(options, problems)
    finder = PictureFinder(list(tops.values()))
    texts = _collect(tops, finder, field, options, problems)
    matches = match_keys(entries, source or Path(options.out_json), finder)
    problems.extend(matches.unclear)
    problems.raise_if_any()

    home = None if options.full_path else finder.bases[0]
    counts = extend(entries, texts.found, field, matches.key_of, lambda place: key_for(place, home, finder))
    out = Path(options.out_json)
    was_there = out.exists()
    backup = write_entries(out, entries)
    _tell_entries(matches, options, source)
    _tell_texts(texts, counts, options)
    if was_there and backup is None:
        _say(f"{out} holds all of this already, and stays as it is")
    else:
        _say(f"written: {out}, {len(entries)} entries" + (f"; what it held before: {backup}" if backup else ""))


def extend(
    entries: Entries,
    texts: Iterable[Text],
    field: str,
    key_of: Mapping[Place, str],
    make_key: Callable[[Place], str],
) -> Counts:
    """Puts texts into one field of entries; pictures without a text are passed over.

    Args:
        entries: are changed; new ones come last.
        texts: of pictures.
        field: that receives them.
        key_of: keys of the pictures that have an entry.
        make_key: the key of a picture that has none.
    """
    counts = Counts()
    for place, text in texts:
        if text is None:
            continue
        key = key_of.get(place)
        entry = entries.setdefault(make_key(place), {}) if key is None else entries[key]
        if key is None:
            counts.new += 1
        elif field not in entry:
            counts.added += 1
        elif entry[field] != text:
            counts.changed += 1
        else:
            counts.same += 1
        entry[field] = text
    return counts


def key_for(place: Place, home: str | None, finder: PictureFinder) -> str:
    """The key of a picture, with forward slashes.

    It is the path from `home`, without the ending where that names no other picture; or, where `home` is None, the full
    path with the ending.
    """
    if home is None:
        return Path(*place).as_posix()
    name = finder.shortest_name(place)
    return name if place.folder == home else f"{Path(place.folder).relative_to(home).as_posix()}/{name}"


def _unique_folders(named: Sequence[str]) -> dict[str, Path]:
    """Each folder once, however often and by whichever path it is named; by the first of its names."""
    found: dict[str, tuple[str, Path]] = {}
    for name in named:
        found.setdefault(os.path.normcase(os.path.realpath(name)), (name, Path(name)))
    return dict(found.values())


def _read_source(options: MergeCaptionsOptions | MergeTagsOptions, problems: Problems) -> tuple[Path | None, Entries]:
    """The file whose entries are extended, and these; None where a new one is begun."""
    out = Path(options.out_json)
    known = len(problems)
    check_output(out, _ORDER, problems)
    is_good = len(problems) == known
    if options.in_json is None:
        if not is_good or not out.exists():
            return None, {}
        _say(f"{out} is there, and is extended; with --in_json FILE and another name it would stay as it is")
        return out, read_entries(out, problems)
    source = Path(options.in_json)
    if not is_good and source.exists() and out.exists() and source.samefile(out):
        return source, {}  # told already
    return source, read_entries(source, problems)


def _collect(
    tops: Mapping[str, Path],
    finder: PictureFinder,
    field: str,
    options: MergeCaptionsOptions | MergeTagsOptions,
    problems: Problems,
) -> Texts:
    """The texts of all folders; the finder is told what lies there."""
    seen: set[str] = set()
    together = Texts()
    for name, top in tops.items():
        if not name.strip() or (top.exists() and not top.is_dir()):
            problems.add(*_not_a_folder(name))
            continue
        known, listed = len(problems), len(seen)
        listings = list(list_folders(from_root(top), options.caption_extension, options.recursive, seen, problems))
        for listing in listings:
            finder.know(listing.folder, listing.pictures)
        if len(problems) > known or len(seen) == listed:  # a folder below one that was named before is taken already
            continue
        found = read_texts(listings, options.caption_extension, _NORMALISED[field], name, problems)
        for mine, more in zip(vars(together).values(), vars(found).values(), strict=True):
            mine += more
    return together


def _not_a_folder(name: str) -> tuple[str, str, str]:
    if not name.strip():
        return "a folder without a name", "DIR", "name a folder; . is the one you are in"
    what = "this is a file; a folder of pictures is expected"
    if name.lower().endswith(".json"):
        return what, name, f"a metadata file to extend is given as --in_json {name}; the order is {_ORDER}"
    return what, name, f"name the folder it lies in; the order is {_ORDER}"


def _tell_entries(matches: Matches, options: MergeCaptionsOptions | MergeTagsOptions, source: Path | None) -> None:
    """What is worth knowing of entries that were there before."""
    if matches.missing:
        what = (
            f"{source}: {len(matches.missing)} entries have no picture, and stay as they are: {_some(matches.missing)}"
        )
        if not all(map(is_full_path, matches.missing)):
            what += (
                ". Keys that are no full paths count from the folder that is named; several folders need --full_path"
            )
        _warn(what)
    relative = [key for key in matches.key_of.values() if not is_full_path(key)]
    if options.full_path and relative:
        what = f"{len(relative)} entries keep keys that are no full paths: {_some(relative)}"
        _warn(f"{source}: {what}. A training finds them when it is told their folder (--train_data_dir)")


def _tell_texts(texts: Texts, counts: Counts, options: MergeCaptionsOptions | MergeTagsOptions) -> None:
    ending = options.caption_extension
    if texts.without_file:
        _warn(f"{len(texts.without_file)} pictures have no {ending} file: {_some(texts.without_file)}")
    if texts.empty:
        _warn(f"{len(texts.empty)} {ending} files hold no text in their first line: {_some(texts.empty)}")
    if texts.longer:
        what = f"{len(texts.longer)} {ending} files hold more than one line, of which the first counts, as in training"
        _warn(f"{what}: {_some(texts.longer)}")
    without = sum(text is None for _, text in texts.found)
    _say(
        f"{len(texts.found)} pictures: {counts.new} new entries, {counts.added} extended, {counts.changed} changed, "
        f"{counts.same} the same, {without} pictures without text"
    )


def _some(names: Sequence[str]) -> str:
    return some_of(list(names[:_NAMES_TOLD]), len(names))


def _say(text: str) -> None:
    log.info("%s", printable(text))


def _warn(text: str) -> None:
    log.warning("%s", printable(text))
