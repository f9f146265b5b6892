"""Options from the command line and the options file."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from library.core.errors import UserError
from library.core.sizes import Size, Span
from library.options.base import info_of, option_fields, value_type
from library.options.caching import CachingOptions
from library.options.captioning import BlipOptions, TaggerOptions
from library.options.data import DataOptions
from library.options.network import NetworkOptions, network_alpha_in_force, network_dim_in_force
from library.options.optimizer import OptimizerOptions, PartRateOptions
from library.options.parse import OptionValues, parse_options
from library.options.preparation import LatentPreparationOptions, MergeCaptionsOptions, MergeTagsOptions
from library.options.scripts import SCRIPTS
from library.options.training import TrainingOptions
from library.options.write import options_as_toml, options_page, write_options_file

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["--pretrained_model_name_or_path", "m.safetensors", "--output_dir", "out"]


def parse(*words: str) -> OptionValues:
    script = SCRIPTS["train_network.py"]
    return parse_options("train_network.py", script.description, script.groups, [*NEEDED, *words])


def complaints(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(*words)
    return str(caught.value)


def test_defaults_are_those_of_the_field() -> None:
    options = parse()
    data, network, training = options.of(DataOptions), options.of(NetworkOptions), options.of(TrainingOptions)
    assert (data.min_bucket_reso, data.max_bucket_reso, data.bucket_reso_steps) == (256, 1024, 64)
    assert (data.train_batch_size, data.prior_loss_weight, data.enable_bucket) == (1, 1.0, False)
    assert (network_dim_in_force(network), network_alpha_in_force(network)) == (4, 1.0)
    assert (training.mixed_precision, training.gradient_accumulation_steps) == ("no", 1)
    optimizer = options.of(OptimizerOptions)
    assert (optimizer.optimizer_type, optimizer.lr_scheduler, optimizer.lr_warmup_steps) == (None, None, 0)


def test_defaults_of_the_preparation_are_those_of_the_field() -> None:
    blip, tagger, latents = BlipOptions(), TaggerOptions(), LatentPreparationOptions()
    assert (blip.max_length, blip.caption_extension, blip.seed, blip.beam_search) == (75, ".caption", 42, False)
    assert (tagger.model_dir, tagger.thresh, tagger.caption_extension) == ("wd14_tagger_model", 0.35, ".txt")
    assert (MergeCaptionsOptions().caption_extension, MergeTagsOptions().caption_extension) == (".caption", ".txt")
    assert (latents.max_resolution, latents.mixed_precision) == (Size(512, 512), "no")
    assert (latents.min_bucket_reso, latents.max_bucket_reso, latents.bucket_reso_steps) == (256, 1024, 64)


@pytest.mark.parametrize(
    ("words", "size"), [(("512",), Size(512, 512)), (("448,640",), Size(448, 640)), (("768, 512",), Size(768, 512))]
)
def test_resolution_is_one_number_or_width_and_height(words: tuple[str, ...], size: Size) -> None:
    assert parse("--resolution", *words).of(DataOptions).resolution == size


def test_switches_can_be_given_alone_or_with_a_value() -> None:
    assert parse("--cache_latents").of(CachingOptions).cache_latents is True
    assert parse("--cache_latents=false").of(CachingOptions).cache_latents is False


def test_negative_numbers_are_values_not_flags() -> None:
    assert parse("--seed", "-7").of(TrainingOptions).seed == -7


def test_names_of_choices_ignore_case() -> None:
    assert parse("--mixed_precision", "BF16").of(TrainingOptions).mixed_precision == "bf16"


def test_the_other_name_of_an_option_is_the_same_option(tmp_path: Path) -> None:
    assert parse("--learning_rate_te", "1e-5").of(PartRateOptions).text_encoder_lr == 1e-5
    assert parse("--scheduler_args", "a=1", "b=2").of(OptimizerOptions).lr_scheduler_args == ("a=1", "b=2")
    file = tmp_path / "run.toml"
    file.write_text("learning_rate_te = 1e-5", encoding="utf-8")
    assert parse("--config_file", str(file)).of(PartRateOptions).text_encoder_lr == 1e-5
    assert parse("--config_file", str(file), "--text_encoder_lr", "3e-5").of(PartRateOptions).text_encoder_lr == 3e-5
    assert "did you mean --learning_rate_te?" in complaints("--learning_rate_tee", "1e-5")


def test_an_option_under_two_names_is_refused(tmp_path: Path) -> None:
    text = complaints("--learning_rate_te", "1e-5", "--text_encoder_lr=2e-5")
    assert "--text_encoder_lr, --learning_rate_te: they are one option" in text
    file = tmp_path / "run.toml"
    file.write_text("learning_rate_te = 1e-5\ntext_encoder_lr = 2e-5", encoding="utf-8")
    assert "text_encoder_lr stands twice" in complaints("--config_file", str(file))


def test_all_problems_are_told_at_once_with_the_nearest_name() -> None:
    text = complaints(
        "--netwrok_dim", "4", "--network_alpha", "much", "--mixed_precision", "fp8", "--train_batch_size", "0"
    )
    assert "--netwrok_dim is not an option" in text and "did you mean --network_dim?" in text
    assert "--network_alpha: a number is expected, got 'much' (text)" in text
    assert "'fp8' is not available" in text and "no, fp16, bf16" in text
    assert "--train_batch_size: must be 1 or more, got 0" in text


def test_required_options_are_named() -> None:
    script = SCRIPTS["train_network.py"]
    with pytest.raises(UserError) as caught:
        parse_options("train_network.py", script.description, script.groups, [])
    assert [p.what for p in caught.value.problems] == [
        "--pretrained_model_name_or_path is missing",
        "--output_dir is missing",
    ]


def test_a_word_without_option_is_refused() -> None:
    assert "'pictures' belongs to no option" in complaints("--seed", "1", "pictures")


def test_abbreviated_flags_are_refused() -> None:
    assert "--network_di is not an option" in complaints("--network_di", "4")


def test_file_values_fill_in_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "network_dim = 8\n[any_table]\nnetwork_alpha = 4\nseed = 1\nresolution = [512, 768]\n", encoding="utf-8-sig"
    )
    options = parse("--config_file", str(file), "--seed", "5")
    network = options.of(NetworkOptions)
    assert (network.network_dim, network.network_alpha) == (8, 4.0)
    assert options.of(TrainingOptions).seed == 5
    assert options.of(DataOptions).resolution == Size(512, 768)


def test_file_problems_name_line_key_and_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('network_dim = "8"\n\ntrain_data = "x"\nmax_train_steps = 1.5\ncache_latents = 1\n')
    text = complaints("--config_file", str(file))
    assert f"{file}, line 1, key network_dim: a whole number is expected, got '8' (text)" in text
    assert f"{file}, line 3, key train_data: train_data is not an option" in text and "train_data_dir" in text
    assert "line 4, key max_train_steps: a whole number is expected, got 1.5 (number)" in text
    assert "line 5, key cache_latents: true or false is expected, got 1 (whole number)" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [("network_dim = = 4\n", "line 1"), ('train_data_dir = "C:\\pictures"\n', "single quotes")],
)
def test_broken_toml_is_told_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    text = complaints("--config_file", str(file))
    assert "not valid TOML" in text and said in text


def test_missing_file_is_told(tmp_path: Path) -> None:
    assert "does not exist" in complaints("--config_file", str(tmp_path / "none.toml"))


def test_written_options_read_back_equal(tmp_path: Path) -> None:
    file = tmp_path / "saved.toml"
    words = ["--resolution", "512,768", "--network_args", "a=1", "b=2", "--cache_latents", "--output_name", "名前"]
    first = parse(*words, "--config_file", str(file), "--output_config")
    assert write_options_file(first) == file
    second = parse("--config_file", str(file))
    assert options_as_toml(first.groups) == options_as_toml(second.groups)
    assert second.of(NetworkOptions).network_args == ("a=1", "b=2")
    with pytest.raises(UserError, match="exists already"):
        write_options_file(first)


@pytest.mark.parametrize(
    ("flag", "mend"),
    [("--batch_size", "--train_batch_size"), ("--num_repeats", "folder's name"), ("--image_dir", "--train_data_dir")],
)
def test_keys_of_the_dataset_file_on_the_command_line_get_their_place(flag: str, mend: str) -> None:
    with pytest.raises(UserError) as error:
        parse(flag, "2")
    assert f"{flag} is not an option" in str(error.value) and mend in str(error.value)


def test_a_list_given_twice_is_one_list() -> None:
    words = ("--caption_extension", ".txt", "--caption_extension", ".tags", ".caption")
    assert parse(*words).of(DataOptions).caption_extension == (".txt", ".tags", ".caption")


def test_every_option_has_help_default_and_a_known_type() -> None:
    for script in SCRIPTS.values():
        names = [item.name for group in script.groups for item in option_fields(group)]
        assert len(names) == len(set(names)), "two groups declare the same flag"
        for group in script.groups:
            for item in option_fields(group):
                assert len(info_of(item).help) > 10
                assert value_type(group, item.name) in (bool, int, float, str, Size, Span, tuple[str, ...])


def test_options_page_is_current() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == options_page(SCRIPTS), "docs/options.md is stale: run python tools/write_options_page.py"


@pytest.mark.parametrize("words", [["--help"], ["--netwrok_dim", "4"]])
def test_help_and_usage_errors_answer_within_half_a_second(words: list[str]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "train_network.py", *words], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
        )
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
    assert result.returncode == (0 if words == ["--help"] else 1)
    assert "Traceback" not in result.stderr


def test_options_never_import_torch() -> None:
    modules = "library.options.scripts, library.options.parse, library.options.write"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "words", "group"),
    [
        ("make_captions", ["pictures"], BlipOptions),
        ("tag_images_by_wd14_tagger", ["pictures"], TaggerOptions),
        ("merge_captions_to_metadata", ["pictures", "out.json"], MergeCaptionsOptions),
        ("merge_dd_tags_to_metadata", ["pictures", "out.json"], MergeTagsOptions),
    ],
)
def test_the_older_spelling_of_the_ending(
    name: str, words: list[str], group: type[BlipOptions | TaggerOptions | MergeCaptionsOptions | MergeTagsOptions]
) -> None:
    script = SCRIPTS[f"finetune/{name}.py"]
    options = parse_options(name, script.description, script.groups, [*words, "--caption_extention", ".tags"])
    assert options.of(group).caption_extension == ".tags"
