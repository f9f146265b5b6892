"""What we write, read by Diffusers and Transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from library.core.errors import UserError
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import save_diffusers, save_single_file, single_file_tensors, swap_folder
from library.models.stable_diffusion import StableDiffusion
from library.text.tokenizer import tokenizer_files

KINDS = ("sd1", "sd2", "sd2_v")
CAT_IDS = [49406, 320, 1125, 539, 320, 2368, 49407]


def assert_same_networks(pipeline: StableDiffusionPipeline, model: StableDiffusion) -> None:
    pairs = ((pipeline.unet, model.unet), (pipeline.text_encoder, model.text_encoder), (pipeline.vae, model.vae))
    for theirs, ours in pairs:
        state = theirs.state_dict()
        assert state.keys() == ours.state_dict().keys()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_our_folder(models_in_memory: dict[str, StableDiffusion], model_files: Path, kind: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(model_files / kind, local_files_only=True)
    assert_same_networks(pipeline, models_in_memory[kind])
    assert pipeline.scheduler.config.prediction_type == models_in_memory[kind].prediction_type
    assert pipeline.tokenizer("a photo of a cat").input_ids == CAT_IDS
    assert pipeline.tokenizer.pad_token == ("<|endoftext|>" if kind == "sd1" else "!")
    assert pipeline.tokenizer.model_max_length == 77


@pytest.mark.parametrize("suffix", (".safetensors", ".ckpt"))
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_our_single_file(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, kind: str, suffix: str
) -> None:
    file, config = str(model_files / f"{kind}{suffix}"), str(model_files / kind)
    pipeline = StableDiffusionPipeline.from_single_file(file, config=config, local_files_only=True)
    assert_same_networks(pipeline, models_in_memory[kind])


def test_a_picture_comes_out(model_files: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(model_files / "sd1", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a cat", height=64, width=64, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)
    assert picture.std() > 0.01


@pytest.mark.parametrize("suffix", (".safetensors", ".ckpt"))
@pytest.mark.parametrize("kind", KINDS)
def test_single_file_to_folder_and_back_is_bit_equal(model_files: Path, tmp_path: Path, kind: str, suffix: str) -> None:
    original = model_files / f"{kind}{suffix}"
    prediction_type = "v_prediction" if kind == "sd2_v" else "epsilon"
    first = load_stable_diffusion(identify(original), prediction_type)
    save_diffusers(first, tmp_path / "folder", tokenizer_files(first.family))
    identity = identify(tmp_path / "folder")
    assert identity.prediction_type == prediction_type
    second = load_stable_diffusion(identity, prediction_type)
    metadata = {"format": "pt"} if suffix == ".safetensors" else {}
    save_single_file(second, tmp_path / original.name, metadata)
    assert (tmp_path / original.name).read_bytes() == original.read_bytes()


def test_text_encoder_folder_has_the_prefix_that_older_versions_need(model_files: Path) -> None:
    with safe_open(model_files / "sd1" / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


def test_folder_holds_what_tools_look_for(model_files: Path) -> None:
    folder = model_files / "sd2_v"
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert json.loads((folder / "text_encoder" / "config.json").read_text("utf-8"))["architectures"] == [
        "CLIPTextModel"
    ]
    assert {path.name for path in (folder / "tokenizer").iterdir()} == set(tokenizer_files("sd2"))
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 1, "weights must be readable by whoever may read the configuration"


def test_metadata_is_kept(models_in_memory: dict[str, StableDiffusion], tmp_path: Path) -> None:
    metadata = {"ss_epoch": "3", "ss_note": "größe"}
    save_single_file(models_in_memory["sd1"], tmp_path / "a.safetensors", metadata)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata
    save_single_file(models_in_memory["sd1"], tmp_path / "a.ckpt", metadata)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["metadata"] == metadata
    assert content["state_dict"].keys() == single_file_tensors(models_in_memory["sd1"]).keys()


def test_an_older_model_is_replaced_and_anything_else_is_left_alone(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    model, files = models_in_memory["sd1"], {"merges.txt": "x"}
    save_diffusers(model, tmp_path / "model", {"old.txt": "x"})
    save_diffusers(model, tmp_path / "model", files)
    assert [path.name for path in (tmp_path / "model" / "tokenizer").iterdir()] == ["merges.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(UserError, match="exists and is not a Diffusers model"):
        save_diffusers(model, tmp_path / "photos", files)
    assert (tmp_path / "photos" / "cat.png").exists()


def test_a_failed_save_leaves_the_old_model(models_in_memory: dict[str, StableDiffusion], tmp_path: Path) -> None:
    model = models_in_memory["sd1"]
    save_diffusers(model, tmp_path / "model", {"merges.txt": "x"})
    with pytest.raises(FileNotFoundError):
        save_diffusers(model, tmp_path / "model", {"no/such/folder.txt": "x"})
    assert (tmp_path / "model" / "tokenizer" / "merges.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old", encoding="utf-8")
    with pytest.raises(OSError):
        swap_folder(tmp_path / "never written", folder, tmp_path / "aside")
    assert (folder / "weights").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
