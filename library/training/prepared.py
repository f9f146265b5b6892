"""Metadata whose pictures were prepared: each entry holds the options under which its latents were made, and a training
from that file takes them as if they were given, so that it finds these latents.

Kept as one text in each entry, beside `train_resolution`: `resolution=512,512 … flip_aug=false vae_precision=float`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.core.errors import Problems, printable
from library.core.log import get_logger
from library.core.sizes import Size
from library.core.wording import some_of
from library.options.base import OptionGroup, convert, default_of, info_of, option_fields, text_to_value, value_type
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.parse import OptionValues
from library.options.preparation import LatentPreparationOptions
from library.preparation.metadata_file import read_entries

log = get_logger(__name__)

PREPARED = "sd_atelier_prepared"  # the field of an entry
VAE_PRECISION_OF: Mapping[str, str] = MappingProxyType({"no": "float", "fp16": "fp16", "bf16": "bf16"})
SCRIPT = "finetune/prepare_buckets_latents.py"

_TOLD: Mapping[str, type[OptionGroup]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("resolution", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"), DataOptions
        ),
        **dict.fromkeys(("flip_aug", "alpha_mask"), DataOptions),
        "vae_precision": CachingOptions,
    }
)
_MAY_GO_WITHOUT = ("flip_aug", "alpha_mask")  # what is stored beside the plain latents can stay unused
_ALWAYS: Mapping[str, Any] = MappingProxyType({"enable_bucket": True})
_DISK = "cache_latents_to_disk"
_DRAWN = ("color_aug", "random_crop", "face_crop_aug_range")  # anew at each use, so that no cache can hold them
_WAYS_TOLD = 3

Values = Mapping[str, Any]


def describe_preparation(options: LatentPreparationOptions) -> str:
    """The text of the field `PREPARED` for pictures that were prepared with these options."""
    values = {
        **{name: getattr(options, name) for name in _TOLD if hasattr(options, name)},
        "resolution": options.max_resolution,
        "vae_precision": VAE_PRECISION_OF[options.mixed_precision],
    }
    return " ".join(f"{name}={_as_text(values[name])}" for name in _TOLD)


def take_prepared(options: OptionValues) -> OptionValues:
    """The options of a training, with those that its metadata file was prepared with where `--resolution` is not given.

    Raises:
        UserError: entries were prepared in several ways, or an option that is given contradicts.
    """
    data = options.of(DataOptions)
    if data.in_json is None or data.dataset_config is not None:
        return options
    file = Path(data.in_json)
    if data.resolution is not None:
        if _DISK not in options.given and _has_prepared(file):
            what = "has prepared latents, which this training does not use"
            _say(f"{file} {what}: leave --resolution out, or give --{_DISK}")
        return options
    entries = read_entries(file, Problems()) if _has_prepared(file) else {}  # the checks tell what is wrong with it
    ways = Counter(way for entry in entries.values() if isinstance(way := entry.get(PREPARED), str))
    if not ways:
        if file.is_file():
            _say(f"{file} is not prepared; {SCRIPT} writes one that tells the resolution")
        return options
    problems = Problems()
    values = _agreed(ways, entries, file, problems)
    problems.raise_if_any()
    taken = _taken(values, options, file, problems)
    problems.raise_if_any()
    _tell(taken, options, file, len(entries) - sum(ways.values()), len(entries))
    return _with_values(options, taken)


def _has_prepared(file: Path) -> bool:
    """Whether the name of the field stands anywhere in the file: to look is quicker than to understand it."""
    try:
        return PREPARED.encode() in file.read_bytes()
    except (OSError, ValueError):
        return False


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
        return _read(way)
    except ValueError as error:
        fix = f"prepare the latents anew ({SCRIPT}), or give --resolution and the other options yourself"
        problems.add(f"{PREPARED} is not understood: {error}", str(file), fix)
    return {}


def _read(text: str) -> Values:
    """The options in the text of the field.

    Raises:
        ValueError: it is not what `describe_preparation` writes.
    """
    values: dict[str, Any] = {}
    for word in text.split():
        name, _, raw = word.partition("=")
        if name not in _TOLD or name in values:
            raise ValueError(f"{word} has no place there")
        group = _TOLD[name]
        kind = value_type(group, name)
        values[name] = convert(text_to_value(raw, kind), kind)
        info = next(info_of(item) for item in option_fields(group) if item.name == name)
        complaint = info.check(values[name]) if info.check else None
        if complaint or (info.choices and values[name] not in info.choices):
            raise ValueError(complaint or f"{word} is not available")
    if missing := [name for name in _TOLD if name not in values]:
        raise ValueError(f"{', '.join(missing)} stand nowhere")
    return values


def _taken(values: Values, options: OptionValues, file: Path, problems: Problems) -> Values:
    """The values that are not given otherwise."""
    taken: dict[str, Any] = {}
    for name, value in {**_ALWAYS, **values}.items():
        own = getattr(options.of(_TOLD.get(name, DataOptions)), name)
        if name not in options.given:
            taken[name] = value
        elif own != value and not (name in _MAY_GO_WITHOUT and not own):
            what = (
                f"{_as_flag(name, own)} is given, but the latents of {file} were prepared with {_as_flag(name, value)}"
            )
            resolution = _as_flag("resolution", values["resolution"])
            fix = (
                f"leave it out, prepare anew with it, or give {resolution} as well to choose all such options yourself"
            )
            problems.add(what, f"--{name}", fix)
    if _DISK not in options.given and not _drawn_anew(options):
        taken[_DISK] = True
    return taken


def _drawn_anew(options: OptionValues) -> list[str]:
    """The options that are given which no cache can follow."""
    data = options.of(DataOptions)
    return [] if data.augmentation_variants is not None else [name for name in _DRAWN if getattr(data, name)]


def _tell(taken: Values, options: OptionValues, file: Path, unprepared: int, total: int) -> None:
    usual = {item.name: default_of(item) for group in (DataOptions, CachingOptions) for item in option_fields(group)}
    flags = [_as_flag(key, value) for key, value in taken.items() if value != usual[key]]
    _say(f"{file}: prepared latents; taken as if given: {' '.join(flags)}")
    if _DISK not in taken and not options.of(CachingOptions).cache_latents_to_disk:
        drawn = " and ".join(f"--{key}" for key in _drawn_anew(options))
        reason = f"{drawn} change pictures at each use (--augmentation_variants would not)" if drawn else "as is asked"
        _say(f"{file}: its latents are not used: {reason}")
    elif unprepared:
        _say(f"{file}: {unprepared} of {total} entries are not prepared; their pictures are encoded at the start")


def _say(line: str) -> None:
    """Of several processes, which do not know of each other yet, one says it."""
    if os.environ.get("RANK", "0") == "0":
        log.info("%s", printable(line))


def _with_values(options: OptionValues, taken: Values) -> OptionValues:
    groups = []
    for group in options.groups:
        own = {item.name for item in option_fields(type(group))}
        changed = {name: value for name, value in taken.items() if name in own}
        is_theirs = isinstance(group, (DataOptions, CachingOptions))
        groups.append(replace(group, **changed) if is_theirs else group)  # type: ignore[type-var]
    return OptionValues(tuple(groups), frozenset({*options.given, *taken}))


def _as_flag(name: str, value: Any) -> str:
    if value is True:
        return f"--{name}"
    return f"--{name} {_as_text(value)}"


def _as_text(value: Any) -> str:
    if isinstance(value, Size):
        return f"{value.width},{value.height}"
    return str(value).lower() if isinstance(value, bool) else str(value)
