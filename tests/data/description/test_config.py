"""Dataset descriptions: the fallback rule, old-style folders, and sizes that cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.buckets import BucketLimits
from library.data.captions.caption_changes import CaptionChanges
from library.data.description.config import Description, describe
from library.options.data import DataOptions
from library.options.parse import parse_options
from tests.data.data_helpers import save_picture

LEVELS = ("subset", "dataset", "general", "command line")


def describe_toml(tmp_path: Path, text: str, **options: object) -> Description:
    path = tmp_path / "data.toml"
    path.write_text(text, encoding="utf-8")
    return describe(DataOptions(dataset_config=str(path), **options))  # type: ignore[arg-type]


def described(options: DataOptions) -> str:
    with pytest.raises(UserError) as error:
        describe(options)
    return str(error.value)


@pytest.mark.parametrize("number_of_levels", range(5))
def test_inner_level_wins(tmp_path: Path, number_of_levels: int) -> None:
    """Gives the ending at all levels from the outermost inwards; the innermost one given counts."""
    given = LEVELS[len(LEVELS) - number_of_levels :]
    line = {level: f"caption_extension = '.{level}'" if level in given else "" for level in LEVELS}
    text = f"""
[general]
{line["general"]}
[[datasets]]
{line["dataset"]}
[[datasets.subsets]]
image_dir = "a"
{line["subset"]}
"""
    ending = (".command line",) if "command line" in given else ()
    (dataset,) = describe_toml(tmp_path, text, resolution=Size(512, 512), caption_extension=ending).datasets
    expected = (f".{given[0]}",) if given else (".txt", ".caption")
    assert dataset.subsets[0].caption_extensions == expected
    assert (dataset.subsets[0].caption_extension_from is None) == (not given)


def test_values_of_all_levels_come_together(tmp_path: Path) -> None:
    text = """
[general]
enable_bucket = true
num_repeats = 3
[[datasets]]
resolution = 512
min_bucket_reso = 320
class_tokens = "shs dog"
[[datasets.subsets]]
image_dir = "a"
[[datasets.subsets]]
image_dir = "b"
num_repeats = 1
is_reg = true
class_tokens = ""
[[datasets]]
batch_size = 7
resolution = [768, 512]
enable_bucket = false
[[datasets.subsets]]
image_dir = "c"
"""
    first, second = describe_toml(tmp_path, text, train_batch_size=2, max_bucket_reso=1280).datasets
    assert (first.resolution, first.batch_size) == (Size(512, 512), 2)
    assert first.bucketing == BucketLimits(320, 1280, 64)
    assert [(s.num_repeats, s.is_reg, s.class_tokens) for s in first.subsets] == [
        (3, False, "shs dog"),
        (1, True, None),
    ]
    assert (second.resolution, second.batch_size, second.bucketing) == (Size(768, 512), 7, None)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    save_picture(tmp_path / "train" / "10_shs dog" / "a.png")
    save_picture(tmp_path / "train" / "2_cpc cat_b" / "a.png")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "empty").mkdir()
    save_picture(tmp_path / "reg" / "1_dog" / "a.png")
    return tmp_path / "train"


def old_style(parent: Path, **changes: object) -> DataOptions:
    return replace(DataOptions(train_data_dir=str(parent), resolution=Size(512, 512)), **changes)  # type: ignore[arg-type]


def test_folder_names_become_the_same_description_as_a_file(parent: Path, tmp_path: Path) -> None:
    text = f"""
[[datasets]]
[[datasets.subsets]]
image_dir = '{parent / "10_shs dog"}'
num_repeats = 10
class_tokens = "shs dog"
[[datasets.subsets]]
image_dir = '{parent / "2_cpc cat_b"}'
num_repeats = 2
class_tokens = "cpc cat_b"
[[datasets.subsets]]
image_dir = '{parent.parent / "reg" / "1_dog"}'
is_reg = true
class_tokens = "dog"
"""
    from_folders = describe(old_style(parent, reg_data_dir=str(parent.parent / "reg")))
    assert from_folders == describe_toml(tmp_path, text, resolution=Size(512, 512))


def test_plain_folder_of_pictures_is_understood_and_told(tmp_path: Path) -> None:
    save_picture(tmp_path / "dogs" / "a.png")
    description = describe(old_style(tmp_path / "dogs"))
    (subset,) = description.datasets[0].subsets
    assert (subset.image_dir, subset.num_repeats, subset.class_tokens) == (tmp_path / "dogs", 1, None)
    assert "plain folder of 1 pictures" in description.notes[0]


def test_leaf_folder_is_answered_with_its_parent(parent: Path) -> None:
    told = described(old_style(parent / "10_shs dog"))
    assert f"give its parent {parent.resolve()}" in told


def test_pictures_that_would_not_be_trained_are_told(parent: Path) -> None:
    save_picture(parent / "loose.png")
    save_picture(parent / "20 sks cat" / "a.png")
    save_picture(parent / "0_zero" / "a.png")
    told = described(old_style(parent))
    assert "1 pictures lie beside" in told
    assert "20 sks cat" in told and "underscore" in told
    assert "0_zero asks for 0 repeats" in told


@pytest.mark.parametrize("flag", ["train_data_dir", "reg_data_dir"])
def test_missing_and_empty_folders_are_told(parent: Path, tmp_path: Path, flag: str) -> None:
    assert "does not exist" in described(old_style(parent, **{flag: str(tmp_path / "nowhere")}))
    (tmp_path / "bare").mkdir()
    assert f"--{flag}: neither pictures nor folders" in described(old_style(parent, **{flag: str(tmp_path / "bare")}))


def test_source_of_pictures_must_be_clear(parent: Path) -> None:
    assert "both given" in described(old_style(parent, dataset_config="data.toml"))
    assert "name the same folder" in described(old_style(parent, reg_data_dir=str(parent)))
    assert "no pictures are given" in described(DataOptions(resolution=Size(512, 512)))
    assert "without --train_data_dir" in described(DataOptions(reg_data_dir=str(parent), resolution=Size(512, 512)))


def test_unclear_folders_and_wrong_sizes_are_told_together() -> None:
    told = described(DataOptions(train_data_dir="nowhere", resolution=Size(500, 512), caption_extension=("txt",)))
    assert "does not exist" in told and "divisible by 64" in told and "begin with a dot" in told


BUCKETS = {"enable_bucket": True}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"resolution": None}, "the training resolution is missing"),
        ({"resolution": Size(500, 512)}, "the nearest sizes are 448x512 or 512x512"),
        ({"resolution": Size(40, 40)}, "the nearest sizes are 64x64"),
        (
            {**BUCKETS, "resolution": Size(528, 512), "bucket_reso_steps": 32},
            "the nearest sizes are 512x512 or 544x512",
        ),
        ({**BUCKETS, "resolution": Size(64, 64)}, "--min_bucket_reso 64"),
        ({**BUCKETS, "resolution": Size(1536, 512)}, "--max_bucket_reso 1536"),
        ({**BUCKETS, "min_bucket_reso": 264}, "the nearest values are 256 or 320"),
        ({**BUCKETS, "min_bucket_reso": 1280}, "above max_bucket_reso"),
        ({"bucket_no_upscale": True}, "no effect while enable_bucket is off"),
    ],
)
def test_sizes_that_cannot_work(parent: Path, changes: dict[str, object], told: str) -> None:
    assert told in described(old_style(parent, **changes))


def test_small_resolution_works_with_a_lower_limit(parent: Path) -> None:
    options = old_style(parent, resolution=Size(64, 64), enable_bucket=True, min_bucket_reso=64, bucket_reso_steps=16)
    assert describe(options).datasets[0].bucketing == BucketLimits(64, 1024, 16)


def test_idle_bucket_sizes_are_noted(parent: Path) -> None:
    assert "min_bucket_reso" in describe(old_style(parent, min_bucket_reso=128)).notes[0]
    idle = describe(old_style(parent, enable_bucket=True, bucket_no_upscale=True, max_bucket_reso=512))
    assert "max_bucket_reso have no effect with bucket_no_upscale" in idle.notes[0]


def test_regularisation_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only regularisation pictures"):
        text = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'a'\nis_reg = true\n"
        describe_toml(tmp_path, text)


CHANGE_LINES = """
shuffle_caption = {shuffle}
keep_tokens = {keep}
caption_tag_dropout_rate = {tags}
caption_dropout_rate = {whole}
"""


def test_caption_changes_come_from_every_level(tmp_path: Path) -> None:
    text = f"""
[general]
{CHANGE_LINES.format(shuffle="true", keep=1, tags=0.1, whole=0.2)}
[[datasets]]
[[datasets.subsets]]
image_dir = "a"
[[datasets.subsets]]
image_dir = "b"
shuffle_caption = false
caption_dropout_rate = 0
[[datasets]]
{CHANGE_LINES.format(shuffle="false", keep=2, tags=1, whole=0.0)}
[[datasets.subsets]]
image_dir = "c"
"""
    first, second = describe_toml(tmp_path, text, resolution=Size(512, 512), keep_tokens=7).datasets
    assert [subset.caption_changes for subset in (*first.subsets, *second.subsets)] == [
        CaptionChanges(True, 1, 0.1, 0.2),
        CaptionChanges(False, 1, 0.1, 0.0),
        CaptionChanges(False, 2, 1.0, 0.0),
    ]


def test_caption_changes_from_the_command_line(parent: Path) -> None:
    words = ["--train_data_dir", str(parent), "--resolution", "512", "--shuffle_caption", "--keep_tokens", "2"]
    words += ["--caption_tag_dropout_rate", "0.25", "--caption_dropout_rate", "1"]
    options = parse_options("train_network.py", "", (DataOptions,), words).of(DataOptions)
    subsets = describe(options).datasets[0].subsets
    assert [subset.caption_changes for subset in subsets] == [CaptionChanges(True, 2, 0.25, 1.0)] * 2
    unchanged = describe(old_style(parent)).datasets[0].subsets
    assert [subset.caption_changes for subset in unchanged] == [CaptionChanges()] * 2


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("keep_tokens", "-1", "must be 0 or more"),
        ("caption_tag_dropout_rate", "1.5", "must be between 0 and 1"),
        ("caption_dropout_rate", "-0.5", "must be between 0 and 1"),
        ("face_crop_aug_range", "2.0", "two numbers"),
        ("face_crop_aug_range", "4.0,2.0", "two rising numbers from 1"),
        ("face_crop_aug_range", "0.5,2.0", "two rising numbers from 1"),
        ("caption_separator", " ", "must not be empty or blank"),
        ("token_warmup_step", "-1", "must be 0 or more"),
        ("augmentation_variants", "0", "must be 1 or more"),
        ("bad_images", "ignore", "fail, skip"),
    ],
)
def test_wrong_numbers_on_the_command_line(flag: str, value: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        parse_options("train_network.py", "", (DataOptions,), [f"--{flag}={value}"])
    assert f"--{flag}" in str(error.value)


NO_EFFECT = "keep_tokens has no effect"


def test_kept_tags_without_changes_are_refused_where_they_were_asked_for(tmp_path: Path, parent: Path) -> None:
    told = described(old_style(parent, keep_tokens=1, caption_dropout_rate=0.5))
    assert f"--keep_tokens: {NO_EFFECT}" in told
    describe(old_style(parent, keep_tokens=1, caption_tag_dropout_rate=0.5))
    describe(old_style(parent, keep_tokens=1, shuffle_caption=True))
    text = """
[general]
keep_tokens = 1
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = 'a'
[[datasets.subsets]]
image_dir = 'b'
keep_tokens = 2
"""
    with pytest.raises(UserError) as error:
        describe_toml(tmp_path, text)
    assert [NO_EFFECT in str(problem) for problem in error.value.problems] == [True, True]
    assert "line 3" in str(error.value) and "line 10" in str(error.value)


def test_kept_tags_may_be_idle_in_one_folder_of_several(tmp_path: Path) -> None:
    text = """
[general]
keep_tokens = 1
shuffle_caption = true
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = 'a'
[[datasets.subsets]]
image_dir = 'reg'
is_reg = true
shuffle_caption = false
[[datasets.subsets]]
image_dir = 'sentences'
keep_tokens = 0
shuffle_caption = false
"""
    kept = [subset.caption_changes.keep_tokens for subset in describe_toml(tmp_path, text).datasets[0].subsets]
    assert kept == [1, 1, 0]


@pytest.mark.parametrize(
    ("given", "what", "helps"),
    [
        ({"token_warmup_min": 3}, "token_warmup_min has no effect", {"token_warmup_step": 0.5}),
        ({"augmentation_variants": 2}, "augmentation_variants has no effect", {"random_crop": True}),
        ({"keep_tokens": 2}, "keep_tokens has no effect", {"token_warmup_step": 100.0}),
    ],
)
def test_options_that_need_another_one(
    parent: Path, given: dict[str, object], what: str, helps: dict[str, object]
) -> None:
    (flag,) = given
    assert f"--{flag}: {what}" in described(old_style(parent, **given))
    describe(old_style(parent, **given, **helps))


@pytest.mark.parametrize("path", [r"C:\test\new", r"D:\backup\frogs"])
def test_windows_paths_in_double_quotes_get_the_hint(tmp_path: Path, path: str) -> None:
    text = f'[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "{path}"\n'
    with pytest.raises(UserError, match="use single quotes") as error:
        describe_toml(tmp_path, text)
    assert "line 4, key image_dir" in str(error.value)


def test_an_empty_path_is_not_the_current_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_dir: must not be empty"):
        describe_toml(tmp_path, "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = ''\n")


def test_lines_are_those_of_the_file_in_any_order(tmp_path: Path) -> None:
    text = """
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = 'a'
class_tokens = '''
num_repeats = 3
'''
[general]
keep_tokens = -1
[[datasets]]
resolution = 500
subsets = [{image_dir = 'b', num_repeats = 0}]
"""
    with pytest.raises(UserError) as error:
        describe_toml(tmp_path, text)
    told = str(error.value)
    assert "line 10, key keep_tokens" in told
    assert "line 12, key resolution (dataset 2)" in told
    assert "line 13, key num_repeats (dataset 2, subset 1)" in told


def test_two_sources_are_one_mistake(tmp_path: Path, parent: Path) -> None:
    (tmp_path / "d.toml").write_text("[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'a'\n")
    both = DataOptions(dataset_config=str(tmp_path / "d.toml"), train_data_dir=str(parent))
    with pytest.raises(UserError) as error:
        describe(both)
    assert len(error.value.problems) == 1 and "are both given" in str(error.value)


def test_marks_that_hold_one_another_are_refused(parent: Path) -> None:
    told = described(old_style(parent, secondary_separator=";,;"))
    assert "--secondary_separator: secondary_separator ';,;' holds caption_separator ','" in told
    told = described(old_style(parent, keep_tokens_separator="||", secondary_separator="|||"))
    assert "secondary_separator '|||' holds keep_tokens_separator '||'" in told
    told = described(old_style(parent, keep_tokens_separator="@@", secondary_separator="@@"))
    assert told.count("told apart") == 1
    describe(old_style(parent, keep_tokens_separator="|||", secondary_separator=";;;", caption_separator="、"))


def test_fractions_of_repeats_are_for_training_pictures(tmp_path: Path) -> None:
    text = "[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = 0.25\n"
    (dataset,) = describe_toml(tmp_path, text).datasets
    assert dataset.subsets[0].num_repeats == 0.25
    reg = "[[datasets.subsets]]\nimage_dir = 'r'\nis_reg = true\nnum_repeats = 1.5\n"
    with pytest.raises(UserError, match=r"1\.5 of regularisation pictures has a fraction") as error:
        describe_toml(tmp_path, text + reg)
    assert "line 9" in str(error.value)
    for wrong in ("0", "-1", "nan", "'x'", "1e-5", "1e9"):
        with pytest.raises(UserError, match="num_repeats"):
            describe_toml(tmp_path, text.replace("0.25", wrong))


def test_bad_value_does_not_draw_a_second_complaint(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        describe_toml(tmp_path, "[[datasets]]\nresolution = 'big'\n[[datasets.subsets]]\nimage_dir = 'a'\n")
    assert len(error.value.problems) == 1
    with pytest.raises(UserError) as error:
        text = "[[datasets]]\nresolution = 512\nkeep_tokens = 1\nshuffle_caption = 'yes'\n"
        describe_toml(tmp_path, text + "[[datasets.subsets]]\nimage_dir = 'a'\n")
    assert len(error.value.problems) == 1
