"""What a model is, told from file headers and configuration files; no weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.core.errors import UserError
from library.models.convert import text_encoder, unet, vae
from library.models.topology import LATENT_CHANNELS, Shape
from library.models.weights import SAFETENSORS_SUFFIX, open_weights

SINGLE_FILE_SUFFIXES = (SAFETENSORS_SUFFIX, ".ckpt")
PREDICTION_TYPES = ("epsilon", "v_prediction")

_SDXL_PREFIX = "conditioner.embedders."
_LORA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_EMBEDDING_NAMES = ("emb_params", "string_to_param", "string_to_token")
_COMPONENTS = ("unet", "vae", "text_encoder")
_GIVE_FULL_MODEL = "give a full Stable Diffusion 1.x or 2.x model: a .safetensors or .ckpt file or a Diffusers folder"


@dataclass(frozen=True)
class ModelIdentity:
    """What is known of a model before it is loaded.

    Attributes:
        family: "sd1" or "sd2".
        layout: "single_file" or "diffusers".
        prediction_type: "epsilon", "v_prediction", or None where the files do not tell (SD2 single files).
    """

    path: Path
    family: str
    layout: str
    prediction_type: str | None


def identify(path: Path) -> ModelIdentity:
    """Tells family, layout and, where possible, prediction type of the model at `path`.

    Raises:
        UserError: nothing there, damaged, not a full model, or a model that is not supported.
    """
    if path.is_dir():
        return _identify_folder(path)
    if not path.exists():
        fix = "check the path; models are read from this machine only, not fetched by their Hub name"
        raise UserError.of("no such file or folder", str(path), fix)
    if path.suffix.lower() not in SINGLE_FILE_SUFFIXES:
        what = f"a model file ends in {' or '.join(SINGLE_FILE_SUFFIXES)}"
        raise UserError.of(what, str(path), _GIVE_FULL_MODEL)
    return _identify_file(path)


def resolve_prediction_type(identity: ModelIdentity, v2: bool, v_parameterization: bool) -> str:
    """What the U-Net predicts, from the model's own files and the options `--v2` and `--v_parameterization`.

    Where neither tells (SD2 single file, no option) it is "epsilon".

    Raises:
        UserError: an option contradicts the files.
    """
    if v2 and identity.family != "sd2":
        fix = f"leave --v2 out, or give a Stable Diffusion 2.x model instead of {identity.path}"
        raise UserError.of("the model is Stable Diffusion 1.x", "--v2", fix)
    # nothing in an SD1 single file says "epsilon": it is the custom, and v-prediction SD1 models do exist
    is_written_down = identity.layout == "diffusers" and identity.prediction_type is not None
    if v_parameterization and is_written_down and identity.prediction_type == "epsilon":
        where = str(identity.path / "scheduler" / "scheduler_config.json")
        fix = "leave --v_parameterization out, or correct prediction_type in that file"
        raise UserError.of("says epsilon, but --v_parameterization is given", where, fix)
    if v_parameterization:
        return "v_prediction"
    return identity.prediction_type or "epsilon"


def _identify_file(path: Path) -> ModelIdentity:
    shapes = open_weights(path).shapes
    family = _family_of_names(path, shapes)
    absent = [prefix for prefix in (unet.PREFIX, vae.PREFIX) if not _has_prefix(shapes, prefix)]
    if absent:
        raise UserError.of(f"holds only part of a model: no {absent[0]}*", str(path), _GIVE_FULL_MODEL)
    _check_input_channels(path, shapes)
    return ModelIdentity(path, family, "single_file", "epsilon" if family == "sd1" else None)


def _family_of_names(path: Path, names: Iterable[str]) -> str:
    names = list(names)
    if _has_prefix(names, _LORA_PREFIXES):
        fix = "give the base model here and the LoRA as --network_weights"
        raise UserError.of("this is a LoRA, not a full model", str(path), fix)
    if _has_prefix(names, _SDXL_PREFIX):
        raise UserError.of("this is an SDXL model: not supported yet", str(path), _GIVE_FULL_MODEL)
    if _has_prefix(names, text_encoder.OPENCLIP_PREFIX):
        return "sd2"
    if _has_prefix(names, text_encoder.CLIP_PREFIX):
        return "sd1"
    if any(name in _EMBEDDING_NAMES for name in names):
        raise UserError.of("this is a Textual Inversion embedding, not a full model", str(path), _GIVE_FULL_MODEL)
    if _has_prefix(names, (unet.PREFIX, vae.PREFIX)):
        raise UserError.of("holds only part of a model: no text encoder", str(path), _GIVE_FULL_MODEL)
    examples = ", ".join(names[:3]) or "none at all"
    raise UserError.of(f"not a Stable Diffusion model; its first tensors: {examples}", str(path), _GIVE_FULL_MODEL)


def _has_prefix(names: Iterable[str], prefixes: str | tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _check_input_channels(path: Path, shapes: Mapping[str, Shape]) -> None:
    shape = shapes.get(f"{unet.PREFIX}input_blocks.0.0.weight")
    if shape is not None and len(shape) == 4:
        _refuse_special_unet(path, shape[1])


def _refuse_special_unet(path: Path, channels: int) -> None:
    if channels != LATENT_CHANNELS:
        what = f"its U-Net takes {channels} channels instead of {LATENT_CHANNELS} (inpainting, depth or editing model)"
        raise UserError.of(what, str(path), "give a text-to-image model")


def _identify_folder(folder: Path) -> ModelIdentity:
    if not (folder / "model_index.json").is_file():
        fix = "give the folder that holds model_index.json, or a model file"
        raise UserError.of("not a Diffusers model: no model_index.json in the folder", str(folder), fix)
    index = _read_json(folder / "model_index.json")
    if "text_encoder_2" in index or "XL" in str(index.get("_class_name")):
        raise UserError.of("this is an SDXL model: not supported yet", str(folder), _GIVE_FULL_MODEL)
    if index.get("unet", [None, None])[1] != "UNet2DConditionModel" or "text_encoder" not in index:
        what = f"a {index.get('_class_name')} is not a Stable Diffusion 1.x or 2.x model"
        raise UserError.of(what, str(folder), _GIVE_FULL_MODEL)
    configs = {name: _read_json(folder / name / "config.json") for name in _COMPONENTS}
    _refuse_special_unet(folder, configs["unet"].get("in_channels", LATENT_CHANNELS))
    # the one thing in the U-Net's layout that the families do not share, whatever the widths
    family = "sd2" if configs["unet"].get("use_linear_projection") else "sd1"
    return ModelIdentity(folder, family, "diffusers", _folder_prediction_type(folder, family))


def _folder_prediction_type(folder: Path, family: str) -> str | None:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return "epsilon" if family == "sd1" else None
    prediction_type = _read_json(path).get("prediction_type", "epsilon")  # Diffusers' own default
    if prediction_type not in PREDICTION_TYPES:
        fix = f"only {' and '.join(PREDICTION_TYPES)} can be trained"
        raise UserError.of(f"unknown prediction_type {prediction_type!r}", str(path), fix)
    return prediction_type


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError.of("the file is missing from the Diffusers model", str(path), "copy the whole folder again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError.of(f"not valid JSON: {error}", str(path), "copy the file again") from error
    if not isinstance(content, dict):
        raise UserError.of("holds no JSON object", str(path), "copy the file again")
    return content
