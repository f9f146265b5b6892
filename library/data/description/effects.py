"""Dataset options that would be without effect: asked for but not done is a mistake.

One given for several folders may be without effect in some of them, as regularisation pictures rarely have tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

from library.core.errors import Problems
from library.data.description.fallback import look_up
from library.data.description.schema import Structure, Table
from library.options.data import DataOptions

_SEPARATORS = ("caption_separator", "keep_tokens_separator", "secondary_separator")
_TAG_CHANGES = ("shuffle_caption", "caption_tag_dropout_rate", "token_warmup_step")
_LOOK_CHANGES = ("color_aug", "random_crop", "face_crop_aug_range")


@dataclass(frozen=True)
class _Need:
    """`key` does something only where one of `others` is switched on."""

    key: str
    others: tuple[str, ...]
    what: str
    fix: str


_NEEDS = (
    _Need(
        "keep_tokens",
        _TAG_CHANGES,
        "keep_tokens has no effect: tags are neither shuffled nor dropped",
        "switch shuffle_caption on, give caption_tag_dropout_rate, or remove it",
    ),
    _Need(
        "token_warmup_min",
        ("token_warmup_step",),
        "token_warmup_min has no effect: the number of tags does not grow",
        "give token_warmup_step as well, or remove it",
    ),
    _Need(
        "augmentation_variants",
        _LOOK_CHANGES,
        "augmentation_variants has no effect: crops and colours are always the same",
        "switch random_crop or color_aug on, or remove it",
    ),
)


def check_effects(structure: Structure, options: DataOptions, problems: Problems) -> None:
    """Complains about every option of the dataset that does nothing anywhere."""
    for need in _NEEDS:
        if structure.bad_keys.isdisjoint((need.key, *need.others)):
            for place in _idle_places(structure, options, need.key, _Switched(need.others, options)):
                problems.add(need.what, place, need.fix)
    if "caption_extension" not in structure.bad_keys:
        what = "caption_extension has no effect: the captions stand in a metadata file"
        for place in _idle_places(structure, options, "caption_extension", _reads_caption_files):
            problems.add(what, place, "remove it, or the metadata file")
    if "validation_split" not in structure.bad_keys:
        what = "validation_split has no effect: regularisation pictures are never held out"
        for place in _idle_places(structure, options, "validation_split", lambda tables: not _is_reg(tables, options)):
            problems.add(what, place, "remove it, or give it to the pictures that are to be learned")
    _check_repeats(structure, options, problems)
    for tables in _all_subsets(structure):
        _check_reg_repeats(tables, options, problems)
        _check_separators(tables, options, problems)


Tables = tuple[Table, ...]  # of one subset, from the innermost to the outermost


@dataclass(frozen=True)
class _Switched:
    """Whether a subset has one of `keys` switched on."""

    keys: tuple[str, ...]
    options: DataOptions

    def __call__(self, tables: Tables) -> bool:
        return any(look_up(key, tables, self.options).value for key in self.keys)


def _reads_caption_files(tables: Tables) -> bool:
    return "metadata_file" not in tables[0].places


def _is_reg(tables: Tables, options: DataOptions) -> bool:
    return bool(look_up("is_reg", tables, options).value)


def _idle_places(
    structure: Structure, options: DataOptions, key: str, has_effect: Callable[[Tables], bool]
) -> list[str]:
    """The places that give `key` without an effect in any subset they count for."""
    places: dict[str, bool] = {}
    for tables in _all_subsets(structure):
        given = look_up(key, tables, options)
        if given.value and given.place:
            places[given.place] = places.get(given.place, False) or has_effect(tables)
    return [place for place, works in places.items() if not works]


def _check_reg_repeats(tables: Tables, options: DataOptions, problems: Problems) -> None:
    repeats = look_up("num_repeats", tables, options)
    if _is_reg(tables, options) and repeats.value % 1:
        what = f"num_repeats {repeats.value:g} of regularisation pictures has a fraction"
        fix = "give a whole number: each epoch uses as many of them as training pictures, and all have their turn"
        problems.add(what, repeats.place or "num_repeats", fix)


def _check_separators(tables: Tables, options: DataOptions, problems: Problems) -> None:
    """Marks in captions that hold one another could not be told apart."""
    marks = {key: look_up(key, tables, options) for key in _SEPARATORS}
    given = {key: mark for key, mark in marks.items() if mark.value}
    for outer, inner in permutations(given, 2):
        if given[inner].value in given[outer].value and (given[inner].value != given[outer].value or outer > inner):
            what = f"{outer} {given[outer].value!r} holds {inner} {given[inner].value!r}, and could not be told apart"
            place = given[outer].place or given[inner].place or f"--{outer}"
            if not any(problem.what == what for problem in problems):
                problems.add(what, place, "give marks that share no text, such as , and ||| and ;;;")


def _check_repeats(structure: Structure, options: DataOptions, problems: Problems) -> None:
    has_metadata = options.in_json is not None or any("metadata_file" in t[0].places for t in _all_subsets(structure))
    if options.dataset_repeats > 1 and not has_metadata:
        what = "dataset_repeats has no effect: no pictures come from a metadata file"
        fix = "give --in_json FILE; repeats of folders are num_repeats in the dataset file, or the number in their name"
        problems.add(what, "--dataset_repeats", fix)


def _all_subsets(structure: Structure) -> Iterator[Tables]:
    for dataset in structure.datasets:
        for subset in dataset.subsets:
            yield subset, dataset.table, structure.general
