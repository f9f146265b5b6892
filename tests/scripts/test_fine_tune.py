"""fine_tune.py: the U-Net learns from pictures described in any style; the text encoder only when it is asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

import fine_tune
import train_db
from library.models.files.weights import open_weights
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import save_single_file
from library.models.tiny import make_tiny_model
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.training.assemble import load_learner
from library.training.checks.preflight import check_fine_tuning_run
from library.training.methods import save_dtype
from tests.training.runs import Tensors, assert_same, largest_difference
from tests.training.styles import CAPTION_FILES, CASES, style_words

VAE, UNET, TEXT = "first_stage_model.", "model.diffusion_model.", "cond_stage_model."
Train = Callable[..., Tensors]


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, "mira", photos, tmp_path / "data")


def words_of(model: Path, data: list[str], out: Path, *words: str) -> list[str]:
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out)]
    base += ["--learning_rate", "1e-3", "--max_data_loader_n_workers", "0", "--max_train_steps", "2"]
    return [*base, *words]


def train(model: Path, data: list[str], out: Path, *words: str) -> Tensors:
    fine_tune.main(words_of(model, data, out, *words))
    return load_file(str(out / "last.safetensors"))


def moved(before: Tensors, after: Tensors, prefix: str) -> list[bool]:
    return [not torch.equal(before[name], after[name]) for name in before if name.startswith(prefix)]


@pytest.mark.parametrize(("style", "with_reg"), CASES)
def test_the_unet_alone_learns_from_every_style(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, style: str, with_reg: bool
) -> None:
    data = style_words(style, "mira", photos, tmp_path, with_reg)
    before = load_file(str(tiny_models["sd1"]))
    after = train(tiny_models["sd1"], data, tmp_path / "out", "--train_batch_size", "2")
    assert set(after) == set(before)
    assert not any(moved(before, after, VAE)) and not any(moved(before, after, TEXT))
    assert sum(moved(before, after, UNET)) > 0.9 * len(moved(before, after, UNET))
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())


def test_the_text_encoder_learns_when_it_is_asked_to(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    model = tiny_models["sd1"]
    before = load_file(str(model))
    both = train(model, data, tmp_path / "both", "--train_text_encoder")
    assert not any(moved(before, both, VAE))
    for prefix in (UNET, TEXT):
        assert sum(moved(before, both, prefix)) > 0.9 * len(moved(before, both, prefix))
    train_db.main(words_of(model, data, tmp_path / "db"))
    assert_same(load_file(str(tmp_path / "db" / "last.safetensors")), both)


def test_a_frozen_text_encoder_keeps_its_bits_in_every_precision(data: list[str], tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_single_file(make_tiny_model("sd2", seed=4), base, {})
    script = SCRIPTS["fine_tune.py"]
    words = words_of(base, data, tmp_path / "out", "--mixed_precision", "bf16", "--v2")
    run = check_fine_tuning_run(parse_options("fine_tune.py", "", script.groups, words))
    learner = load_learner(run, torch.device("cpu"))
    assert [group["name"] for group in learner.groups] == ["unet"]
    learner.method.save(run.files.result, save_dtype(run, learner.loaded_dtype), {})
    assert_same(load_file(str(run.files.result)), load_file(str(base)))


def test_the_file_and_the_log_tell_what_trained(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    train(tiny_models["sd1"], data, tmp_path, "--logging_dir", str(logs), "--learning_rate", "3e-6")
    told = open_weights(tmp_path / "last.safetensors").metadata
    assert (told["ss_unet_lr"], told["ss_text_encoder_lr"], told["ss_steps"]) == ("3e-06", "None", "2")
    assert told["modelspec.architecture"] == "stable-diffusion-v1"
    assert len(list(logs.glob("*/finetuning/events*"))) == 1


def test_the_default_rate_is_that_of_whole_models(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data, "--output_dir", str(tmp_path)]
    fine_tune.main([*words, "--max_train_steps", "1", "--max_data_loader_n_workers", "0"])
    assert open_weights(tmp_path / "last.safetensors").metadata["ss_unet_lr"] == "2e-06"


def test_diffusers_loads_the_trained_folder(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    fine_tune.main(words_of(tiny_models["sd1"], data, tmp_path, "--save_model_as", "diffusers_safetensors"))
    pipe = StableDiffusionPipeline.from_pretrained(str(tmp_path / "last"), local_files_only=True)
    trained = load_stable_diffusion(identify(tmp_path / "last"), "epsilon")
    for name in ("unet", "text_encoder", "vae"):
        theirs, ours = getattr(pipe, name).state_dict(), getattr(trained, name).state_dict()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours), name


def test_loader_processes_and_checkpointing_change_nothing(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    model = tiny_models["sd1"]
    words = ["--optimizer_args", "eps=1e-3"]  # else AdamW's first updates are signs, also of mere rounding noise
    plain = train(model, data, tmp_path / "a", *words)
    assert_same(train(model, data, tmp_path / "b", *words, "--max_data_loader_n_workers", "2"), plain)
    assert largest_difference(train(model, data, tmp_path / "c", *words, "--gradient_checkpointing"), plain) < 1e-5
