"""Prepared metadata: a training takes the options of the preparation, or says why it does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import dataset_report
from finetune import prepare_buckets_latents
from library.core.errors import UserError
from library.core.sizes import Size
from library.options.base import option_fields
from library.options.caching import CachingOptions
from library.options.command_line import read_command_line
from library.options.data import DataOptions
from library.options.parse import OptionValues
from library.options.preparation import LatentPreparationOptions
from library.options.record import options_record
from library.options.scripts import TRAINING_SCRIPTS
from library.training.prepared import take_prepared
from library.training.prepared_way import PREPARED, describe_preparation
from tests.training.runs import ROOT, run_here

OPTIONS = LatentPreparationOptions(
    max_resolution=Size(512, 768), min_bucket_reso=128, bucket_no_upscale=True, flip_aug=True, mixed_precision="bf16"
)
WAY = describe_preparation(OPTIONS)
TAKEN = (
    *("--resolution", "512,768", "--enable_bucket", "--min_bucket_reso", "128", "--bucket_no_upscale", "--flip_aug"),
    *("--cache_latents_to_disk", "--vae_precision", "bf16"),
)
NAMES = ("cat.jpg", "coins.png", "coffee.jpg")


def given(script: str, *words: str) -> OptionValues:
    own = ["--token_string", "mira"] if script == "train_textual_inversion.py" else []
    values = read_command_line(script, ["--pretrained_model_name_or_path", "m", "--output_dir", "o", *own, *words])
    assert values is not None
    return values


def write(file: Path, *ways: str | None) -> Path:
    """Metadata with an entry for each of these preparations; None for one that was not prepared."""
    entries: dict[str, dict[str, Any]] = {}
    for number, way in enumerate(ways):
        entries[f"p{number}"] = {"caption": "a"} if way is None else {"caption": "a", PREPARED: way}
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def take(file: Path, *words: str) -> tuple[DataOptions, CachingOptions]:
    taken = take_prepared(given("fine_tune.py", "--in_json", str(file), *words))
    return taken.of(DataOptions), taken.of(CachingOptions)


def complaint(file: Path, *words: str) -> str:
    with pytest.raises(UserError) as error:
        take(file, *words)
    return str(error.value)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize("script", TRAINING_SCRIPTS)
def test_every_script_takes_the_options_as_if_given(
    tmp_path: Path, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--in_json", str(write(tmp_path / "a.json", WAY, WAY)), "--train_data_dir", "d"]
    taken, by_hand = take_prepared(given(script, *words)), given(script, *words, *TAKEN)
    assert taken.groups == by_hand.groups
    assert taken.given >= by_hand.given
    assert options_record(taken) == options_record(by_hand)
    line = next(line for line in told(capsys).splitlines() if "taken as if given" in line)
    for word in TAKEN:
        assert word in line


def test_the_text_holds_every_option_of_the_preparation_that_latents_depend_on() -> None:
    """Others decide where and how fast; a new option has to be put on one of the two sides."""
    elsewhere = {
        *("train_data_dir", "in_json", "out_json", "model_name_or_path", "v2", "vae", "full_path", "recursive"),
        *("batch_size", "max_data_loader_n_workers", "skip_existing"),
    }
    names = {"resolution": "max_resolution", "vae_precision": "mixed_precision"}
    kept = {names.get(word.partition("=")[0], word.partition("=")[0]) for word in WAY.split()}
    names_of_all = {item.name for item in option_fields(LatentPreparationOptions)}
    assert kept | elsewhere == names_of_all and not kept & elsewhere


FITTING = tuple(word for word in TAKEN if word != "--cache_latents_to_disk")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--resolution", "64"), "which this training does not use: leave --resolution out\n"),
        (FITTING, "which this training does not use: leave --resolution out, or give --cache_latents_to_disk\n"),
        ((*FITTING, "--random_crop"), "does not use: --random_crop draw other crops"),
        (TAKEN, None),
        ((*TAKEN, "--min_bucket_reso", "64", "--flip_aug", "false"), None),  # which change nothing
        (
            (*TAKEN, "--resolution", "512,512", "--vae_batch_size", "2"),
            "(1 of 1 prepared entries have other options: --resolution 512,768 --vae_batch_size 1). "
            "To use them leave --resolution out",
        ),
        (
            (*TAKEN, "--color_aug", "--augmentation_variants", "2"),
            "replaces the prepared latents on disk (--color_aug draw other crops or colours). "
            "To use them leave --color_aug out",
        ),
    ],
)
def test_nothing_is_taken_where_the_resolution_is_given(
    tmp_path: Path, words: Sequence[str], hint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One hint where the latents would not be used, a warning where they would be replaced."""
    options = given("fine_tune.py", "--in_json", str(write(tmp_path / "a.json", WAY, None)), *words)
    assert take_prepared(options) == options
    err = told(capsys)
    assert hint in err if hint else err == ""
    assert err.count("\n") == (hint is not None) and err.startswith("warning: ") == ("on disk (" in err)


@pytest.mark.parametrize("place", ["general", "datasets", "subsets", "command line"])
def test_a_dataset_file_with_prepared_metadata(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What fits is told wherever the other values stand; nothing is told where all fits."""
    file, config = write(tmp_path / "a.json", WAY, WAY), tmp_path / "d.toml"
    sizes = "resolution = [512, 768]\nenable_bucket = true\nbucket_no_upscale = true\nflip_aug = true\n"
    own = {"subsets": "flip_aug = true\n"}.get(place, sizes)
    parts = {name: own if name == place else "" for name in ("general", "datasets", "subsets")}
    tables = f"[general]\n{parts['general']}[[datasets]]\n{parts['datasets']}[[datasets.subsets]]\n{parts['subsets']}"
    config.write_text(f"{tables}metadata_file = '{file}'\n", encoding="utf-8")
    words: Sequence[str] = {"subsets": TAKEN[:6], "command line": TAKEN}.get(place, ())
    options = given("fine_tune.py", "--dataset_config", str(config), *words)
    assert take_prepared(options) == options
    err = told(capsys)
    if place != "command line":
        assert "give --cache_latents_to_disk and --vae_precision bf16 (on the command line, or in" in err
        assert err.count("\n") == 1
        return
    assert err == ""
    take_prepared(given("fine_tune.py", "--dataset_config", str(config)))
    assert "give --cache_latents_to_disk and --enable_bucket --resolution 512,768 --min_bucket" in told(capsys)


def test_one_of_several_processes_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert take(write(tmp_path / "a.json", WAY))[0].resolution == Size(512, 768)
    assert told(capsys) == ""


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"a": {"caption": "b"}}', f'{{"{PREPARED}": {{}}}}'])
def test_without_prepared_entries_nothing_is_taken(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checks tell what is wrong with the file; here is only a hint."""
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    options = given("fine_tune.py", "--in_json", str(file))
    assert take_prepared(options) == options
    assert ("prepare_buckets_latents.py" in told(capsys)) == (content is not None)


def test_other_descriptions_are_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", WAY)
    for words in (("--train_data_dir", "d"), ("--dataset_config", "d.toml", "--in_json", str(file))):
        options = given("fine_tune.py", *words)
        assert take_prepared(options) == options


def test_unprepared_entries_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, caching = take(write(tmp_path / "a.json", WAY, None, WAY, None, None))
    assert data.resolution == Size(512, 768) and caching.cache_latents_to_disk
    assert "3 of 5 entries are not prepared" in told(capsys)


def test_entries_that_disagree(tmp_path: Path) -> None:
    other = WAY.replace("flip_aug=true", "flip_aug=false").replace("512,768", "640,640")
    found = complaint(write(tmp_path / "a.json", WAY, other, WAY))
    assert "in several ways: resolution=512,768 flip_aug=true (2, such as p0)" in found
    assert "resolution=640,640 flip_aug=false (1, such as p1)" in found and "bucket_reso_steps" not in found
    assert "give --resolution" in found


@pytest.mark.parametrize(
    "way",
    [
        "resolution=512",
        WAY.replace("512,768", "large"),
        WAY.replace("bf16", "int4"),
        WAY.replace("=128", "=-3"),
        f"{WAY} output_dir=/etc",
        f"{WAY} flip_aug=true",
        "",
    ],
)
def test_a_text_that_is_not_understood(tmp_path: Path, way: str) -> None:
    assert f"{PREPARED} is not understood" in complaint(write(tmp_path / "a.json", way))


CONTRADICTIONS: Mapping[str, Sequence[str]] = {
    "--min_bucket_reso 64 is given, but the latents of": ("--min_bucket_reso", "64"),
    "were prepared with --bucket_no_upscale": ("--bucket_no_upscale", "false"),
    "--enable_bucket false is given": ("--enable_bucket", "false"),
    "--alpha_mask is given": ("--alpha_mask",),
    "--vae_precision float is given": ("--vae_precision", "float"),
    "--vae_batch_size 4 is given": ("--vae_batch_size", "4"),
    "were prepared with --cache_latent_distribution false": ("--cache_latent_distribution", "--cache_latents"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_an_option_that_contradicts(tmp_path: Path, what: str) -> None:
    found = complaint(write(tmp_path / "a.json", WAY), *CONTRADICTIONS[what])
    assert what in found and "give --resolution 512,768 as well" in found


def test_what_agrees_or_needs_less_is_free(tmp_path: Path) -> None:
    """Latents with mirrored ones beside them serve a training without."""
    file = write(tmp_path / "a.json", WAY)
    data, caching = take(file, "--flip_aug", "false", "--min_bucket_reso", "128", "--cache_latents")
    assert not data.flip_aug and data.bucket_no_upscale and caching.cache_latents_to_disk
    unused = ("--cache_latents_to_disk", "false", "--vae_batch_size", "4", "--cache_latent_distribution")
    assert not take(file, *unused)[1].cache_latents_to_disk


@pytest.mark.parametrize(
    "more", [(), ("--augmentation_variants", "2"), ("--augmentation_variants", "2", "--cache_latents")]
)
def test_other_crops_and_colours_do_not_replace_what_is_prepared(
    tmp_path: Path, more: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "a.json", WAY)
    data, caching = take(file, "--color_aug", "--random_crop", *more)
    assert data.resolution == Size(512, 768) and not caching.cache_latents_to_disk
    assert "its latents are not used: --color_aug and --random_crop draw other crops or colours\n" in told(capsys)
    if more:
        assert take(file, "--color_aug", *more, "--cache_latents_to_disk")[1].cache_latents_to_disk
        assert "warning: " in (err := told(capsys)) and "replace the prepared ones on disk" in err


def test_looking_imports_nothing_heavy() -> None:
    code = "import library.training.prepared, sys; print([n for n in ('torch', 'diffusers') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.fixture
def world(photos: Path, tiny_models: dict[str, Path], tmp_path: Path) -> list[str]:
    """Two of three pictures prepared, in another number format than the usual one; the words that describe them."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name in NAMES:
        shutil.copy(photos / name, folder if name != "coffee.jpg" else folder / "sub")
    file, out = tmp_path / "meta.json", tmp_path / "meta_lat.json"
    file.write_text(json.dumps({"cat": {"caption": "a"}, "coins": {"tags": "b"}}), encoding="utf-8")
    sizes = ["--max_resolution", "64", "--min_bucket_reso", "32", "--bucket_reso_steps", "32"]
    words = [*sizes, "--mixed_precision", "bf16", "--max_data_loader_n_workers", "0"]
    prepare_buckets_latents.main([str(folder), str(file), str(out), str(tiny_models["sd1"]), *words])
    entries = json.loads(out.read_text(encoding="utf-8"))
    out.write_text(json.dumps({**entries, "sub/coffee": {"caption": "c"}}), encoding="utf-8")
    return ["--in_json", str(out), "--train_data_dir", str(folder)]


def test_a_run_and_its_resumption(
    tiny_models: dict[str, Path], world: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is not prepared is encoded beside the rest; a state knows the options in force."""
    out = tmp_path / "out"
    capsys.readouterr()
    run_here(tiny_models["sd1"], world, out, "--max_train_steps", "1", "--save_state")
    err = told(capsys)
    assert "latents on disk: 2 reused, 1 encoded (1 not there yet)" in err and "1 of 3 entries are not prepared" in err
    (state,) = (path for path in out.iterdir() if path.is_dir())
    resumed = ["--max_train_steps", "2", "--resume", str(state), "--overwrite"]
    by_hand = ["--resolution", "64", "--enable_bucket", "--min_bucket_reso", "32", "--bucket_reso_steps", "32"]
    with pytest.raises(UserError, match="vae_precision"):
        run_here(tiny_models["sd1"], [*world, *by_hand], out, *resumed)
    capsys.readouterr()
    run_here(tiny_models["sd1"], world, out, *resumed)
    assert "latents on disk: 3 reused, 0 encoded" in told(capsys)


def test_the_dataset_report_takes_them_too(world: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    dataset_report.main(world)
    assert "area of 64x64, buckets from 32 to 1024 in steps of 32" in capsys.readouterr().out
