"""The one rule: subset, dataset, [general], command line, default, for every key that falls back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from library.core.errors import UserError
from library.core.sizes import Size, Span
from library.data.description.config import SubsetConfig, describe
from library.data.description.schema import DATASET, GENERAL, SUBSET, valid_keys
from library.options.base import default_of, option_fields
from library.options.data import DataOptions

LEVELS = ("subset", "dataset", "general", "command line")
Read = Callable[[SubsetConfig], Any]
# key: values that can be given, and what comes of them
KEYS: dict[str, tuple[list[Any], Read]] = {
    "class_tokens": (["shs dog", "hoge girl"], lambda s: s.class_tokens),
    "num_repeats": ([2, 10, 0.25], lambda s: s.num_repeats),
    "is_reg": ([False], lambda s: s.is_reg),
    "loss_weight": ([0.5, 2.0, 1.0], lambda s: s.loss_weight),
    "caption_extension": ([".a", [".b", ".c"], ".txt"], lambda s: s.caption_extensions),
    "allow_missing_captions": ([True, False], lambda s: s.allow_missing_captions),
    "caption_separator": ([",", ";", "、"], lambda s: s.caption_changes.separator),
    "shuffle_caption": ([True, False], lambda s: s.caption_changes.shuffle),
    "keep_tokens": ([0, 1, 3], lambda s: s.caption_changes.keep_tokens),
    "keep_tokens_separator": (["|||", "@@"], lambda s: s.caption_changes.keep_tokens_separator),
    "secondary_separator": ([";;;", "&&"], lambda s: s.caption_changes.secondary_separator),
    "enable_wildcard": ([True, False], lambda s: s.caption_changes.wildcard),
    "caption_prefix": (["photo of", "絵"], lambda s: s.caption_changes.prefix),
    "caption_suffix": (["outdoors", "at night"], lambda s: s.caption_changes.suffix),
    "caption_tag_dropout_rate": ([0.0, 0.1, 1.0], lambda s: s.caption_changes.tag_dropout_rate),
    "caption_dropout_rate": ([0.0, 0.1, 1.0], lambda s: s.caption_changes.dropout_rate),
    "caption_dropout_every_n_epochs": ([0, 3, 10], lambda s: s.caption_changes.dropout_every_n_epochs),
    "token_warmup_min": ([1, 2, 5], lambda s: s.caption_changes.warmup_min),
    "token_warmup_step": ([0.0, 0.5, 100.0], lambda s: s.caption_changes.warmup_step),
    "flip_aug": ([True, False], lambda s: s.augmentations.flip),
    "color_aug": ([True, False], lambda s: s.augmentations.colour),
    "random_crop": ([True, False], lambda s: s.augmentations.random_crop),
    "face_crop_aug_range": ([[1.0, 2.0], [2.0, 4.0]], lambda s: s.augmentations.face_crop_range),
    "alpha_mask": ([True, False], lambda s: s.alpha_mask),
    "cache_info": ([True, False], lambda s: s.cache_info),
    "validation_split": ([0.0, 0.1, 1.0], lambda s: s.validation_split),
}
ONLY_FOLDERS = {"class_tokens": None, "num_repeats": 1.0, "is_reg": False}  # keys without a flag, and their defaults


def seen(key: str, value: Any) -> Any:
    """A value as the description holds it."""
    if key == "caption_extension":
        return (value,) if isinstance(value, str) else tuple(value)
    return Span(*value) if key == "face_crop_aug_range" else value


def test_every_key_of_a_folder_is_in_the_table_and_has_a_flag() -> None:
    shared = valid_keys(SUBSET) - {"image_dir", "metadata_file", "conditioning_data_dir"}
    assert shared == set(KEYS)
    assert shared <= valid_keys(DATASET) and shared <= valid_keys(GENERAL)
    flags = {item.name for item in option_fields(DataOptions)}
    assert shared - flags == set(ONLY_FOLDERS)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@pytest.mark.parametrize("key", sorted(KEYS))
def test_the_innermost_value_counts(tmp_path: Path, key: str, data: st.DataObject) -> None:
    values, read = KEYS[key]
    levels = LEVELS[:3] if key in ONLY_FOLDERS else LEVELS
    given_values = {level: data.draw(st.sampled_from(values)) for level in levels if data.draw(st.booleans())}
    lines = {
        level: f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for level, value in given_values.items()
        if level != "command line"
    }
    path = tmp_path / "d.toml"
    text = f"[general]\n{lines.get('general', '')}\n[[datasets]]\n{lines.get('dataset', '')}\n"
    path.write_text(f"{text}[[datasets.subsets]]\nimage_dir = 'a'\n{lines.get('subset', '')}\n", encoding="utf-8")
    options = DataOptions(dataset_config=str(path), resolution=Size(512, 512))
    if "command line" in given_values:
        options = replace(options, **{key: seen(key, given_values["command line"])})
    expected = next((seen(key, given_values[level]) for level in LEVELS if level in given_values), None)
    try:
        (dataset,) = describe(options).datasets
    except UserError as error:  # a value that would do nothing is told, at the place that gave it
        assert all("has no effect" in problem.what for problem in error.problems)
        return
    found = read(dataset.subsets[0])
    if expected is not None:
        assert found == expected
    elif key == "caption_extension":
        assert found == (".txt", ".caption")
    else:
        defaults = {item.name: default_of(item) for item in option_fields(DataOptions)} | ONLY_FOLDERS
        assert found == ("" if key in ("caption_prefix", "caption_suffix") else defaults[key])
