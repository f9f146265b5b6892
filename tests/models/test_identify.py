from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from library.core.errors import UserError
from library.core.tensor_files import write_safetensors
from library.models.identify import ModelIdentity, identify, resolve_prediction_type

UNET, VAE = "model.diffusion_model.out.0.bias", "first_stage_model.quant_conv.bias"
CLIP, OPENCLIP = "cond_stage_model.transformer.text_model.x", "cond_stage_model.model.x"


def write_names(path: Path, *names: str) -> Path:
    write_safetensors(path, {name: torch.zeros(1) for name in names}, {})
    return path


@pytest.mark.parametrize(
    ("name", "family", "layout", "prediction_type"),
    (
        ("sd1.safetensors", "sd1", "single_file", "epsilon"),
        ("sd1.ckpt", "sd1", "single_file", "epsilon"),
        ("sd1", "sd1", "diffusers", "epsilon"),
        ("sd2.safetensors", "sd2", "single_file", None),
        ("sd2_v.ckpt", "sd2", "single_file", None),
        ("sd2", "sd2", "diffusers", "epsilon"),
        ("sd2_v", "sd2", "diffusers", "v_prediction"),
    ),
)
def test_models_are_recognised(
    model_files: Path, name: str, family: str, layout: str, prediction_type: str | None
) -> None:
    path = model_files / name
    assert identify(path) == ModelIdentity(path, family, layout, prediction_type)


@pytest.mark.parametrize(
    ("names", "message"),
    (
        (("lora_unet_down_blocks_0.lora_up.weight",), "this is a LoRA(.|\n)*--network_weights"),
        (("conditioner.embedders.0.transformer.x", UNET, VAE), "SDXL model: not supported yet"),
        (("emb_params",), "Textual Inversion"),
        (("something", "else"), "not a Stable Diffusion model; its first tensors: else, something"),
        ((), "its first tensors: none at all"),
        ((UNET, VAE), "no text encoder"),
        ((VAE, CLIP), r"no model\.diffusion_model\."),
        ((UNET, OPENCLIP), r"no first_stage_model\."),
    ),
)
def test_other_files_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    path = write_names(tmp_path / "model.safetensors", *names)
    with pytest.raises(UserError, match=message) as caught:
        identify(path)
    assert caught.value.problems[0].where == str(path)


def test_inpainting_models_are_refused(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(1) for name in (UNET, VAE, CLIP)}
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(1, 9, 3, 3)
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(UserError, match="takes 9 channels instead of 4"):
        identify(tmp_path / "a.safetensors")


def test_paths_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file(.|\n)*Hub"):
        identify(Path("runwayml/stable-diffusion-v1-5"))
    with pytest.raises(UserError, match=r"no model_index\.json"):
        identify(tmp_path)
    (tmp_path / "model.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"ends in \.safetensors or \.ckpt"):
        identify(tmp_path / "model.zip")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="damaged: it is empty"):
        identify(tmp_path / "model.safetensors")


def test_extensions_may_be_in_capitals(model_files: Path, tmp_path: Path) -> None:
    shutil.copy(model_files / "sd1.safetensors", tmp_path / "MODEL.SAFETENSORS")
    assert identify(tmp_path / "MODEL.SAFETENSORS").family == "sd1"


@pytest.fixture
def folder(model_files: Path, tmp_path: Path) -> Path:
    """The configuration files of a Diffusers folder, to be spoilt."""
    ignore = shutil.ignore_patterns("*.safetensors", "vocab.json", "merges.txt")
    return Path(shutil.copytree(model_files / "sd2_v", tmp_path / "folder", ignore=ignore))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


def test_folders_of_other_kinds_are_refused(folder: Path) -> None:
    change(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(UserError, match="takes 9 channels"):
        identify(folder)
    change(folder / "model_index.json", _class_name="FluxPipeline", unet=[None, None])
    with pytest.raises(UserError, match="a FluxPipeline is not a Stable Diffusion"):
        identify(folder)
    change(folder / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(UserError, match="SDXL model: not supported yet"):
        identify(folder)
    (folder / "model_index.json").write_text("[1, 2", "utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        identify(folder)


def test_missing_parts_of_a_folder_are_named(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"vae.config\.json: the file is missing"):
        identify(folder)


def test_prediction_type_of_a_folder_comes_from_its_scheduler(folder: Path) -> None:
    config = folder / "scheduler" / "scheduler_config.json"
    change(config, prediction_type="sample")
    with pytest.raises(UserError, match="unknown prediction_type 'sample'"):
        identify(folder)
    content = json.loads(config.read_text("utf-8"))
    del content["prediction_type"]
    config.write_text(json.dumps(content), "utf-8")
    assert identify(folder).prediction_type == "epsilon"
    config.unlink()
    assert identify(folder).prediction_type is None


@pytest.mark.parametrize(
    ("family", "layout", "known", "v2", "v_parameterization", "expected"),
    (
        ("sd1", "single_file", "epsilon", False, False, "epsilon"),
        ("sd1", "single_file", "epsilon", False, True, "v_prediction"),
        ("sd1", "diffusers", "v_prediction", False, False, "v_prediction"),
        ("sd2", "single_file", None, False, False, "epsilon"),
        ("sd2", "single_file", None, True, True, "v_prediction"),
        ("sd2", "diffusers", "v_prediction", True, False, "v_prediction"),
        ("sd2", "diffusers", "v_prediction", True, True, "v_prediction"),
        ("sd2", "diffusers", None, True, True, "v_prediction"),
        ("sd2", "diffusers", "epsilon", True, False, "epsilon"),
    ),
)
def test_prediction_type_is_resolved(
    family: str, layout: str, known: str | None, v2: bool, v_parameterization: bool, expected: str
) -> None:
    identity = ModelIdentity(Path("model"), family, layout, known)
    assert resolve_prediction_type(identity, v2, v_parameterization) == expected


def test_contradictions_are_refused() -> None:
    sd1 = ModelIdentity(Path("model.ckpt"), "sd1", "single_file", "epsilon")
    with pytest.raises(UserError, match=r"--v2: the model is Stable Diffusion 1\.x"):
        resolve_prediction_type(sd1, True, False)
    folder = ModelIdentity(Path("model"), "sd1", "diffusers", "epsilon")
    with pytest.raises(UserError, match=r"scheduler_config\.json: says epsilon, but --v_parameterization"):
        resolve_prediction_type(folder, False, True)
