"""The yaml beside a single file, against Diffusers' own reader of such files and the published configurations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers.loaders import single_file_utils as oracle
from diffusers.models import AutoencoderKL, UNet2DConditionModel

from library.models import topology
from library.models.extras import ModelExtras
from library.models.forms import SaveTarget, target_for, yaml_beside
from library.models.inference_yaml import inference_yaml
from library.models.load import build_text_encoder, build_unet, build_vae
from library.models.precision import Precisions
from library.models.save import save_model, single_file_tensors
from library.models.stable_diffusion import StableDiffusion

KINDS = ("sd1", "sd2", "sd2_v")


@pytest.fixture(scope="module")
def full_size() -> dict[str, StableDiffusion]:
    """Models of the published sizes, without memory for their weights."""
    found = {}
    for kind, family, prediction_type in (("sd1", "sd1", "epsilon"), ("sd2", "sd2", "epsilon"), ("sd2_v", "sd2", "v")):
        widths = topology.FULL_WIDTHS[family]
        sample_size = topology.unet_sample_size(prediction_type, family)
        found[kind] = StableDiffusion(
            family,
            "v_prediction" if prediction_type == "v" else prediction_type,
            build_unet(topology.unet_config(family, widths.unet, widths.text, sample_size)),
            build_text_encoder(topology.text_config(family, widths.text, widths.text_intermediate)),
            build_vae(topology.vae_config(family, widths.vae)),
        )
    return found


def read(model: StableDiffusion) -> dict[str, Any]:
    return yaml.safe_load(inference_yaml(model))


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_builds_the_same_networks_from_it(full_size: dict[str, StableDiffusion], kind: str) -> None:
    model = full_size[kind]
    tensors = dict(single_file_tensors(model))
    pairs = (
        (UNet2DConditionModel, oracle.create_unet_diffusers_config_from_ldm(read(model), tensors), model.unet),
        (AutoencoderKL, oracle.create_vae_diffusers_config_from_ldm(read(model), tensors), model.vae),
    )
    for network_class, config, ours in pairs:
        with torch.device("meta"):
            built = network_class.from_config(config)
        size_free = {"sample_size": None, "_use_default_values": None}  # the default picture size changes no network
        assert {**built.config, **size_free} == {**ours.config, **size_free}
        assert {n: t.shape for n, t in built.state_dict().items()} == {n: t.shape for n, t in ours.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_toy_file_and_its_yaml_are_read_by_diffusers(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, tmp_path: Path, kind: str
) -> None:
    model, path = models_in_memory[kind], tmp_path / "model.yaml"
    path.write_text(inference_yaml(model), encoding="utf-8")
    loaded = UNet2DConditionModel.from_single_file(
        str(model_files / f"{kind}.safetensors"), original_config=str(path), local_files_only=True
    )
    # out of the mapped file, whose alignment changes the last bits of a result
    loaded.load_state_dict({name: tensor.clone() for name, tensor in loaded.state_dict().items()}, assign=True)
    noise = torch.linspace(-1, 1, 4 * 8 * 8).reshape(1, 4, 8, 8)
    states = torch.linspace(-1, 1, 5 * model.unet.config.cross_attention_dim).reshape(1, 5, -1)
    with torch.no_grad():
        assert torch.equal(loaded(noise, 7, states).sample, model.unet(noise, 7, states).sample)


def test_sd2_says_what_the_published_files_say(full_size: dict[str, StableDiffusion]) -> None:
    content = read(full_size["sd2_v"])["model"]
    assert content["target"] == "ldm.models.diffusion.ddpm.LatentDiffusion"
    params = content["params"]
    facts = {
        "parameterization": "v",
        "linear_start": 0.00085,
        "linear_end": 0.0120,
        "timesteps": 1000,
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 96,
        "channels": 4,
        "conditioning_key": "crossattn",
        "scale_factor": 0.18215,
        "use_ema": False,
    }
    assert {key: params[key] for key in facts} == facts
    unet = params["unet_config"]
    assert unet["target"] == "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    facts = {
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "num_head_channels": 64,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": True,
        "transformer_depth": 1,
        "context_dim": 1024,
        "legacy": False,
    }
    assert {key: unet["params"][key] for key in facts} == facts
    assert "num_heads" not in unet["params"]
    vae = params["first_stage_config"]
    assert vae["target"] == "ldm.models.autoencoder.AutoencoderKL"
    assert vae["params"]["embed_dim"] == 4
    assert (vae["params"]["ddconfig"]["ch"], vae["params"]["ddconfig"]["ch_mult"]) == (128, [1, 2, 4, 4])
    text = params["cond_stage_config"]
    assert text["target"] == "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder"
    assert text["params"] == {"freeze": True, "layer": "penultimate"}


def test_only_v_prediction_is_said(full_size: dict[str, StableDiffusion]) -> None:
    told = {kind: read(full_size[kind])["model"]["params"].get("parameterization") for kind in KINDS}
    assert told == {"sd1": None, "sd2": None, "sd2_v": "v"}


def test_sd1_has_its_own_text_encoder_and_heads(full_size: dict[str, StableDiffusion]) -> None:
    params = read(full_size["sd1"])["model"]["params"]
    assert params["cond_stage_config"] == {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
    assert params["unet_config"]["params"]["num_heads"] == 8
    assert params["unet_config"]["params"]["context_dim"] == 768
    assert params["image_size"] == 64


def test_widths_that_are_no_multiples_of_the_first_are_kept(full_size: dict[str, StableDiffusion]) -> None:
    unet = build_unet(topology.unet_config("sd2", (96, 192, 320, 320), 128))
    odd = StableDiffusion("sd2", "epsilon", unet, full_size["sd2"].text_encoder, full_size["sd2"].vae)
    params = read(odd)["model"]["params"]["unet_config"]["params"]
    assert [params["model_channels"] * multiple for multiple in params["channel_mult"]] == [96, 192, 320, 320]


def test_the_text_is_that_of_the_model_alone(models_in_memory: dict[str, StableDiffusion]) -> None:
    texts = [inference_yaml(models_in_memory["sd2_v"]) for _ in range(2)]
    assert texts[0] == texts[1]
    assert "!!" not in texts[0], "plain data only: readers refuse Python objects"


def test_only_the_extension_is_exchanged() -> None:
    assert yaml_beside(Path("out") / "my.model-000001.safetensors") == Path("out") / "my.model-000001.yaml"


# --- beside the file ------------------------------------------------------------------------------------------------


def saved(model: StableDiffusion, folder: Path, form: str) -> SaveTarget:
    """The model saved as a single file named "model" in `folder`."""
    target = target_for(folder, "model", form)
    save_model(model, target, Precisions(), ModelExtras(), {}, {})
    return target


@pytest.mark.parametrize("form", ("ckpt", "safetensors"))
@pytest.mark.parametrize(("kind", "parameterization"), [("sd2", None), ("sd2_v", "v")])
def test_sd2_files_get_their_yaml(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str, kind: str, parameterization: str | None
) -> None:
    target = saved(models_in_memory[kind], tmp_path, form)
    assert {path.name for path in tmp_path.iterdir()} == {target.path.name, "model.yaml"}
    content = yaml.safe_load((tmp_path / "model.yaml").read_text("utf-8"))
    assert content["model"]["params"].get("parameterization") == parameterization


def test_sd1_files_need_a_yaml_for_v_prediction_only(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    model = models_in_memory["sd1"]
    saved(model, tmp_path, "safetensors")
    assert not (tmp_path / "model.yaml").exists()
    saved(dataclasses.replace(model, prediction_type="v_prediction"), tmp_path, "safetensors")
    assert "parameterization: v\n" in (tmp_path / "model.yaml").read_text("utf-8")


def test_a_yaml_of_another_model_does_not_outlive_it(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    (tmp_path / "model.yaml").write_text("model: of somebody\n", encoding="utf-8")
    saved(models_in_memory["sd2_v"], tmp_path, "safetensors")
    assert "parameterization: v\n" in (tmp_path / "model.yaml").read_text("utf-8")
    saved(models_in_memory["sd1"], tmp_path, "safetensors")
    text = (tmp_path / "model.yaml").read_text("utf-8")
    assert "FrozenCLIPEmbedder" in text and "parameterization" not in text


def test_the_yaml_stands_there_before_the_model_and_goes_when_that_fails(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").mkdir()  # nothing can be renamed to this name
    (tmp_path / "model.safetensors" / "x").touch()
    with pytest.raises(OSError):
        saved(models_in_memory["sd2"], tmp_path, "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "model.yaml").write_text("old", encoding="utf-8")
    with pytest.raises(OSError):
        saved(models_in_memory["sd2"], tmp_path, "safetensors")
    assert (tmp_path / "model.yaml").read_text("utf-8") == "old"
