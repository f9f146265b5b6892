"""Metadata whose pictures were prepared: each entry holds the options under which its latents were made, and a training
from that file takes them as if they were given, so that it finds these latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from library.core.errors import Problems
from library.core.wording import some_of
from library.options.base import default_of, option_fields
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.parse import OptionValues
from library.preparation.metadata_file import read_entries
from library.training.prepared_hints import (
    DISK,
    drawn_by,
    has_prepared,
    say,
    tell_of_dataset_file,
    tell_of_file,
    values_of,
    ways_in,
)
from library.training.prepared_way import (
    ALWAYS,
    ALWAYS_SO_ENCODED,
    GROUP_OF,
    MAY_GO_WITHOUT,
    PREPARED,
    Values,
    as_flag,
    read_way,
)

SCRIPT = "finetune/prepare_buckets_latents.py"

_WAYS_TOLD = 3


def take_prepared(options: OptionValues) -> OptionValues:
    """The options of a training, with those that its metadata file was prepared with where `--resolution` is not given.

    Raises:
        UserError: entries were prepared in several ways, or an option that is given contradicts.
    """
    data = options.of(DataOptions)
    if data.dataset_config is not None:
        tell_of_dataset_file(options)
        return options
    if data.in_json is None:
        return options
    file = Path(data.in_json)
    if data.resolution is not None:
        tell_of_file(file, values_of(options))
        return options
    entries = read_entries(file, Problems()) if has_prepared(file) else {}  # the checks tell what is wrong with it
    ways = ways_in(entries)
    if not ways:
        if file.is_file():
            say(f"{file} is not prepared; {SCRIPT} writes one that tells the resolution")
        return options
    problems = Problems()
    values = _agreed(ways, entries, file, problems)
    problems.raise_if_any()
    taken = _taken(values, options, file, problems)
    problems.raise_if_any()
    _tell(taken, options, file, len(entries) - sum(ways.values()), len(entries))
    return _with_values(options, taken)


def _agreed(ways: Mapping[str, int], entries: Mapping[str, Any], file: Path, problems: Problems) -> Values:
    """The options in which all prepared entries agree."""
    way = max(ways, key=lambda text: ways[text])
    if len(ways) > 1:
        keys = {text: next(key for key, entry in entries.items() if entry.get(PREPARED) == text) for text in ways}
        common = set.intersection(*(set(text.split()) for text in ways))
        told = []
        for text in sorted(ways, key=lambda text: -ways[text])[:_WAYS_TOLD]:
            own = " ".join(word for word in text.split() if word not in common)
            told.append(f"{own or text} ({ways[text]}, such as {keys[text]})")
        fix = f"prepare them anew in one way ({SCRIPT}), or give --resolution and the other options yourself"
        problems.add(f"its entries were prepared in several ways: {some_of(told, len(ways))}", str(file), fix)
    try:
        return read_way(way)
    except ValueError as error:
        fix = f"prepare the latents anew ({SCRIPT}), or give --resolution and the other options yourself"
        problems.add(f"{PREPARED} is not understood: {error}", str(file), fix)
    return {}


def _taken(values: Values, options: OptionValues, file: Path, problems: Problems) -> Values:
    """The values that are not given otherwise."""
    taken: dict[str, Any] = {}
    for name, value in {**ALWAYS, **values}.items():
        own = getattr(options.of(GROUP_OF.get(name, DataOptions)), name)
        if name not in options.given:
            taken[name] = value
        elif own != value and not (name in MAY_GO_WITHOUT and not own):
            _contradict(name, own, value, values, file, problems)
    in_force = values_of(options)
    if not drawn_by(in_force):
        if DISK not in options.given:
            taken[DISK] = True
        if taken.get(DISK, in_force[DISK]):
            for name, value in ALWAYS_SO_ENCODED.items():
                if in_force[name] != value:
                    _contradict(name, in_force[name], value, values, file, problems)
    return taken


def _contradict(name: str, own: Any, value: Any, values: Values, file: Path, problems: Problems) -> None:
    what = f"{as_flag(name, own)} is given, but the latents of {file} were prepared with {as_flag(name, value)}"
    anew = "" if name in ALWAYS_SO_ENCODED else ", prepare anew with it"
    resolution = as_flag("resolution", values["resolution"])
    fix = f"leave it out{anew}, or give {resolution} as well to choose all such options yourself"
    problems.add(what, f"--{name}", fix)


def _tell(taken: Values, options: OptionValues, file: Path, unprepared: int, total: int) -> None:
    usual = {item.name: default_of(item) for group in (DataOptions, CachingOptions) for item in option_fields(group)}
    flags = [as_flag(key, value) for key, value in taken.items() if value != usual[key]]
    say(f"{file}: prepared; taken as if given: {' '.join(flags)}")
    in_force = {**values_of(options), **taken}
    drawn = drawn_by(in_force)
    if not in_force[DISK]:
        say(f"{file}: its latents are not used: {f'{drawn} draw other crops or colours' if drawn else 'as is asked'}")
    elif drawn and in_force["augmentation_variants"] is not None:
        what = f"{drawn} draw other crops or colours, whose latents replace the prepared ones on disk"
        say(f"{file}: {what}; with --cache_latents instead of --{DISK} they stay", is_warning=True)
    elif unprepared:
        say(f"{file}: {unprepared} of {total} entries are not prepared; their pictures are encoded at the start")


def _with_values(options: OptionValues, taken: Values) -> OptionValues:
    groups = []
    for group in options.groups:
        own = {item.name for item in option_fields(type(group))}
        changed = {name: value for name, value in taken.items() if name in own}
        is_theirs = isinstance(group, (DataOptions, CachingOptions))
        groups.append(replace(group, **changed) if is_theirs else group)  # type: ignore[type-var]
    return OptionValues(tuple(groups), frozenset({*options.given, *taken}))
