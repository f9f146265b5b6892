"""Words without a flag: folders and files of the preparation scripts."""

from __future__ import annotations

import pytest

from library.core.errors import UserError
from library.core.sizes import Size
from library.options.parse import parse_options
from library.options.preparation import CleaningOptions, LatentPreparationOptions, MergeCaptionsOptions
from library.options.scripts import SCRIPTS

MERGE = "finetune/merge_captions_to_metadata.py"


def merged(*words: str) -> MergeCaptionsOptions:
    return parse_options(MERGE, "", SCRIPTS[MERGE].groups, words).of(MergeCaptionsOptions)


def complaints(script: str, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_options(script, "", SCRIPTS[script].groups, words)
    return str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--full_path", "a", "--in_json", "in.json", "out.json"],
        ["a", "out.json", "--in_json", "in.json", "--full_path", "true"],
        ["--in_json=in.json", "a", "--full_path", "out.json"],
        ["a", "--full_path=true", "out.json", "--in_json", "in.json"],
    ],
)
def test_flags_may_stand_anywhere(words: list[str]) -> None:
    options = merged(*words)
    assert options.train_data_dir == ("a",) and options.out_json == "out.json"
    assert options.in_json == "in.json" and options.full_path


def test_the_last_words_are_the_files_and_the_others_folders() -> None:
    assert merged("a", "b", "--recursive", "c", "out.json").train_data_dir == ("a", "b", "c")
    script = "finetune/prepare_buckets_latents.py"
    words = ["a", "b", "in.json", "--flip_aug", "false", "out.json", "model", "--max_resolution", "512,768"]
    options = parse_options(script, "", SCRIPTS[script].groups, words).of(LatentPreparationOptions)
    assert (options.train_data_dir, options.in_json, options.out_json) == (("a", "b"), "in.json", "out.json")
    assert (options.model_name_or_path, options.max_resolution, options.flip_aug) == ("model", Size(512, 768), False)


def test_as_many_words_as_names_keep_their_order() -> None:
    script = "finetune/clean_captions_and_tags.py"
    options = parse_options(script, "", SCRIPTS[script].groups, ["in.json", "--dry_run", "out.json"])
    assert options.of(CleaningOptions) == CleaningOptions("in.json", "out.json", dry_run=True)


def test_what_is_missing_or_too_much_is_told_by_its_name() -> None:
    told = complaints(MERGE)
    assert "DIR is missing" in told and "OUT_JSON is missing" in told
    told = complaints(MERGE, "a")
    assert "DIR is missing" not in told and "OUT_JSON is missing" in told
    cleaning = "finetune/clean_captions_and_tags.py"
    assert "OUT_JSON is missing" in complaints(cleaning, "a") and "IN_JSON" not in complaints(cleaning, "a")
    assert "'c' belongs to no option" in complaints(cleaning, "a", "b", "c")
    assert "--full_pat is not an option" in complaints(MERGE, "a", "out.json", "--full_pat")
    told = complaints(MERGE, "--full_pat", "a", "out.json")  # the words may belong to it
    assert "did you mean --full_path" in told and "is missing" not in told


def test_the_order_is_told_where_there_are_too_many_words() -> None:
    """The public cleaning script took a folder in front, which it did not look at."""
    told = complaints("finetune/clean_captions_and_tags.py", "train_data", "meta.json", "clean.json")
    assert "'clean.json' belongs to no option" in told and "IN_JSON OUT_JSON are expected, in this order" in told
    told = complaints("tools/resize_images_to_resolution.py", "my", "pictures", "smaller")
    assert "SRC DST are expected, in this order" in told and "quotes around values with spaces" in told
    assert "are expected" not in complaints("train_network.py", "train_data")


@pytest.mark.parametrize(
    ("script", "words", "instead"),
    [
        ("finetune/clean_captions_and_tags.py", ("in.json", "out.json"), "--dry_run shows every change"),
        (MERGE, ("a", "out.json"), "leave it out"),
        ("finetune/make_captions.py", ("a",), "leave it out"),
        ("finetune/prepare_buckets_latents.py", ("a", "in.json", "out.json", "model"), "leave it out"),
        ("fine_tune.py", (), "--debug_dataset shows"),
    ],
)
def test_debug_of_the_public_scripts(script: str, words: tuple[str, ...], instead: str) -> None:
    told = complaints(script, *words, "--debug")
    assert f"--debug is not an option\n    -> {instead}" in told


def test_help_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(MERGE, "", SCRIPTS[MERGE].groups, ["a", "--help"])
    assert "DIR [DIR ...] OUT_JSON" in capsys.readouterr().out
