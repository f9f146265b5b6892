"""The texts of files beside pictures become fields of a metadata file: captions and tags alike."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.core.errors import Problems, printable
from library.core.log import get_logger
from library.core.wording import some_of
from library.data.captions.caption_changes import split_tags
from library.data.index.finder import PictureFinder, Place, from_root
from library.data.index.metadata import JOINT, Matches, match_keys, told_from_here
from library.data.index.within import is_full_path
from library.data.pictures.folders import list_folders, real_place
from library.options.preparation import MergeCaptionsOptions, MergeTagsOptions
from library.preparation.metadata_file import check_output, read_entries, write_entries
from library.preparation.texts_beside import Text, Texts, read_texts

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
    """Entries of pictures with a text, by what became of them: made, given the field, given another text, kept.

    Of those that were given another text there are the keys.
    """

    new: int = 0
    added: int = 0
    changed: list[str] = dataclass_field(default_factory=list)
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
    if source is not None:
        old = backup if backup is not None and source.samefile(out) else source
        _tell_changed(counts, field, old, set(matches.from_here))
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
            counts.changed.append(key)
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
        found.setdefault(real_place(Path(name)), (name, Path(name)))
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
    named = []
    for name, top in tops.items():
        if name.strip() and top.is_file():
            problems.add(*_not_a_folder(name))
        else:
            named.append(from_root(top) if name.strip() else name)
    ending, together = options.caption_extension, Texts()
    listings = list(list_folders(named, options.recursive, problems, (ending,)))
    for listing in listings:
        finder.know(str(listing.folder), listing.pictures)
    for top, below in groupby(listings, key=attrgetter("top")):
        found = read_texts(list(below), ending, _NORMALISED[field], top, problems)
        for mine, more in zip(vars(together).values(), vars(found).values(), strict=True):
            mine += more
    return together


def _not_a_folder(name: str) -> tuple[str, str, str]:
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
            what += ". Keys that are no full paths count from the folder that is named, or from the working folder"
            what += "" if options.full_path else "; several folders need --full_path"
        _warn(what)
    if matches.from_here:
        _warn(f"{source}: {told_from_here(matches.from_here)}. They stay so; a training finds them from there alone")
    from_here = set(matches.from_here)
    relative = [key for key in matches.key_of.values() if not is_full_path(key) and key not in from_here]
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
    if texts.shared:
        _warn(f"{len(texts.shared)} {ending} files belong to several pictures of one name: {_some(texts.shared)}")
    if texts.orphans:
        _warn(f"{len(texts.orphans)} {ending} files have no picture: {_some(texts.orphans)}")
    without = sum(text is None for _, text in texts.found)
    _say(
        f"{len(texts.found)} pictures: {counts.new} new entries, {counts.added} extended, "
        f"{len(counts.changed)} changed, {counts.same} the same, {without} pictures without text"
    )


def _tell_changed(counts: Counts, field: str, old: Path, from_here: Container[str]) -> None:
    """Which texts another one replaced: where keys do not name their folder, those of another folder do."""
    changed = counts.changed
    if not changed:
        return
    total = len(changed) + counts.same
    what = f"{len(changed)} of {total} entries that had {field} got other {field} instead: {_some(changed)}"
    what += f" (what they had stands in {old})"
    if not all(is_full_path(key) or key in from_here for key in changed):
        what = f"MOST TEXTS WERE REPLACED: {what}" if 2 * len(changed) > total else what
        what += ". Where this is another folder than before, texts of pictures of the same name took each other's "
        what += "place: merge each folder with --full_path, into a new file"
    _warn(what)


def _some(names: Sequence[str]) -> str:
    return some_of(list(names[:_NAMES_TOLD]), len(names))


def _say(text: str) -> None:
    log.info("%s", printable(text))


def _warn(text: str) -> None:
    log.warning("%s", printable(text))
