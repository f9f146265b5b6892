"""train_db.py: the whole model learns, and what is saved is what users expect, in every form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline

import train_db
from library.core.errors import UserError
from library.models.extras import ModelExtras, read_extras
from library.models.files.weights import open_weights
from library.models.forms import SaveTarget
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import Precisions, save_model, save_single_file, single_file_tensors
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.text.tokenizer import tokenizer_files
from tests.training.runs import ROOT, environment, photo_words

Train = Callable[..., Path]
VAE, UNET, TEXT = "first_stage_model.", "model.diffusion_model.", "cond_stage_model."


@pytest.fixture
def train(photos: Path, tmp_path: Path) -> Train:
    """Trains three updates in this process; returns the output folder."""

    def run(model: Path, *words: str) -> Path:
        train_db.main(
            [
                *("--pretrained_model_name_or_path", str(model), *photo_words(photos), "--output_dir", str(tmp_path)),
                *("--learning_rate", "1e-3", "--max_data_loader_n_workers", "0", "--max_train_steps", "3", *words),
            ]
        )
        return tmp_path

    return run


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a single file, or of a folder under their single-file names."""
    if path.is_dir():
        return single_file_tensors(load_stable_diffusion(identify(path), "epsilon"))
    file = open_weights(path)
    return {name: file.read(name) for name in file.shapes}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], prefix: str) -> list[bool]:
    return [not torch.equal(before[name], after[name]) for name in before if name.startswith(prefix)]


def written(model: StableDiffusion, path: Path, form: str, dtype: torch.dtype | None = None) -> Path:
    save_model(
        model, SaveTarget(path, form), Precisions(dtype, dtype), ModelExtras(), {}, tokenizer_files(model.family)
    )
    return path


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    return make_tiny_model("sd1", seed=5)


def test_unet_and_text_encoder_learn_and_the_vae_keeps_its_bits(train: Train, tiny_models: dict[str, Path]) -> None:
    before, after = tensors_of(tiny_models["sd1"]), tensors_of(train(tiny_models["sd1"]) / "last.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert not any(moved(before, after, VAE))
    for prefix in (UNET, TEXT):
        assert sum(moved(before, after, prefix)) > 0.9 * len(moved(before, after, prefix))


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("ckpt", "last.ckpt"),
        ("safetensors", "last.safetensors"),
        ("diffusers", "last"),
        ("diffusers_safetensors", "last"),
    ],
)
def test_the_form_of_the_base_model_is_kept(
    train: Train, model: StableDiffusion, tmp_path: Path, form: str, name: str
) -> None:
    base = written(model, tmp_path / ("base" + Path(name).suffix), form)
    saved = train(base) / name
    assert identify(saved).form == form
    assert any(moved(tensors_of(base), tensors_of(saved), UNET))


@pytest.mark.parametrize(
    ("loaded", "words", "expected", "name"),
    [
        ("ckpt", ["--use_safetensors"], "safetensors", "my dog.safetensors"),
        ("diffusers", ["--use_safetensors"], "diffusers_safetensors", "my dog"),
        ("diffusers_safetensors", ["--save_model_as", "ckpt"], "ckpt", "my dog.ckpt"),
        ("safetensors", ["--save_model_as", "diffusers"], "diffusers", "my dog"),
    ],
)
def test_the_form_can_be_chosen(
    train: Train, model: StableDiffusion, tmp_path: Path, loaded: str, words: Sequence[str], expected: str, name: str
) -> None:
    suffix = f".{loaded}" if loaded in ("ckpt", "safetensors") else ""
    saved = train(written(model, tmp_path / f"base{suffix}", loaded), "--output_name", "my dog", *words) / name
    assert identify(saved).form == expected


FLOAT, VAE_TOO = ["--save_precision", "float"], ["--save_precision", "bf16", "--save_vae_precision", "float"]


@pytest.mark.parametrize(
    ("form", "words", "weights", "vae"),
    [
        ("safetensors", [], torch.float16, torch.float16),
        ("ckpt", FLOAT, torch.float32, torch.float16),
        ("ckpt", VAE_TOO, torch.bfloat16, torch.float32),
        ("safetensors", VAE_TOO, torch.bfloat16, torch.float32),
        ("diffusers", VAE_TOO, torch.bfloat16, torch.float32),
        ("diffusers_safetensors", VAE_TOO, torch.bfloat16, torch.float32),
    ],
)
def test_precision_is_honoured_in_every_form(
    train: Train,
    model: StableDiffusion,
    tmp_path: Path,
    form: str,
    words: Sequence[str],
    weights: torch.dtype,
    vae: torch.dtype,
) -> None:
    base = written(model, tmp_path / "base.safetensors", "safetensors", torch.float16)
    out = train(base, "--save_model_as", form, *words)
    tensors = tensors_of(next(path for path in out.iterdir() if path.stem == "last"))
    assert {t.dtype for n, t in tensors.items() if n.startswith((UNET, TEXT))} == {weights}
    assert {t.dtype for n, t in tensors.items() if n.startswith(VAE)} == {vae}


def test_a_bf16_model_is_saved_so_that_the_web_ui_loads_it(
    train: Train, model: StableDiffusion, tmp_path: Path
) -> None:
    base = written(model, tmp_path / "base.ckpt", "ckpt", torch.bfloat16)
    tensors = tensors_of(train(base) / "last.ckpt")
    assert {t.dtype for name, t in tensors.items() if name.startswith((UNET, TEXT))} == {torch.float16}


def test_unknown_tensors_of_the_base_model_are_kept_and_stale_averages_are_not(
    train: Train, model: StableDiffusion, tmp_path: Path
) -> None:
    own = {
        "betas": torch.linspace(0, 1, 1000, dtype=torch.float64),
        "somebody.elses": torch.ones(3),
        "model_ema.diffusion_modeltime_embed0bias": torch.ones(4),
    }
    base = tmp_path / "base.safetensors"
    save_model(model, SaveTarget(base, "safetensors"), Precisions(), ModelExtras(own), {}, {})
    assert set(own) <= set(open_weights(base).shapes)
    tensors = tensors_of(train(base) / "last.safetensors")
    assert torch.equal(tensors["betas"], own["betas"]) and torch.equal(tensors["somebody.elses"], own["somebody.elses"])
    assert not any(name.startswith("model_ema.") for name in tensors)


def test_metadata_tells_of_the_training(train: Train, tiny_models: dict[str, Path]) -> None:
    told = open_weights(train(tiny_models["sd1"], "--output_name", "dog") / "dog.safetensors").metadata
    assert told["modelspec.architecture"] == "stable-diffusion-v1" and told["modelspec.title"] == "dog"
    assert told["modelspec.prediction_type"] == "epsilon"
    assert (told["ss_sd_model_name"], told["ss_steps"], told["ss_unet_lr"]) == ("sd1.safetensors", "3", "0.001")
    assert not any(key.startswith("ss_network") for key in told)


def test_metadata_of_a_ckpt_and_of_a_folder(train: Train, tiny_models: dict[str, Path]) -> None:
    out = train(tiny_models["sd1"], "--save_model_as", "ckpt")
    content = torch.load(out / "last.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (1, 3)
    assert content["metadata"]["modelspec.architecture"] == "stable-diffusion-v1"


@pytest.mark.parametrize(("kind", "words"), [("sd2", ["--v2"]), ("sd2_v", ["--v_parameterization"])])
def test_sd2_files_have_their_yaml_and_say_what_they_predict(
    train: Train, tiny_models: dict[str, Path], kind: str, words: list[str]
) -> None:
    out = train(tiny_models[kind], *words)
    parameters = yaml.safe_load((out / "last.yaml").read_text(encoding="utf-8"))["model"]["params"]
    assert parameters.get("parameterization") == ("v" if kind == "sd2_v" else None)
    again = identify(out / "last.safetensors")
    assert again.prediction_type == ("v_prediction" if kind == "sd2_v" else "epsilon")


def test_the_vae_that_was_asked_for_trains_and_is_saved(train: Train, model: StableDiffusion, tmp_path: Path) -> None:
    base = written(model, tmp_path / "base.safetensors", "safetensors")
    other = written(make_tiny_model("sd1", seed=6), tmp_path / "other", "diffusers_safetensors")
    with_own = tensors_of(train(base, "--output_name", "own") / "own.safetensors")
    with_other = tensors_of(train(base, "--output_name", "other_vae", "--vae", str(other)) / "other_vae.safetensors")
    expected = tensors_of(other)
    assert all(torch.equal(with_other[name], expected[name]) for name in expected if name.startswith(VAE))
    assert any(moved(with_own, with_other, UNET)), "the pictures were encoded by another VAE"
    told = open_weights(tmp_path / "other_vae.safetensors").metadata
    assert told["ss_vae_name"] == "other"


def test_layers_behind_clip_skip_stay_as_they_are(train: Train, tiny_models: dict[str, Path]) -> None:
    before = tensors_of(tiny_models["sd1"])
    after = tensors_of(train(tiny_models["sd1"], "--clip_skip", "2") / "last.safetensors")
    layers = f"{TEXT}transformer.text_model.encoder.layers."
    assert not any(moved(before, after, f"{layers}11."))
    assert all(moved(before, after, f"{layers}10.mlp"))


def test_weights_that_learn_are_float32_whatever_the_precision_of_the_computation(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *photo_words(photos)]
    words += ["--output_dir", str(tmp_path), "--max_data_loader_n_workers", "0", "--max_train_steps", "3"]
    words += ["--mixed_precision", "bf16", "--learning_rate", "1e-9", "--optimizer_args", "weight_decay=0"]
    # a process of its own: Accelerate keeps one precision a process
    subprocess.run([sys.executable, "train_db.py", *words], cwd=ROOT, env=environment(), check=True)
    before, after = tensors_of(tiny_models["sd1"]), tensors_of(tmp_path / "last.safetensors")
    assert sum(moved(before, after, UNET)) > 0, "updates far below the steps of bf16 are kept"
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-7


def test_diffusers_loads_the_trained_folder(train: Train, tiny_models: dict[str, Path]) -> None:
    folder = train(tiny_models["sd1"], "--save_model_as", "diffusers_safetensors") / "last"
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    trained = load_stable_diffusion(identify(folder), "epsilon")
    for name in ("unet", "text_encoder", "vae"):
        theirs, ours = getattr(pipe, name).state_dict(), getattr(trained, name).state_dict()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours), name


def test_a_trained_folder_can_be_trained_again(train: Train, model: StableDiffusion, tmp_path: Path) -> None:
    base = written(model, tmp_path / "base", "diffusers_safetensors")
    first = train(base, "--output_name", "first") / "first"
    second = train(first, "--output_name", "second") / "second"
    assert any(moved(tensors_of(first), tensors_of(second), UNET))
    assert read_extras(identify(second)).metadata["ss_sd_model_name"] == "first"


def test_what_cannot_be_written_at_the_end_is_told_at_the_start(
    train: Train, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter.txt").write_text("dear")
    (tmp_path / "notes.yaml").write_text("my notes")
    words = ["--output_name", "precious", "--save_model_as", "diffusers", "--overwrite"]
    with pytest.raises(UserError, match="exists and is not a Diffusers model"):
        train(tiny_models["sd1"], *words)
    with pytest.raises(UserError, match=r"notes.yaml: would be replaced by the model's own"):
        train(tiny_models["sd2"], "--v2", "--output_name", "notes")
    with pytest.raises(UserError, match="does not fit the form diffusers") as caught:
        train(tiny_models["sd1"], "--output_name", "a.ckpt", "--save_model_as", "diffusers", "--clip_skip", "99")
    assert len(caught.value.problems) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"precious", "notes.yaml"}


def test_a_number_beyond_the_format_does_not_cost_the_training(
    train: Train, model: StableDiffusion, tmp_path: Path
) -> None:
    large = make_tiny_model("sd1", seed=5)
    large.vae.decoder.conv_out.bias[0] = 1e5
    base = tmp_path / "base.safetensors"
    save_single_file(large, base, {})
    with pytest.raises(UserError, match="the trained model was saved in float32 instead"):
        train(base, "--save_vae_precision", "fp16")
    after = tensors_of(tmp_path / "last.safetensors")
    assert float(after["first_stage_model.decoder.conv_out.bias"][0]) == 1e5
    assert any(moved(tensors_of(base), after, UNET))


def test_the_default_rate_is_that_of_whole_models(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *photo_words(photos)]
    words += ["--output_dir", str(tmp_path), "--max_data_loader_n_workers", "0", "--max_train_steps", "1"]
    train_db.main(words)
    assert open_weights(tmp_path / "last.safetensors").metadata["ss_unet_lr"] == "2e-06"


def test_an_earlier_model_is_not_overwritten_unasked(train: Train, tiny_models: dict[str, Path]) -> None:
    out = train(tiny_models["sd1"], "--save_model_as", "diffusers")
    index = json.loads((out / "last" / "model_index.json").read_text())
    with pytest.raises(UserError, match="of an earlier run would be lost"):
        train(tiny_models["sd1"], "--save_model_as", "diffusers")
    train(tiny_models["sd1"], "--save_model_as", "diffusers", "--overwrite")
    assert json.loads((out / "last" / "model_index.json").read_text()) == index


def test_the_base_model_itself_can_be_replaced(train: Train, model: StableDiffusion, tmp_path: Path) -> None:
    base = tmp_path / "last.safetensors"
    save_single_file(model, base, {})
    before = tensors_of(base)
    train(base, "--overwrite")
    assert any(moved(before, tensors_of(base), UNET))
