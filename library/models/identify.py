"""What a model is, told from file headers and configuration files; no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from library.core.errors import UserError
from library.core.json_files import read_json_object
from library.models import recognise as kinds
from library.models.files.weights import PICKLED_SUFFIXES, SAFETENSORS_SUFFIX, WeightsFile, open_weights
from library.models.forms import form_of_path, yaml_beside
from library.models.recognise import Recognised, recognise, special_unet
from library.models.topology import LATENT_CHANNELS, NOISE_SCHEDULE
from library.options.saving import CKPT, DIFFUSERS, DIFFUSERS_SAFETENSORS, SAFETENSORS

# A model ends in one of the first two; the others are opened to say what they hold, and taken if that is a model.
SINGLE_FILE_SUFFIXES = (SAFETENSORS_SUFFIX, ".ckpt")
_READABLE_SUFFIXES = (SAFETENSORS_SUFFIX, *PICKLED_SUFFIXES)
EPSILON, V_PREDICTION = PREDICTION_TYPES = ("epsilon", "v_prediction")

_MODEL_INDEX = "model_index.json"
_COMPONENTS = ("unet", "vae", "text_encoder")
_UNET_CLASS = "UNet2DConditionModel"
_V_MARK = "v_pred"  # a tensor by which v-prediction models are marked since NovelAI's SDXL model and its descendants
_METADATA_TYPES = MappingProxyType(
    {
        "modelspec.prediction_type": {"epsilon": EPSILON, "v": V_PREDICTION, "v_prediction": V_PREDICTION},
        "ss_base_model_version": {"sd_v2_512": EPSILON, "sd_v2_768_v": V_PREDICTION},
        "ss_v_parameterization": {"False": EPSILON, "True": V_PREDICTION},
    }
)
_YAML_TYPES = MappingProxyType({None: EPSILON, "eps": EPSILON, "v": V_PREDICTION})  # None: ldm's own default

_GIVE_FULL_MODEL = "give a full Stable Diffusion 1.x or 2.x model: a .safetensors or .ckpt file or a Diffusers folder"
_GIVE_BASE_MODEL = "give the base model that it was made for"
_GIVE_TEXT_TO_IMAGE = "give a text-to-image model"
_GIVE_WHOLE_FOLDER = "give the whole Diffusers model: the folder that holds model_index.json"
_COPY_FOLDER = "copy the whole folder again"
# What is wrong with each kind that is no model for training, with the words of `Recognised.detail`, and the mend.
_REFUSALS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        kinds.INPAINTING: ("this is {detail}", _GIVE_TEXT_TO_IMAGE),
        kinds.SPECIAL: ("this is {detail}", _GIVE_TEXT_TO_IMAGE),
        kinds.SDXL: ("this is an SDXL model: not supported yet", _GIVE_FULL_MODEL),
        kinds.SD3_OR_FLUX: ("this is {detail}: not supported", _GIVE_FULL_MODEL),
        kinds.LORA: (
            "this is {detail}, not a full model",
            "give the base model here and the LoRA as --network_weights",
        ),
        kinds.EMBEDDING: ("this is {detail}, not a full model", _GIVE_BASE_MODEL),
        kinds.HYPERNETWORK: ("this is {detail}, not a full model", _GIVE_BASE_MODEL),
        kinds.VAE: ("this is {detail}, not a full model", "give a full model here and the VAE as --vae"),
        kinds.UNET: ("this is {detail}, not a full model", _GIVE_WHOLE_FOLDER),
        kinds.TEXT_ENCODER: ("this is {detail}, not a full model", _GIVE_WHOLE_FOLDER),
        kinds.CONTROLNET: ("this is {detail}, not a model to train", _GIVE_BASE_MODEL),
        kinds.PARTIAL: ("holds only part of a model: {detail}", _GIVE_FULL_MODEL),
        kinds.OPTIMIZER_STATE: ("this is {detail}, not a model", _GIVE_FULL_MODEL),
        kinds.UNKNOWN: ("not a Stable Diffusion model: {detail}", _GIVE_FULL_MODEL),
    }
)


@dataclass(frozen=True)
class ModelIdentity:
    """What is known of a model before it is loaded.

    Attributes:
        family: "sd1" or "sd2".
        layout: "single_file" or "diffusers".
        prediction_type: "epsilon", "v_prediction", or None where the files do not tell and there is no custom (SD2).
        form: one of `SAVE_FORMATS`; by default the one that the path's extension says.
        told_by: what told the prediction type, in words; None where it is mere custom (SD1), or not known.
        name: for people and metadata; by default the name of the file or folder.
        notes: what a person should know about the file, in sentences.
    """

    path: Path
    family: str
    layout: str
    prediction_type: str | None
    form: str = ""
    told_by: str | None = None
    name: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, value in (("form", form_of_path(self.path)), ("name", self.path.absolute().name)):
            if not getattr(self, field):
                object.__setattr__(self, field, value)


@dataclass(frozen=True)
class _Prediction:
    kind: str | None
    told_by: str | None


def identify(path: Path) -> ModelIdentity:
    """Tells family, layout, form and, where possible, prediction type of the model at `path`.

    Raises:
        UserError: nothing there, damaged, not a full model, or a model that is not supported.
    """
    if path.is_dir():
        return _identify_folder(path)
    if not path.exists():
        fix = "check the path, and that its drive is there"
        raise UserError.of("no such file or folder", str(path), fix)
    if path.suffix.lower() not in _READABLE_SUFFIXES:
        what = f"a model file ends in {' or '.join(SINGLE_FILE_SUFFIXES)}"
        raise UserError.of(what, str(path), _GIVE_FULL_MODEL)
    return _identify_file(path)


def resolve_prediction_type(identity: ModelIdentity, v2: bool, v_parameterization: bool | None) -> str:
    """What the U-Net predicts, from the model's own files and the options `--v2` and `--v_parameterization`.

    Args:
        v2: the user says that the model is SD2. Alone, where the files do not tell, it means "epsilon", for so the
            guides of the field write the 2.x base models; 768-v models they write with both options.
        v_parameterization: the user's word, or None for none.

    Raises:
        UserError: an option contradicts the files, or neither tells.
    """
    if v2 and identity.family != "sd2":
        fix = f"leave --v2 out, or give a Stable Diffusion 2.x model instead of {identity.path}"
        raise UserError.of("the model is Stable Diffusion 1.x", "--v2", fix)
    known = identity.prediction_type
    if v_parameterization is None:
        if known is None and not v2:
            raise _undecided(identity)
        return known or EPSILON
    asked = V_PREDICTION if v_parameterization else EPSILON
    # where nothing is written down the user knows better: there are SD1 models that predict v
    if identity.told_by is not None and known != asked:
        option = "--v_parameterization" if v_parameterization else "--v_parameterization false"
        what = f"{identity.told_by} says {known}, but {option} is given"
        raise UserError.of(what, str(identity.path), "leave the option out, or correct what the model says of itself")
    return asked


def _undecided(identity: ModelIdentity) -> UserError:
    what = "does it predict noise (2.x base, 512 pixels) or v (768-v)? The file does not tell"
    fix = "give --v_parameterization for a 768-v model, --v_parameterization false for a base model"
    return UserError.of(what, str(identity.path), fix)


# --- single files -----------------------------------------------------------------------------------------------------


def _identify_file(path: Path) -> ModelIdentity:
    file = open_weights(path)
    found = recognise(file.shapes)
    if found.kind != kinds.MODEL or found.family is None:
        raise _refusal(found, path)
    prediction = _file_prediction(file, found.family)
    form = SAFETENSORS if path.suffix.lower() == SAFETENSORS_SUFFIX else CKPT
    return ModelIdentity(path, found.family, "single_file", prediction.kind, form, prediction.told_by, notes=file.notes)


def _refusal(found: Recognised, path: Path) -> UserError:
    what, fix = _REFUSALS[found.kind]
    return UserError.of(what.format(detail=found.detail), str(path), fix)


def _file_prediction(file: WeightsFile, family: str) -> _Prediction:
    if _V_MARK in file.shapes:
        return _Prediction(V_PREDICTION, f"its tensor {_V_MARK}")
    for key, types in _METADATA_TYPES.items():
        if file.metadata.get(key) in types:
            return _Prediction(types[file.metadata[key]], f"its metadata ({key})")
    beside = yaml_beside(file.path)
    said = _yaml_prediction(beside) if beside.is_file() else None
    if said is not None:
        return _Prediction(said, f"{beside.name} beside it")
    return _Prediction(EPSILON if family == "sd1" else None, None)


def _yaml_prediction(path: Path) -> str | None:
    """What the configuration beside a model says, in the format of `inference_yaml`; None for any other yaml."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        what = f"the configuration beside the model cannot be read: {_first_line(error)}"
        raise UserError.of(what, str(path), "correct the file, or move it away") from error
    model = content.get("model") if isinstance(content, dict) else None
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict):
        return None
    said = params.get("parameterization")
    if said is not None and (not isinstance(said, str) or said not in _YAML_TYPES):
        fix = "only eps and v can be trained; correct the file, or move it away"
        raise UserError.of(f"unknown parameterization {said!r}", str(path), fix)
    return _YAML_TYPES[said]


def _first_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1})" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or str(error).splitlines()[0]}{place}"


# --- folders ----------------------------------------------------------------------------------------------------------


def _identify_folder(folder: Path) -> ModelIdentity:
    if not (folder / _MODEL_INDEX).is_file():
        raise _no_model_index(folder)
    index = _read_json(folder / _MODEL_INDEX)
    own_class = str(index.get("_class_name"))
    if "text_encoder_2" in index or "XL" in own_class:
        raise _refusal(Recognised(kinds.SDXL, "sdxl", own_class), folder)
    if _class_of(index, "unet") != _UNET_CLASS or _class_of(index, "text_encoder") != "CLIPTextModel":
        what = f"a {own_class} is not a Stable Diffusion 1.x or 2.x model"
        raise UserError.of(what, str(folder), _GIVE_FULL_MODEL)
    configs = {name: _read_json(folder / name / "config.json") for name in _COMPONENTS}
    _refuse_special_unet(folder, configs["unet"])
    # the one thing in the U-Net's layout that the families do not share, whatever the widths
    family = "sd2" if configs["unet"].get("use_linear_projection") else "sd1"
    prediction = _folder_prediction(folder, family)
    notes = _noise_schedule_notes(folder)
    form = _folder_form(folder)
    return ModelIdentity(folder, family, "diffusers", prediction.kind, form, prediction.told_by, notes=notes)


def _no_model_index(folder: Path) -> UserError:
    """What a folder is that is no Diffusers model."""
    if folder.suffix.lower() in _READABLE_SUFFIXES:
        fix = "look inside for the file itself, or rename the folder"
        return UserError.of("this is a folder, though its name is that of a model file", str(folder), fix)
    if (folder / "config.json").is_file():
        return _network_folder(folder, _read_json(folder / "config.json"))
    if (folder / "unet").is_dir():
        return UserError.of(
            "an incomplete Diffusers model: no model_index.json in the folder", str(folder), _COPY_FOLDER
        )
    if any(folder.glob("random_states_*.pkl")):
        what = "this is the saved state of a training run, not a model"
        return UserError.of(what, str(folder), "give the model that the run started from")
    files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SINGLE_FILE_SUFFIXES)
    if files:
        what = f"the folder is no Diffusers model, but holds {len(files)} model file{'s' if len(files) > 1 else ''}"
        return UserError.of(what, str(folder), f"give one file, such as {folder / files[0]}")
    fix = "give the folder that holds model_index.json, or a model file"
    return UserError.of("not a Diffusers model: no model_index.json in the folder", str(folder), fix)


def _network_folder(folder: Path, config: Mapping[str, Any]) -> UserError:
    """For a folder with the configuration of one network at its root."""
    architectures = config.get("architectures")
    own = config.get("_class_name") or (architectures[0] if isinstance(architectures, list) and architectures else None)
    parts = {
        "AutoencoderKL": (kinds.VAE, "a folder with a VAE alone"),
        _UNET_CLASS: (kinds.UNET, "a folder with a U-Net alone"),
        "CLIPTextModel": (kinds.TEXT_ENCODER, "a folder with a text encoder alone"),
        "ControlNetModel": (kinds.CONTROLNET, "a folder with a ControlNet"),
    }
    kind, detail = parts.get(
        str(own), (kinds.UNKNOWN, f"config.json in the folder describes {own or 'something else'}")
    )
    return _refusal(Recognised(kind, None, detail), folder)


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class that model_index.json names for a part, as [library, class]."""
    entry = index.get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _refuse_special_unet(folder: Path, config: Mapping[str, Any]) -> None:
    channels = config.get("in_channels", LATENT_CHANNELS)
    if channels != LATENT_CHANNELS:
        raise _refusal(special_unet(channels, None), folder)
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        detail = "a model whose U-Net wants more than text, such as one that makes variations of a picture"
        raise _refusal(Recognised(kinds.SPECIAL, None, detail), folder)


def _folder_prediction(folder: Path, family: str) -> _Prediction:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return _Prediction(EPSILON if family == "sd1" else None, None)
    prediction_type = _read_json(path).get("prediction_type", EPSILON)  # Diffusers' own default
    if prediction_type not in PREDICTION_TYPES:
        fix = f"only {' and '.join(PREDICTION_TYPES)} can be trained"
        raise UserError.of(f"unknown prediction_type {prediction_type!r}", str(path), fix)
    return _Prediction(prediction_type, path.name)


def _noise_schedule_notes(folder: Path) -> tuple[str, ...]:
    """What to know of the model's noise schedule.

    Raises:
        UserError: it is another than that of SD1 and SD2, on which training would teach the model wrong things.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    said = _read_json(path) if path.is_file() else {}
    other = [f"{key} is {said[key]!r}" for key, value in NOISE_SCHEDULE.items() if said.get(key, value) != value]
    if other:
        what = f"the model has a noise schedule of its own: {', '.join(other)}"
        raise UserError.of(what, str(path), "only models with the schedule of Stable Diffusion can be trained")
    if said.get("rescale_betas_zero_snr"):
        return (f"{path.name} asks for zero terminal SNR, which is not trained yet; the setting itself is kept",)
    return ()


def _folder_form(folder: Path) -> str:
    suffixes = {path.suffix for path in (folder / "unet").iterdir()}
    return DIFFUSERS if ".bin" in suffixes and SAFETENSORS_SUFFIX not in suffixes else DIFFUSERS_SAFETENSORS


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError.of("the file is missing from the Diffusers model", str(path), _COPY_FOLDER)
    return read_json_object(path)
