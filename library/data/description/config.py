"""From options and a dataset file (or old-style folders) to checked dataset descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.core.errors import Problems
from library.core.sizes import Size
from library.core.toml_files import read_toml
from library.core.toml_lines import Keys
from library.data.augment import NO_AUGMENTATION, Augmentations
from library.data.buckets import BucketLimits
from library.data.captions.caption_changes import CaptionChanges
from library.data.captions.caption_files import DEFAULT_CAPTION_EXTENSIONS
from library.data.description.effects import check_effects
from library.data.description.fallback import Value, look_up
from library.data.description.folders import metadata_tables, subset_tables
from library.data.description.schema import DatasetTables, Structure, Table, Where, caption_endings, read_structure
from library.options.data import DataOptions

_PLAIN_STEP = 64  # without bucketing; every layer of the U-Net halves such sizes evenly
_BUCKET_SIZE_KEYS = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
_SHAPE_KEYS = frozenset({"resolution", "enable_bucket", "bucket_no_upscale", *_BUCKET_SIZE_KEYS})
_PICTURE_KEYS = ("image_dir", "metadata_file")
_CAPTION_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "shuffle": "shuffle_caption",
        "keep_tokens": "keep_tokens",
        "tag_dropout_rate": "caption_tag_dropout_rate",
        "dropout_rate": "caption_dropout_rate",
        "dropout_every_n_epochs": "caption_dropout_every_n_epochs",
        "wildcard": "enable_wildcard",
        "separator": "caption_separator",
        "keep_tokens_separator": "keep_tokens_separator",
        "secondary_separator": "secondary_separator",
        "prefix": "caption_prefix",
        "suffix": "caption_suffix",
        "warmup_min": "token_warmup_min",
        "warmup_step": "token_warmup_step",
    }
)
_AUGMENTATION_FIELDS: Mapping[str, str] = MappingProxyType(
    {"flip": "flip_aug", "colour": "color_aug", "random_crop": "random_crop", "face_crop_range": "face_crop_aug_range"}
)


@dataclass(frozen=True)
class SubsetConfig:
    """Pictures of a folder, or of a metadata file, which alone may go without one.

    Attributes:
        num_repeats: uses of each picture in an epoch; with a fraction, so many on average over the epochs.
        caption_extension_from: where endings of caption files were asked for, if they were.
        alpha_mask: the loss is weighted by the transparency of the pictures.
        conditioning_data_dir: folder of pictures that weigh it, one for each picture, see `index.masks`.
        loss_weight: factor of their loss.
        cache_info: what the index knows of them is kept in a file.
        validation_split: share of them that is held out of the training, see `library.data.held_out`.
        is_validation: they are held out; no epoch uses them.
        only_within: of the entries of the metadata file only those in or below `image_dir` are taken.
    """

    image_dir: Path | None
    num_repeats: float
    class_tokens: str | None
    is_reg: bool
    caption_extensions: tuple[str, ...]
    allow_missing_captions: bool
    caption_changes: CaptionChanges
    caption_extension_from: str | None = None
    metadata_file: Path | None = None
    augmentations: Augmentations = NO_AUGMENTATION
    alpha_mask: bool = False
    loss_weight: float = 1.0
    cache_info: bool = False
    validation_split: float = 0.0
    is_validation: bool = False
    conditioning_data_dir: Path | None = None
    only_within: bool = False

    @property
    def home(self) -> Path:
        """What names the pictures: their folder, or the metadata file where none is given."""
        home = self.image_dir or self.metadata_file
        if home is None:
            raise ValueError("a subset without image_dir and metadata_file")
        return home

    def for_validation(self) -> SubsetConfig:
        """The same pictures as validation sees them: in no epoch, always with the same look and the whole caption."""
        settled = replace(
            self.caption_changes,
            shuffle=False,
            keep_tokens=0,
            tag_dropout_rate=0.0,
            dropout_rate=0.0,
            dropout_every_n_epochs=0,
            warmup_step=0,
        )
        return replace(
            self,
            num_repeats=0.0,
            caption_changes=settled,
            augmentations=NO_AUGMENTATION,
            alpha_mask=False,
            conditioning_data_dir=None,
            loss_weight=0.0,
            is_validation=True,
        )


@dataclass(frozen=True)
class DatasetConfig:
    """Pictures that share resolution (pixels) and batch size; `bucketing` is None when all get that one shape."""

    resolution: Size
    batch_size: int
    bucketing: BucketLimits | None
    subsets: tuple[SubsetConfig, ...]

    def is_for_validation(self) -> bool:
        """Whether no picture of it is meant to be trained."""
        return bool(self.subsets) and all(subset.validation_split >= 1 for subset in self.subsets)

    @property
    def is_validation(self) -> bool:
        """Whether all its pictures are held out of the training; see `library.data.held_out`."""
        return bool(self.subsets) and all(subset.is_validation for subset in self.subsets)


@dataclass(frozen=True)
class Description:
    """What will be trained on, and notes about how it was understood."""

    datasets: tuple[DatasetConfig, ...]
    notes: tuple[str, ...]


def describe(options: DataOptions) -> Description:
    """Reads the dataset description from `--dataset_config`, or from old-style folders and `--in_json`.

    Raises:
        UserError: with every mistake in the file, the folder names and the sizes. Pictures are not opened yet.
    """
    problems = Problems()
    description = read_description(options, problems)
    problems.raise_if_any()
    return description


def read_description(options: DataOptions, problems: Problems) -> Description:
    """As `describe`, but gathers the mistakes and returns what was understood, so that its pictures can be checked."""
    notes = list[str]()
    if complaint := caption_endings(options.caption_extension):
        problems.add(complaint, "--caption_extension", "write it as .txt")
    source = Problems()
    content, where = _read_source(options, source, notes)
    problems.extend(source)
    if source and not content:
        if options.dataset_config is not None:
            return Description((), tuple(notes))
        # the pictures are unclear, but the sizes on the command line can still be judged
        nothing = Table({}, {})
        unclear = DatasetTables("command line", nothing, ())
        _build_dataset(unclear, Structure(nothing, (unclear,), frozenset()), options, problems, notes)
        return Description((), tuple(notes))
    structure = read_structure(content, where, problems)
    built = [_build_dataset(tables, structure, options, problems, notes) for tables in structure.datasets]
    # those without anything to train come last, so that the numbers of the others do not depend on them
    datasets = sorted((dataset for dataset in built if dataset), key=DatasetConfig.is_for_validation)
    check_effects(structure, options, problems)
    return Description(tuple(datasets), tuple(notes))


def _read_source(options: DataOptions, problems: Problems, notes: list[str]) -> tuple[dict[str, Any], Where]:
    old_style = ("train_data_dir", "in_json", "reg_data_dir")
    folders = [f"--{name}" for name in old_style if getattr(options, name) is not None]
    if options.dataset_config is not None:
        if folders:
            what = f"--dataset_config and {' and '.join(folders)} are both given"
            fix = "name the folders and metadata files in the dataset file, or leave that file out"
            problems.add(what, "command line", fix)
            return {}, _no_place
        file = read_toml(Path(options.dataset_config), "--dataset_config")
        return file.content, file.where
    if options.train_data_dir is None and options.in_json is None:
        what = "--reg_data_dir is given without --train_data_dir" if folders else "no pictures are given"
        problems.add(what, "command line", "give --train_data_dir DIR, or --dataset_config FILE.toml")
        return {}, _no_place
    if _name_one_folder(options.train_data_dir, options.reg_data_dir):
        what = "--train_data_dir and --reg_data_dir name the same folder"
        problems.add(what, "command line", "give the parent of the regularisation folders, or leave --reg_data_dir out")
        return {}, _no_place
    if options.in_json is not None:
        subsets = metadata_tables(options.in_json, options.train_data_dir, problems)
    else:
        subsets = subset_tables(Path(str(options.train_data_dir)), "--train_data_dir", False, problems, notes)
    if options.reg_data_dir is not None:
        subsets += subset_tables(Path(options.reg_data_dir), "--reg_data_dir", True, problems, notes)
    return ({"datasets": [{"subsets": subsets}]} if subsets else {}), _no_place


def _name_one_folder(first: str | None, second: str | None) -> bool:
    return first is not None and second is not None and Path(first).resolve() == Path(second).resolve()


def _no_place(keys: Keys) -> str:
    return "command line"


def _build_dataset(
    tables: DatasetTables, structure: Structure, options: DataOptions, problems: Problems, notes: list[str]
) -> DatasetConfig | None:
    outer = (tables.table, structure.general)
    built = tuple(_build_subset((subset, *outer), options) for subset in tables.subsets if _is_clear(subset))
    if built and all(subset.is_reg for subset in built):
        fix = "add a subset with the pictures to learn, or remove is_reg"
        problems.add("there are only regularisation pictures", tables.name, fix)
    if structure.bad_keys & _SHAPE_KEYS:
        return None
    found = {key: look_up(key, outer, options) for key in _SHAPE_KEYS}
    if found["resolution"].value is None:
        fix = "give --resolution 512 (or width,height), or resolution = 512 in the dataset file"
        problems.add("the training resolution is missing", f"--resolution ({tables.name})", fix)
        return None
    bucketing = _build_bucketing(found, tables.name, problems, notes)
    _check_resolution(found, bucketing, problems)
    batch_size = look_up("batch_size", outer, options).value
    return DatasetConfig(found["resolution"].value, batch_size, bucketing, built)


def _is_clear(subset: Table) -> bool:
    """Whether it is said where the pictures are; a bad value was told already."""
    given = [key for key in _PICTURE_KEYS if key in subset.places]
    return bool(given) and all(key in subset.values for key in given)


def _path_in(subset: Table, key: str) -> Path | None:
    return Path(subset.values[key]) if key in subset.values else None


def _build_subset(tables: tuple[Table, ...], options: DataOptions) -> SubsetConfig:
    ending = look_up("caption_extension", tables, options)
    repeats = look_up("num_repeats", tables, options)
    metadata_file = _path_in(tables[0], "metadata_file")
    if metadata_file is not None and repeats.place is None:
        repeats = Value(float(options.dataset_repeats), "--dataset_repeats")
    class_tokens = look_up("class_tokens", tables, options).value
    is_reg = look_up("is_reg", tables, options).value
    return SubsetConfig(
        image_dir=_path_in(tables[0], "image_dir"),
        num_repeats=repeats.value,
        class_tokens=class_tokens.strip() or None if class_tokens else None,
        is_reg=is_reg,
        caption_extensions=ending.value or DEFAULT_CAPTION_EXTENSIONS,
        allow_missing_captions=look_up("allow_missing_captions", tables, options).value,
        caption_changes=CaptionChanges(**_fields(_CAPTION_FIELDS, tables, options)),
        caption_extension_from=ending.place,
        metadata_file=metadata_file,
        augmentations=Augmentations(**_fields(_AUGMENTATION_FIELDS, tables, options)),
        alpha_mask=look_up("alpha_mask", tables, options).value,
        conditioning_data_dir=_path_in(tables[0], "conditioning_data_dir"),
        loss_weight=look_up("loss_weight", tables, options).value,
        cache_info=look_up("cache_info", tables, options).value,
        validation_split=0.0 if is_reg else look_up("validation_split", tables, options).value,
    )


def _fields(names: Mapping[str, str], tables: Sequence[Table], options: DataOptions) -> dict[str, Any]:
    """Values by the field that takes them; those that nobody gave are left to the field's own default."""
    found = {field: look_up(key, tables, options).value for field, key in names.items()}
    return {field: value for field, value in found.items() if value is not None}


def _build_bucketing(found: dict[str, Value], name: str, problems: Problems, notes: list[str]) -> BucketLimits | None:
    given_sizes = [key for key in _BUCKET_SIZE_KEYS if found[key].place]
    no_upscale = found["bucket_no_upscale"]
    if not found["enable_bucket"].value:
        if no_upscale.value:
            what = "bucket_no_upscale has no effect while enable_bucket is off"
            problems.add(what, no_upscale.place or name, "switch enable_bucket on, or remove it")
        if given_sizes:
            notes.append(f"{name}: {', '.join(given_sizes)} have no effect while enable_bucket is off")
        return None
    if no_upscale.value and (idle := [key for key in given_sizes if key != "bucket_reso_steps"]):
        notes.append(f"{name}: {', '.join(idle)} have no effect with bucket_no_upscale: pictures set the shapes")
    minimum, maximum, step = (found[key].value for key in _BUCKET_SIZE_KEYS)
    return BucketLimits(minimum, maximum, step, no_upscale.value)


def _check_resolution(found: dict[str, Value], bucketing: BucketLimits | None, problems: Problems) -> None:
    """Complains about sizes that no bucket could serve, naming the nearest ones that work."""
    resolution = found["resolution"].value
    step = bucketing.step if bucketing else _PLAIN_STEP
    if any(side % step for side in resolution):
        what = f"both sides of {resolution} must be divisible by {step}"
        sizes = " or ".join(str(size) for size in _nearest_sizes(resolution, step))
        problems.add(what, _place_of("resolution", found), f"the nearest sizes are {sizes}")
    if bucketing is None or bucketing.no_upscale:
        return
    for key in ("min_bucket_reso", "max_bucket_reso"):
        limit = found[key].value
        if limit % step:
            what = f"{key} {limit} must be divisible by bucket_reso_steps {step}"
            near = " or ".join(str(side) for side in _multiples_around(limit, step))
            problems.add(what, _place_of(key, found), f"the nearest values are {near}")
    if bucketing.min_size > bucketing.max_size:
        what = f"min_bucket_reso {bucketing.min_size} is above max_bucket_reso {bucketing.max_size}"
        problems.add(what, _place_of("min_bucket_reso", found), "lower it, or raise max_bucket_reso")
        return
    shortest, longest = min(resolution) // step * step, -(-max(resolution) // step) * step
    if min(resolution) < bucketing.min_size:
        what = f"the resolution {resolution} has a side below min_bucket_reso {bucketing.min_size}"
        fix = f"lower it with --min_bucket_reso {max(shortest, step)} (or min_bucket_reso in the dataset file)"
        problems.add(what, _place_of("min_bucket_reso", found), fix)
    if max(resolution) > bucketing.max_size:
        what = f"the resolution {resolution} has a side above max_bucket_reso {bucketing.max_size}"
        fix = f"raise it with --max_bucket_reso {longest} (or max_bucket_reso in the dataset file)"
        problems.add(what, _place_of("max_bucket_reso", found), fix)


def _place_of(key: str, found: dict[str, Value]) -> str:
    return found[key].place or f"--{key} (its default)"


def _multiples_around(side: int, step: int) -> list[int]:
    below = side // step * step
    return [multiple for multiple in (below, below + step) if multiple > 0]


def _nearest_sizes(resolution: Size, step: int) -> list[Size]:
    """The valid sizes just below and just above, sides that are valid already staying as they are."""
    choices = [_multiples_around(side, step) if side % step else [side] for side in resolution]
    return sorted({Size(choices[0][0], choices[1][0]), Size(choices[0][-1], choices[1][-1])})
