"""What we write, read by Diffusers and Transformers themselves."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from library.core.errors import UserError
from library.core.tensor_files import with_hashes
from library.models.extras import EXTRAS_FILE, ModelExtras
from library.models.forms import SaveTarget, target_for
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.precision import Precisions
from library.models.save import save_diffusers, save_model, save_single_file, single_file_tensors
from library.models.stable_diffusion import StableDiffusion
from library.options.saving import SAVE_FORMATS
from library.text.tokenizer import tokenizer_files

KINDS = ("sd1", "sd2", "sd2_v")
CAT_IDS = [49406, 320, 1125, 539, 320, 2368, 49407]
AS_IT_IS = Precisions()
SOME_EXTRAS = ModelExtras(
    {
        "betas": torch.linspace(0, 1, 5, dtype=torch.float64),
        "model_ema.num_updates": torch.tensor(3),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.diffusion_modelout0weight": torch.ones(2),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "first_stage_model.loss.logvar": torch.zeros(()),
        "unknown": torch.ones(2),
    }
)


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


def saved(model: StableDiffusion, folder: Path, form: str, **changes: object) -> SaveTarget:
    """The model saved under the name "model" in `folder`."""
    settings = {"precisions": AS_IT_IS, "extras": ModelExtras(), "metadata": {}, "tokenizer_files": {}} | changes
    target = target_for(folder, "model", form)
    save_model(model, target, **settings)  # type: ignore[arg-type]
    return target


def tensors_of(target: SaveTarget) -> dict[str, Tensor]:
    """All tensors of a saved model, in folders with the network's name in front."""
    if target.form == "ckpt":
        return torch.load(target.path, weights_only=True)["state_dict"]
    if target.form == "safetensors":
        return load_file(target.path)
    found: dict[str, Tensor] = {}
    for path in sorted(target.path.rglob("*.bin")) + sorted(target.path.rglob("*.safetensors")):
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        part = "" if path.parent == target.path else f"{path.parent.name}/"
        found.update({part + name: tensor for name, tensor in loaded.items()})
    return found


def with_weight(model: StableDiffusion, part: str, value: float) -> StableDiffusion:
    """The model with one number of its U-Net or VAE set to `value`."""
    network = copy.deepcopy(getattr(model, part))
    last = network.decoder.conv_out if part == "vae" else network.conv_out
    last.bias[1] = value
    return dataclasses.replace(model, **{part: network})


# --- number formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", SAVE_FORMATS)
def test_weights_and_vae_have_the_formats_asked_for(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str
) -> None:
    precisions = Precisions(weights=torch.float16, vae=torch.bfloat16)
    found = tensors_of(saved(models_in_memory["sd1"], tmp_path, form, precisions=precisions, extras=SOME_EXTRAS))
    expected = {
        "betas": torch.float64,
        "model_ema.num_updates": torch.int64,
        "model_ema.decay": torch.float32,
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.int64,
        "unknown": torch.float32,
    }
    assert {name: found[name].dtype for name in expected} == expected
    vae = [tensor for name, tensor in found.items() if name.startswith(("first_stage_model.", "vae/"))]
    weights = [t for name, t in found.items() if name not in expected and not name.startswith(("first_stage", "vae/"))]
    assert {tensor.dtype for tensor in vae} == {torch.bfloat16}
    assert {tensor.dtype for tensor in weights} == {torch.float16}
    assert (len(vae), len(weights)) == (249, 883)  # one extra each


@pytest.mark.parametrize("form", SAVE_FORMATS)
def test_the_vae_is_not_converted_along(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str
) -> None:
    found = tensors_of(saved(models_in_memory["sd2"], tmp_path, form, precisions=Precisions(weights=torch.bfloat16)))
    vae = {tensor.dtype for name, tensor in found.items() if name.startswith(("first_stage_model.", "vae/"))}
    others = {tensor.dtype for name, tensor in found.items() if not name.startswith(("first_stage_model.", "vae/"))}
    assert (vae, others) == ({torch.float32}, {torch.bfloat16})


def test_converted_values_are_the_rounded_ones(models_in_memory: dict[str, StableDiffusion], tmp_path: Path) -> None:
    model = models_in_memory["sd2"]
    found = tensors_of(saved(model, tmp_path, "safetensors", precisions=Precisions(torch.float16, torch.float16)))
    for name, tensor in single_file_tensors(model).items():
        assert torch.equal(found[name], tensor.half()), name


@pytest.mark.parametrize("form", SAVE_FORMATS)
@pytest.mark.parametrize(
    ("part", "value", "tensor"),
    [("unet", 70000.0, "(model.diffusion_model.out.2.bias|conv_out.bias)"), ("vae", -70000.0, "decoder.conv_out.bias")],
)
def test_a_number_that_does_not_fit_is_named_and_nothing_is_left(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str, part: str, value: float, tensor: str
) -> None:
    model = with_weight(models_in_memory["sd2_v"], part, value)
    half = Precisions(torch.float16, torch.float16)
    with pytest.raises(UserError, match=f"{tensor} holds 70000, and float16 ends at 65504"):
        saved(model, tmp_path, form, precisions=half)
    assert list(tmp_path.iterdir()) == []
    saved(model, tmp_path, form, precisions=Precisions(torch.bfloat16, torch.bfloat16))


@pytest.mark.parametrize("form", SAVE_FORMATS)
def test_a_number_that_does_not_fit_leaves_the_older_model(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str
) -> None:
    saved(models_in_memory["sd2"], tmp_path, form)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds 1e"):
        wrong = with_weight(models_in_memory["sd2_v"], "unet", 1e30)
        saved(wrong, tmp_path, form, precisions=Precisions(torch.float16))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_values_that_are_no_numbers_already_are_no_mistake_of_the_format(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    mask = torch.full((3, 3), float("-inf")).triu(1)
    extras = ModelExtras({"cond_stage_model.model.attn_mask": mask})
    found = saved(models_in_memory["sd2"], tmp_path, "ckpt", extras=extras, precisions=Precisions(torch.float16))
    assert torch.equal(tensors_of(found)["cond_stage_model.model.attn_mask"], mask.half())


# --- what is kept beside the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ("ckpt", "safetensors"))
def test_extras_win_over_what_is_made_up_and_networks_over_extras(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str
) -> None:
    own = single_file_tensors(models_in_memory["sd2"])
    prefix = "cond_stage_model.model."
    made_up = (f"{prefix}text_projection", f"{prefix}logit_scale", f"{prefix}transformer.resblocks.23.ln_1.bias")
    used = (f"{prefix}ln_final.bias", "model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias")
    fused = f"{prefix}transformer.resblocks.22.attn.in_proj_bias"
    extras = ModelExtras({name: torch.full_like(own[name], 5) for name in (*made_up, *used, fused)})
    found = tensors_of(saved(models_in_memory["sd2"], tmp_path, form, extras=extras))
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], extras.tensors[name]) for name in made_up)
    assert all(torch.equal(found[name], own[name]) for name in own if name not in made_up)


@pytest.mark.parametrize("form", ("diffusers", "diffusers_safetensors"))
def test_a_folder_keeps_extras_only_where_there_are_any(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str
) -> None:
    model = models_in_memory["sd1"]
    plain = saved(model, tmp_path / "plain", form).path
    assert not (plain / EXTRAS_FILE).exists()
    noted = saved(model, tmp_path / "noted", form, metadata={"ss_epoch": "2"}).path
    with safe_open(noted / EXTRAS_FILE, "pt") as file:
        assert file.metadata() == {"ss_epoch": "2"} and list(file.keys()) == []
    kept = saved(model, tmp_path / "kept", form, extras=SOME_EXTRAS).path
    found = load_file(kept / EXTRAS_FILE)
    assert found.keys() == SOME_EXTRAS.tensors.keys()
    pipeline = StableDiffusionPipeline.from_pretrained(saved_with_tokenizer(model, kept, form), local_files_only=True)
    assert_same_networks(pipeline, model)


def saved_with_tokenizer(model: StableDiffusion, folder: Path, form: str) -> Path:
    save_model(model, SaveTarget(folder, form), AS_IT_IS, SOME_EXTRAS, {}, tokenizer_files(model.family))
    assert (folder / EXTRAS_FILE).exists()
    return folder


@pytest.mark.parametrize(
    ("metadata", "beside"),
    [
        ({}, {}),
        ({"note": "x"}, {}),
        ({"ss_epoch": "3", "ss_steps": "120"}, {"epoch": 3, "global_step": 120}),
        ({"ss_epoch": "None", "ss_steps": "7"}, {"global_step": 7}),
    ],
)
def test_a_ckpt_tells_how_far_the_training_went(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, metadata: dict[str, str], beside: dict[str, int]
) -> None:
    target = saved(models_in_memory["sd1"], tmp_path, "ckpt", metadata=metadata)
    content = torch.load(target.path, weights_only=True)
    del content["state_dict"]
    assert content == beside | ({"metadata": metadata} if metadata else {})


def test_hashes_of_a_safetensors_file_are_not_put_into_a_ckpt(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    target = saved(models_in_memory["sd1"], tmp_path, "ckpt", metadata=with_hashes({"note": "x"}))
    assert torch.load(target.path, weights_only=True)["metadata"] == {"note": "x"}


@pytest.mark.parametrize("form", ("diffusers", "diffusers_safetensors"))
def test_no_path_of_an_older_model_is_written(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, form: str
) -> None:
    folder = saved(models_in_memory["sd1"], tmp_path, form, tokenizer_files=tokenizer_files("sd1")).path
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert str(tmp_path) in pipeline.unet.config["_name_or_path"]
    loaded = StableDiffusion("sd1", "epsilon", pipeline.unet, pipeline.text_encoder, pipeline.vae)
    again = saved(loaded, tmp_path / "again", form).path
    texts = {path: path.read_text("utf-8") for path in again.rglob("*.json")}
    assert [path for path, text in texts.items() if "_name_or_path" in text or str(tmp_path) in text] == []


def test_the_number_format_of_another_file_is_not_repeated(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    half = saved(models_in_memory["sd1"], tmp_path, "diffusers", precisions=Precisions(torch.float16))
    text_encoder = CLIPTextModel.from_pretrained(half.path / "text_encoder", local_files_only=True)
    assert text_encoder.config.dtype == torch.float16
    model = dataclasses.replace(models_in_memory["sd1"], text_encoder=text_encoder)
    full = saved(model, tmp_path / "full", "diffusers", precisions=Precisions(torch.float32))
    config = json.loads((full.path / "text_encoder" / "config.json").read_text("utf-8"))
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")


def test_what_others_put_into_a_folder_survives_its_replacement(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    extras = ModelExtras({"somebody.elses": torch.ones(2)})
    save_diffusers(models_in_memory["sd1"], folder, tokenizer_files("sd1"), extras=extras)
    (folder / "v1-5-pruned.ckpt").write_text("four gigabytes")
    (folder / "my_samples").mkdir()
    (folder / "my_samples" / "a.png").write_text("a picture")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_text("of the old model")
    save_diffusers(models_in_memory["sd1"], folder, tokenizer_files("sd1"))
    assert (folder / "v1-5-pruned.ckpt").read_text() == "four gigabytes"
    assert (folder / "my_samples" / "a.png").read_text() == "a picture"
    assert not (folder / EXTRAS_FILE).exists() and len(list((folder / "unet").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_sampler_of_the_source_is_kept(models_in_memory: dict[str, StableDiffusion], tmp_path: Path) -> None:
    own = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
        "prediction_type": "epsilon",
    }
    save_diffusers(models_in_memory["sd2_v"], tmp_path / "m", tokenizer_files("sd2"), extras=ModelExtras(scheduler=own))
    config = json.loads((tmp_path / "m" / "scheduler" / "scheduler_config.json").read_text())
    assert config == {**own, "prediction_type": "v_prediction"}
    assert json.loads((tmp_path / "m" / "model_index.json").read_text())["scheduler"] == ["diffusers", "PNDMScheduler"]
