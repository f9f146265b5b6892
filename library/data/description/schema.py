"""The structure of a dataset file: [general], [[datasets]], [[datasets.subsets]], checked key by key.

An upper level may give the keys of a lower one as their default, except those that name files and folders. Voluptuous
stops at the first bad entry of a list, so each table is checked on its own and all complaints are gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import voluptuous as vol

from library.core.errors import Problems, nearest_name
from library.core.sizes import Size, Span
from library.core.toml_files import BACKSLASH_HINT
from library.core.toml_lines import Keys
from library.options.base import convert
from library.options.checks import at_least, between, multiple_of, not_blank, rising_from, share

Where = Callable[[Keys], str]  # the way to a value -> file and line, or flag

GENERAL, DATASET, SUBSET = "[general]", "[[datasets]]", "[[datasets.subsets]]"
_STRUCTURE_KEYS = MappingProxyType({"general": GENERAL, "datasets": DATASET, "subsets": SUBSET})


def caption_endings(values: Sequence[str]) -> str | None:
    """A check: endings of caption files, each with its dot and once."""
    for value in values:
        if "," in value:
            return f"must be a list of endings, got {value!r} in one"
        if len(value) < 2 or not value.startswith("."):
            return f"must begin with a dot, such as .txt, got {value!r}"
    return "must name no ending twice" if len(set(values)) < len(values) else None


def path_text(value: str) -> str | None:
    """A check: the text can be a path. TOML turns `\\t` of `C:\\train` in double quotes into a tab."""
    if any(ord(letter) < ord(" ") for letter in value):
        return f"holds a character that no path has, got {value!r}. {BACKSLASH_HINT}"
    return not_blank(value)


@dataclass(frozen=True)
class _Key:
    kind: Any
    example: str
    check: Callable[[Any], str | None] | None = None

    def __call__(self, value: Any) -> Any:
        """Converts and checks one value, as voluptuous wants it."""
        try:
            converted = convert(value, self.kind)
        except ValueError as error:
            raise vol.Invalid(str(error)) from None
        complaint = self.check(converted) if self.check else None
        if complaint:
            raise vol.Invalid(complaint)
        return converted


_DATASET_KEYS: Mapping[str, _Key] = MappingProxyType(
    {
        "resolution": _Key(Size, "512 (square) or [512, 768] (width, height)"),
        "batch_size": _Key(int, "4", at_least(1)),
        "enable_bucket": _Key(bool, "true"),
        "min_bucket_reso": _Key(int, "256", multiple_of(8)),
        "max_bucket_reso": _Key(int, "1024", multiple_of(8)),
        "bucket_reso_steps": _Key(int, "64", multiple_of(8)),
        "bucket_no_upscale": _Key(bool, "true"),
    }
)
_SHARED_SUBSET_KEYS: Mapping[str, _Key] = MappingProxyType(
    {
        "class_tokens": _Key(str, "'shs dog'"),
        "num_repeats": _Key(float, "10", between(0.0001, 1_000_000)),
        "is_reg": _Key(bool, "true"),
        "loss_weight": _Key(float, "0.5", at_least(0)),
        "caption_extension": _Key(tuple[str, ...], "'.txt'", caption_endings),
        "allow_missing_captions": _Key(bool, "true"),
        "caption_separator": _Key(str, "','", not_blank),
        "shuffle_caption": _Key(bool, "true"),
        "keep_tokens": _Key(int, "1", at_least(0)),
        "keep_tokens_separator": _Key(str, "'|||'", not_blank),
        "secondary_separator": _Key(str, "';;;'", not_blank),
        "enable_wildcard": _Key(bool, "true"),
        "caption_prefix": _Key(str, "'photo of'"),
        "caption_suffix": _Key(str, "', outdoors'"),
        "caption_tag_dropout_rate": _Key(float, "0.1", share),
        "caption_dropout_rate": _Key(float, "0.05", share),
        "caption_dropout_every_n_epochs": _Key(int, "10", at_least(0)),
        "token_warmup_min": _Key(int, "1", at_least(1)),
        "token_warmup_step": _Key(float, "0.2", at_least(0)),
        "flip_aug": _Key(bool, "true"),
        "color_aug": _Key(bool, "true"),
        "random_crop": _Key(bool, "true"),
        "face_crop_aug_range": _Key(Span, "[2.0, 4.0]", rising_from(1.0)),
        "alpha_mask": _Key(bool, "true"),
        "cache_info": _Key(bool, "true"),
        "validation_split": _Key(float, "0.1", share),
    }
)
_SUBSET_KEYS: Mapping[str, _Key] = MappingProxyType(
    {
        "image_dir": _Key(str, "'pictures/dog'", path_text),
        "metadata_file": _Key(str, "'pictures/dog.json'", path_text),
        "conditioning_data_dir": _Key(str, "'pictures/dog_masks'", path_text),
        **_SHARED_SUBSET_KEYS,
    }
)
_LEVEL_KEYS: Mapping[str, Mapping[str, _Key]] = MappingProxyType(
    {
        GENERAL: {**_DATASET_KEYS, **_SHARED_SUBSET_KEYS},
        DATASET: {**_DATASET_KEYS, **_SHARED_SUBSET_KEYS},
        SUBSET: _SUBSET_KEYS,
    }
)


def valid_keys(level: str) -> frozenset[str]:
    """The keys that a table of `level` may have, of `GENERAL`, `DATASET` and `SUBSET`."""
    return frozenset(_LEVEL_KEYS[level])


@dataclass(frozen=True)
class Table:
    """One table of the dataset file: the valid values, and where each of them stands."""

    values: Mapping[str, Any]
    places: Mapping[str, str]


@dataclass(frozen=True)
class DatasetTables:
    """One [[datasets]] entry with its subsets; `name` as messages call it."""

    name: str
    table: Table
    subsets: tuple[Table, ...]


@dataclass(frozen=True)
class Structure:
    """The whole dataset file. `bad_keys` had problems and are left out; what depends on them cannot be judged."""

    general: Table
    datasets: tuple[DatasetTables, ...]
    bad_keys: frozenset[str]


def read_structure(content: Mapping[str, Any], where: Where, problems: Problems) -> Structure:
    """Checks the structure and every value of a dataset file.

    Args:
        content: the parsed file, or the same dictionary made from old-style flags.
        where: names the place of a key.
        problems: receives every mistake: unknown or misplaced keys, wrong types, values out of range, missing tables.
    """
    return _Reader(where, problems).read(content)


class _Reader:
    """Walks the tables of a file; `keys` is the way to the table or value at hand."""

    def __init__(self, where: Where, problems: Problems) -> None:
        self._where = where
        self._problems = problems
        self._bad_keys: set[str] = set()

    def read(self, content: Mapping[str, Any]) -> Structure:
        general, datasets = Table({}, {}), []
        for key, value in content.items():
            if key == "general":
                general = self._read_general(value)
            elif key == "datasets":
                datasets = self._read_datasets(value)
            else:
                self._report_unknown(key, "", self._where((key,)))
        if "datasets" not in content:
            fix = f"add {DATASET} and {SUBSET} with an image_dir"
            self._problems.add(f"there is no {DATASET}", self._where(("datasets",)), fix)
        return Structure(general, tuple(datasets), frozenset(self._bad_keys))

    def _read_general(self, value: Any) -> Table:
        if isinstance(value, Mapping):
            return self._read_table(value, GENERAL, GENERAL, ("general",))
        what = "general must be a table"
        self._problems.add(what, self._where(("general",)), f"write {GENERAL} with single brackets")
        return Table({}, {})

    def _read_datasets(self, value: Any) -> list[DatasetTables]:
        if not self._is_table_list(value, DATASET, self._where(("datasets",))):
            return []
        return [self._read_dataset(entry, number) for number, entry in enumerate(value)]

    def _read_dataset(self, entry: Mapping[str, Any], index: int) -> DatasetTables:
        name, keys = f"dataset {index + 1}", ("datasets", index)
        place = self._place(keys, name)
        table = self._read_table({key: value for key, value in entry.items() if key != "subsets"}, DATASET, name, keys)
        if "subsets" not in entry:
            self._problems.add("the dataset has no subsets", place, f"add {SUBSET} with an image_dir")
            return DatasetTables(name, table, ())
        if not self._is_table_list(entry["subsets"], SUBSET, place):
            return DatasetTables(name, table, ())
        subsets = []
        for number, subset in enumerate(entry["subsets"], 1):
            label, way = f"{name}, subset {number}", (*keys, "subsets", number - 1)
            place = self._place(way, label)
            if "image_dir" not in subset and "metadata_file" not in subset:
                fix = "name the folder with the pictures, or a metadata_file with full paths"
                self._problems.add("image_dir is missing", place, fix)
            subsets.append(self._read_table(subset, SUBSET, label, way))
        return DatasetTables(name, table, tuple(subsets))

    def _is_table_list(self, value: Any, level: str, place: str) -> bool:
        if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            return True
        self._problems.add(f"a list of tables is needed, at least one, got {_kind_of(value)}", place, f"write {level}")
        return False

    def _read_table(self, entries: Mapping[str, Any], level: str, name: str, way: Keys) -> Table:
        keys = _LEVEL_KEYS[level]
        places = {key: self._place((*way, key), name) for key in entries}
        known = {key: value for key, value in entries.items() if key in keys}
        for key in entries:
            if key not in keys:
                self._report_unknown(key, level, places[key])
        values = dict(known)
        try:
            values = vol.Schema({vol.Optional(key): kind for key, kind in keys.items()})(known)
        except vol.MultipleInvalid as error:
            for invalid in error.errors:
                key = str(invalid.path[0])
                self._problems.add(
                    f"{key}: {invalid.msg}", places[key], f"write for example {key} = {keys[key].example}"
                )
                self._bad_keys.add(key)
            values = {key: keys[key](value) for key, value in known.items() if key not in self._bad_keys}
        return Table(values, places)

    def _place(self, way: Keys, table_name: str) -> str:
        return f"{self._where(way)} ({table_name})"

    def _report_unknown(self, key: str, level: str, place: str) -> None:
        homes = [name for name, keys in _LEVEL_KEYS.items() if key in keys]
        if key in _STRUCTURE_KEYS:
            self._problems.add(f"{key} stands at the wrong level", place, f"write it as {_STRUCTURE_KEYS[key]}")
        elif homes:
            self._bad_keys.add(key)
            self._problems.add(f"{key} stands at the wrong level", place, f"move it to {' or '.join(homes)}")
        else:
            self._problems.add(f"{key} is not a key of a dataset file", place, self._mend_for(key, level))

    @staticmethod
    def _mend_for(key: str, level: str) -> str:
        valid = list(_LEVEL_KEYS[level]) if level else list(_STRUCTURE_KEYS)
        nearest = nearest_name(key, valid) or nearest_name(key, [*_DATASET_KEYS, *_SUBSET_KEYS, *_STRUCTURE_KEYS])
        return f"did you mean {nearest}?" if nearest else f"valid here: {', '.join(valid)}"


def _kind_of(value: Any) -> str:
    names = {dict: "one table (single brackets)", list: "an empty or mixed list", str: "text", bool: "true/false"}
    return names.get(type(value), "a number")
