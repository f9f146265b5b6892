from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from library.core.errors import UserError
from library.core.tensor_files import write_safetensors
from library.models.forms import yaml_beside
from library.models.identify import ModelIdentity, identify, resolve_prediction_type
from library.models.inference_yaml import inference_yaml
from library.models.stable_diffusion import StableDiffusion
from library.options.saving import SAVE_FORMATS

UNET, VAE = "model.diffusion_model.out.0.bias", "first_stage_model.quant_conv.bias"
CLIP, OPENCLIP = "cond_stage_model.transformer.text_model.x", "cond_stage_model.model.x"
SD1, SD2 = (UNET, VAE, CLIP), (UNET, VAE, OPENCLIP)


def write_names(path: Path, *names: str, **metadata: str) -> Path:
    """A file of these tensors; metadata keys have `__` where the field writes a dot."""
    texts = {key.replace("__", "."): value for key, value in metadata.items()}
    write_safetensors(path, {name: torch.zeros(1) for name in names}, texts)
    return path


@pytest.mark.parametrize(
    ("name", "family", "layout", "prediction_type", "form", "told_by"),
    (
        ("sd1.safetensors", "sd1", "single_file", "epsilon", "safetensors", None),
        ("sd1.ckpt", "sd1", "single_file", "epsilon", "ckpt", None),
        ("sd1", "sd1", "diffusers", "epsilon", "diffusers_safetensors", "scheduler_config.json"),
        ("sd2.safetensors", "sd2", "single_file", None, "safetensors", None),
        ("sd2_v.ckpt", "sd2", "single_file", None, "ckpt", None),
        ("sd2", "sd2", "diffusers", "epsilon", "diffusers_safetensors", "scheduler_config.json"),
        ("sd2_v", "sd2", "diffusers", "v_prediction", "diffusers_safetensors", "scheduler_config.json"),
    ),
)
def test_models_are_recognised(
    model_files: Path,
    name: str,
    family: str,
    layout: str,
    prediction_type: str | None,
    form: str,
    told_by: str | None,
) -> None:
    path = model_files / name
    assert identify(path) == ModelIdentity(path, family, layout, prediction_type, form, told_by, name)


def test_what_is_not_said_follows_from_the_path() -> None:
    identity = ModelIdentity(Path("a") / "model.v2.ckpt", "sd1", "single_file", "epsilon")
    assert (identity.form, identity.name, identity.told_by) == ("ckpt", "model.v2.ckpt", None)
    assert ModelIdentity(Path(), "sd1", "diffusers", "epsilon").name == Path.cwd().name
    assert ModelIdentity(Path(), "sd1", "diffusers", None, "diffusers", name="o/n").name == "o/n"


def test_extensions_may_be_in_capitals(model_files: Path, tmp_path: Path) -> None:
    shutil.copy(model_files / "sd1.safetensors", tmp_path / "MODEL.SAFETENSORS")
    identity = identify(tmp_path / "MODEL.SAFETENSORS")
    assert (identity.family, identity.form) == ("sd1", "safetensors")


def test_a_model_may_have_the_ending_of_other_pickles(model_files: Path, tmp_path: Path) -> None:
    shutil.copy(model_files / "sd1.ckpt", tmp_path / "model.pt")
    assert (identify(tmp_path / "model.pt").family, identify(tmp_path / "model.pt").form) == ("sd1", "ckpt")


# --- files that are no model ------------------------------------------------------------------------------------------

OTHER_FILES: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "LoRA": ({"lora_unet_down_blocks_0.lora_up.weight": (1,)}, r"this is a LoRA, not(.|\n)*--network_weights"),
    "LoHa": ({"lora_unet_down_blocks_0.hada_w1_a": (1,)}, r"this is a LoRA \(LyCORIS LoHa\)"),
    "SDXL": ({"conditioner.embedders.0.x": (1,), UNET: (1,), VAE: (1,)}, "SDXL model: not supported yet"),
    "Flux": ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "Stable Diffusion 3 or Flux kind: not supported"),
    "embedding": ({"emb_params": (1, 768)}, "a Textual Inversion embedding, not a full model"),
    "XTI": ({"IN01": (1, 768), "MID": (1, 768)}, "an Extended Textual Inversion embedding"),
    "hypernetwork": ({"768.0.linear.0.weight": (1,)}, r"a hypernetwork, not(.|\n)*base model"),
    "VAE": ({"encoder.conv_in.weight": (1,)}, r"a VAE alone, not(.|\n)*--vae"),
    "its VAE": ({VAE: (1,), "first_stage_model.decoder.conv_in.weight": (4, 16, 3, 3)}, "VAE alone, with 16 latent"),
    "U-Net": ({"down_blocks.0.x": (1,), "up_blocks.0.x": (1,)}, r"a U-Net alone, not(.|\n)*model_index\.json"),
    "text encoder": ({CLIP: (1,)}, r"a text encoder alone \(Stable Diffusion 1\.x\), not(.|\n)*model_index\.json"),
    "ControlNet": ({"control_model.x": (1,), UNET: (1,), VAE: (1,), CLIP: (1,)}, "a ControlNet, not a model to train"),
    "no text encoder": ({UNET: (1,), VAE: (1,)}, "only part of a model: no text encoder"),
    "no U-Net": ({VAE: (1,), CLIP: (1,)}, r"only part of a model: no U-Net \(model\.diffusion_model\."),
    "no VAE": ({UNET: (1,), OPENCLIP: (1,)}, r"only part of a model: no VAE \(first_stage_model\."),
    "averages": ({"model_ema.decay": ()}, "only part of a model: only the moving average"),
    "optimizer": ({"state.0.exp_avg": (1,)}, "the state of an optimizer, not a model"),
    "else": (
        {"something": (1,), "else": (2,)},
        "not a Stable Diffusion model: nothing known; its first tensors: (else|something)",
    ),
    "inpainting": (
        {**dict.fromkeys(SD1, (1,)), "model.diffusion_model.input_blocks.0.0.weight": (1, 9, 3, 3)},
        r"inpainting model: its U-Net takes 9 channels instead of 4(.|\n)*text-to-image",
    ),
    "depth": (
        {**dict.fromkeys(SD2, (1,)), "model.diffusion_model.input_blocks.0.0.weight": (1, 5, 3, 3)},
        r"depth model: its U-Net takes 5 channels instead of 4",
    ),
    "unCLIP": ({**dict.fromkeys(SD2, (1,)), "model.diffusion_model.label_emb.0.0.weight": (1,)}, "unCLIP"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_other_files_are_refused(tmp_path: Path, what: str) -> None:
    shapes, message = OTHER_FILES[what]
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {name: torch.zeros(shape) for name, shape in shapes.items()}, {})
    with pytest.raises(UserError, match=message) as caught:
        identify(path)
    assert caught.value.problems[0].where == str(path)
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=message):
        identify(tmp_path / "model.pt")


def test_each_kind_has_a_sentence_of_its_own(tmp_path: Path) -> None:
    sentences = []
    for shapes, _ in OTHER_FILES.values():
        write_safetensors(tmp_path / "a.safetensors", {name: torch.zeros(shape) for name, shape in shapes.items()}, {})
        with pytest.raises(UserError) as caught:
            identify(tmp_path / "a.safetensors")
        sentences.append(caught.value.problems[0].what)
    assert len(set(sentences)) == len(OTHER_FILES)


def test_paths_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        identify(tmp_path / "absent")
    (tmp_path / "model.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"ends in \.safetensors or \.ckpt"):
        identify(tmp_path / "model.zip")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="empty"):
        identify(tmp_path / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match="a folder, though its name"):
        identify(tmp_path / "folder.safetensors")


# --- what a single file's U-Net predicts ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", (SD1, SD2))
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    (
        ("modelspec__prediction_type", "v", "v_prediction"),
        ("modelspec__prediction_type", "v_prediction", "v_prediction"),
        ("modelspec__prediction_type", "epsilon", "epsilon"),
        ("ss_base_model_version", "sd_v2_768_v", "v_prediction"),
        ("ss_base_model_version", "sd_v2_512", "epsilon"),
        ("ss_v_parameterization", "True", "v_prediction"),
        ("ss_v_parameterization", "False", "epsilon"),
    ),
)
def test_metadata_tell_the_prediction_type(
    tmp_path: Path, names: tuple[str, ...], key: str, value: str, expected: str
) -> None:
    identity = identify(write_names(tmp_path / "a.safetensors", *names, **{key: value}))
    assert identity.prediction_type == expected
    assert identity.told_by == f"its metadata ({key.replace('__', '.')})"


def test_metadata_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    path = write_names(tmp_path / "a.safetensors", *SD2, ss_base_model_version="sd_v1", modelspec__prediction_type="")
    assert (identify(path).prediction_type, identify(path).told_by) == (None, None)


def test_a_pickled_model_has_metadata_too(tmp_path: Path) -> None:
    state = {name: torch.zeros(1) for name in SD2}
    torch.save({"state_dict": state, "metadata": {"modelspec.prediction_type": "v"}}, tmp_path / "a.ckpt")
    assert identify(tmp_path / "a.ckpt").prediction_type == "v_prediction"


@pytest.mark.parametrize("names", (SD1, SD2))
def test_a_marked_model_predicts_v(tmp_path: Path, names: tuple[str, ...]) -> None:
    identity = identify(write_names(tmp_path / "a.safetensors", *names, "v_pred", ss_v_parameterization="False"))
    assert (identity.prediction_type, identity.told_by) == ("v_prediction", "its tensor v_pred")


@pytest.mark.parametrize(
    ("text", "expected"),
    (
        ('model:\n  target: ldm.x\n  params:\n    parameterization: "v"\n', "v_prediction"),
        ("model:\n  params:\n    parameterization: eps\n", "epsilon"),
        ("model:\n  params:\n    timesteps: 1000\n", "epsilon"),
        ("training:\n  steps: 5\n", None),
        ("model: sd2\n", None),
        ("- a\n- b\n", None),
        ("", None),
    ),
)
def test_the_yaml_beside_a_model_tells(tmp_path: Path, text: str, expected: str | None) -> None:
    path = write_names(tmp_path / "model.v2.safetensors", *SD2)
    (tmp_path / "model.v2.yaml").write_text(text, "utf-8")
    (tmp_path / "other.yaml").write_text('model: {params: {parameterization: "v"}}', "utf-8")
    identity = identify(path)
    assert identity.prediction_type == expected
    assert identity.told_by == ("model.v2.yaml beside it" if expected else None)


@pytest.mark.parametrize("kind", ("sd1", "sd2", "sd2_v"))
def test_the_yaml_that_we_write_is_understood(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path, kind: str
) -> None:
    path = write_names(tmp_path / "model.v2.safetensors", *SD2)
    yaml_beside(path).write_text(inference_yaml(models_in_memory[kind]), "utf-8")
    identity = identify(path)
    assert identity.told_by == "model.v2.yaml beside it"
    assert identity.prediction_type == models_in_memory[kind].prediction_type


def test_metadata_in_the_file_win_over_a_yaml_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('model: {params: {parameterization: "v"}}', "utf-8")
    path = write_names(tmp_path / "a.safetensors", *SD2, modelspec__prediction_type="epsilon")
    assert identify(path).prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (b"model: [1, 2\n", r"cannot be read: .*\(line 2\)"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: !!python/object/apply:os.system [x]", r"cannot be read: .*constructor.*\(line 1\)"),
        (b"model: {params: {parameterization: x0}}", "unknown parameterization 'x0'"),
        (b"model: {params: {parameterization: [v]}}", "unknown parameterization"),
    ),
)
def test_a_broken_yaml_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_names(tmp_path / "a.safetensors", *SD2)
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        identify(path)
    assert caught.value.problems[0].where == str(tmp_path / "a.yaml")


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(model_files: Path, tmp_path: Path) -> Path:
    """The configuration files of a Diffusers folder, to be spoilt."""
    ignore = shutil.ignore_patterns("*.safetensors", "vocab.json", "merges.txt")
    return Path(shutil.copytree(model_files / "sd2_v", tmp_path / "folder", ignore=ignore))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


@pytest.mark.parametrize(
    ("names", "form"),
    (
        ((), "diffusers_safetensors"),
        (("diffusion_pytorch_model.bin",), "diffusers"),
        (("diffusion_pytorch_model.fp16.bin",), "diffusers"),
        (("diffusion_pytorch_model.safetensors",), "diffusers_safetensors"),
        (("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"), "diffusers_safetensors"),
    ),
)
def test_the_form_of_a_folder_is_that_of_its_unet(folder: Path, names: tuple[str, ...], form: str) -> None:
    for name in names:
        (folder / "unet" / name).touch()
    (folder / "vae" / "diffusion_pytorch_model.bin").touch()
    assert identify(folder).form == form
    assert form in SAVE_FORMATS


def test_folders_of_other_kinds_are_refused(folder: Path) -> None:
    change(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(UserError, match="takes 9 channels"):
        identify(folder)
    change(folder / "unet" / "config.json", in_channels=4, class_embed_type="projection")
    with pytest.raises(UserError, match="wants more than text"):
        identify(folder)
    change(folder / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    with pytest.raises(UserError, match="a StableDiffusionPipeline is not a Stable Diffusion"):
        identify(folder)
    for odd in ([None, None], None, [], "UNet2DConditionModel"):
        change(folder / "model_index.json", _class_name="FluxPipeline", unet=odd)
        with pytest.raises(UserError, match="a FluxPipeline is not a Stable Diffusion"):
            identify(folder)
    change(folder / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(UserError, match="SDXL model: not supported yet"):
        identify(folder)
    (folder / "model_index.json").write_text("[1, 2", "utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        identify(folder)


@pytest.mark.parametrize(
    ("part", "message"),
    (
        ("vae", r"a folder with a VAE alone, not(.|\n)*--vae"),
        ("unet", r"a folder with a U-Net alone, not(.|\n)*model_index\.json"),
        ("text_encoder", "a folder with a text encoder alone"),
    ),
)
def test_the_folder_of_one_network_is_no_model(folder: Path, part: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        identify(folder / part)
    assert caught.value.problems[0].where == str(folder / part)


def test_folders_without_an_index_are_told_apart(folder: Path, tmp_path: Path) -> None:
    (folder / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"an incomplete Diffusers model: no model_index\.json"):
        identify(folder)
    (tmp_path / "language").mkdir()
    (tmp_path / "language" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}', "utf-8")
    with pytest.raises(UserError, match=r"config\.json in the folder describes LlamaForCausalLM"):
        identify(tmp_path / "language")
    (tmp_path / "state").mkdir()
    with pytest.raises(UserError, match=r"not a Diffusers model: no model_index\.json"):
        identify(tmp_path / "state")
    write_names(tmp_path / "state" / "model.safetensors", *SD1)
    with pytest.raises(UserError, match=r"holds 1 model file\n(.|\n)*model\.safetensors"):
        identify(tmp_path / "state")
    (tmp_path / "state" / "random_states_0.pkl").touch()
    with pytest.raises(UserError, match="saved state of a training run"):
        identify(tmp_path / "state")


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
    assert (identify(folder).prediction_type, identify(folder).told_by) == (None, None)


# --- the model's word and the user's ----------------------------------------------------------------------------------


def identity_of(family: str, known: str | None, told_by: str | None) -> ModelIdentity:
    return ModelIdentity(Path("model.safetensors"), family, "single_file", known, told_by=told_by)


TOLD = "scheduler_config.json"


@pytest.mark.parametrize(
    ("family", "known", "told_by", "v2", "v_parameterization", "expected"),
    (
        ("sd1", "epsilon", None, False, None, "epsilon"),
        ("sd1", "epsilon", None, False, False, "epsilon"),
        ("sd1", "epsilon", None, False, True, "v_prediction"),
        ("sd1", "v_prediction", TOLD, False, None, "v_prediction"),
        ("sd1", "v_prediction", TOLD, False, True, "v_prediction"),
        ("sd2", None, None, True, None, "epsilon"),
        ("sd2", None, None, True, True, "v_prediction"),
        ("sd2", None, None, True, False, "epsilon"),
        ("sd2", None, None, False, True, "v_prediction"),
        ("sd2", None, None, False, False, "epsilon"),
        ("sd2", "v_prediction", TOLD, True, None, "v_prediction"),
        ("sd2", "v_prediction", TOLD, False, True, "v_prediction"),
        ("sd2", "epsilon", TOLD, True, None, "epsilon"),
        ("sd2", "epsilon", TOLD, False, False, "epsilon"),
    ),
)
def test_prediction_type_is_resolved(
    family: str, known: str | None, told_by: str | None, v2: bool, v_parameterization: bool | None, expected: str
) -> None:
    assert resolve_prediction_type(identity_of(family, known, told_by), v2, v_parameterization) == expected


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match=r"--v2: the model is Stable Diffusion 1\.x"):
        resolve_prediction_type(identity_of("sd1", "epsilon", None), True, None)
    with pytest.raises(UserError, match=r"scheduler_config\.json says epsilon, but --v_parameterization is given"):
        resolve_prediction_type(identity_of("sd1", "epsilon", TOLD), False, True)
    told_v = identity_of("sd2", "v_prediction", "its metadata (modelspec.prediction_type)")
    with pytest.raises(
        UserError, match=r"prediction_type\) says v_prediction, but --v_parameterization false is given"
    ):
        resolve_prediction_type(told_v, True, False)


def test_what_nothing_tells_is_asked(tmp_path: Path) -> None:
    path = write_names(tmp_path / "a.safetensors", *SD2)
    with pytest.raises(UserError) as caught:
        resolve_prediction_type(identify(path), False, None)
    (problem,) = caught.value.problems
    assert problem.where == str(path)
    assert problem.what.count("?") == 1 and "noise" in problem.what and "768-v" in problem.what
    assert "--v_parameterization false" in problem.fix
