"""What is told of prepared metadata whose options are not taken: that it is prepared, and which options would fit.

That is where `--resolution` is given beside it, or a dataset file names it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.core.errors import Problems, UserError, printable
from library.core.log import get_logger
from library.core.toml_files import read_toml
from library.data.description.fallback import look_up
from library.data.description.schema import read_structure
from library.options.base import option_fields
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.parse import OptionValues
from library.preparation.metadata_file import read_entries
from library.training.prepared_way import ALWAYS, ALWAYS_SO_ENCODED, MAY_GO_WITHOUT, PREPARED, Values, as_flag, read_way

log = get_logger(__name__)

DISK = "cache_latents_to_disk"
DRAWN = ("color_aug", "random_crop", "face_crop_aug_range")
_WITHOUT_EFFECT = ("min_bucket_reso", "max_bucket_reso")  # with bucket_no_upscale
_CONFIG = "--dataset_config"


def say(line: str, is_warning: bool = False) -> None:
    """Of several processes, which do not know of each other yet, one says it."""
    if os.environ.get("RANK", "0") == "0":
        (log.warning if is_warning else log.info)("%s", printable(line))


def has_prepared(file: Path) -> bool:
    """Whether the name of the field stands anywhere in the file: to look is quicker than to understand it."""
    try:
        return PREPARED.encode() in file.read_bytes()
    except (OSError, ValueError):
        return False


def ways_in(entries: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """How many entries were prepared in which way."""
    return Counter(way for entry in entries.values() if isinstance(way := entry.get(PREPARED), str))


def drawn_by(in_force: Values) -> str:
    """The options by which uses of a picture have other crops or colours than were prepared."""
    return " and ".join(f"--{name}" for name in DRAWN if in_force[name])


def values_of(options: OptionValues) -> Values:
    """All options in force on which it depends what latents must be."""
    groups = (options.of(DataOptions), options.of(CachingOptions))
    return {item.name: getattr(group, item.name) for group in groups for item in option_fields(type(group))}


def tell_of_file(file: Path, in_force: Values, place: str = "") -> None:
    """One line where the prepared latents of a metadata file are not used, or are replaced.

    Args:
        file: the metadata.
        in_force: see `values_of`.
        place: the dataset file that names the metadata.
    """
    if (found := _judge(file, in_force)) is None:
        return
    drawn = drawn_by(in_force)
    of_all = f"{found.misfits} of {found.prepared} prepared entries"
    if in_force[DISK]:
        reasons = [f"{drawn} draw other crops or colours"] if drawn else []
        if found.misfits:
            reasons.append(f"{of_all} have other options: {found.told}")
        if reasons:
            way_out = f"give these ({place})" if place else "leave --resolution out, and what was given with it"
            what = f"what differs is encoded anew and replaces the prepared latents on disk ({'; '.join(reasons)})"
            say(f"{file}: {what}. To use them {way_out if found.misfits else f'leave {drawn} out'}", is_warning=True)
        return
    what = f"{file} has prepared latents, which this training does not use"
    if drawn:
        say(f"{what}: {drawn} draw other crops or colours")
    elif place:
        say(f"{what}. To use them give --{DISK}{f' and {found.told} ({place})' if found.misfits else ''}")
    else:
        say(f"{what}: leave --resolution out{'' if found.misfits else f', or give --{DISK}'}")


def tell_of_dataset_file(options: OptionValues) -> None:
    """The same of each metadata file that `--dataset_config` names; what is wrong with that file the checks tell."""
    told = set[Path]()
    for file, in_force in _named_in(options):
        if file not in told:
            told.add(file)
            config = options.of(DataOptions).dataset_config
            tell_of_file(file, in_force, f"on the command line, or in {config}, which goes first")


def _named_in(options: OptionValues) -> Iterator[tuple[Path, Values]]:
    """The metadata files in a dataset file, each with the values in force there."""
    data, common = options.of(DataOptions), values_of(options)
    try:
        read = read_toml(Path(str(data.dataset_config)), _CONFIG)
    except UserError:
        return
    structure = read_structure(read.content, read.where, Problems())
    names = {*ALWAYS, *DRAWN, *_WITHOUT_EFFECT, *MAY_GO_WITHOUT, "resolution", "bucket_reso_steps", "bucket_no_upscale"}
    for dataset in structure.datasets:
        for subset in dataset.subsets:
            tables = (subset, dataset.table, structure.general)
            if "metadata_file" in subset.values:
                own = {name: look_up(name, tables, data).value for name in names}
                yield Path(subset.values["metadata_file"]), {**common, **own}


@dataclass(frozen=True)
class _Judged:
    """How many entries are prepared, how many of these do not fit, and the options that would."""

    prepared: int
    misfits: int
    told: str


def _judge(file: Path, in_force: Values) -> _Judged | None:
    """None where no entry is prepared."""
    if not has_prepared(file):
        return None
    ways = ways_in(read_entries(file, Problems()))
    lacking: Counter[str] = Counter()
    for way, count in ways.items():
        try:
            differing = _differing(read_way(way), in_force)
        except ValueError:
            continue  # nobody knows
        if differing:
            lacking[" ".join(differing)] += count
    told = lacking.most_common(1)[0][0] if lacking else ""
    return _Judged(ways.total(), lacking.total(), told) if ways else None


def _differing(way: Values, in_force: Values) -> list[str]:
    """The options that would have to be given for the latents to fit."""
    has_own_sizes = way["bucket_no_upscale"] and in_force["bucket_no_upscale"]
    return [
        as_flag(name, value)
        for name, value in {**ALWAYS, **way, **ALWAYS_SO_ENCODED}.items()
        if in_force[name] != value
        and not (name in MAY_GO_WITHOUT and not in_force[name])
        and not (name in _WITHOUT_EFFECT and has_own_sizes)
    ]
