"""Saving a model: as a single file, or as a Diffusers folder. What appears under the final name is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from library.core.atomic_io import write_text_whole, write_whole
from library.core.pickle_writer import write_pickled
from library.core.tensor_files import LEGACY_HASH_KEY, MODEL_HASH_KEY, Writable, made, write_safetensors
from library.core.whole_folder import write_whole_folder
from library.models.convert import text_encoder, unet, vae
from library.models.extras import EXTRAS_FILE, ModelExtras, is_used
from library.models.files.weights import SAFETENSORS_SUFFIX
from library.models.forms import MODEL_INDEX, SaveTarget, is_single_file, refuse_other_folder, yaml_beside
from library.models.inference_yaml import inference_yaml
from library.models.precision import Precisions, in_precision
from library.models.stable_diffusion import StableDiffusion
from library.models.topology import NOISE_SCHEDULE
from library.options.saving import DIFFUSERS, DIFFUSERS_SAFETENSORS

_FOLDER_METADATA = {"format": "pt"}  # Transformers refuses weights that do not say so
_NETWORK_FILE = {
    DIFFUSERS: "diffusion_pytorch_model.bin",
    DIFFUSERS_SAFETENSORS: "diffusion_pytorch_model.safetensors",
}
_TEXT_ENCODER_FILE = {DIFFUSERS: "pytorch_model.bin", DIFFUSERS_SAFETENSORS: "model.safetensors"}
# How far the training of a checkpoint went, as the original training code notes it; our metadata has it as text.
_PROGRESS = (("epoch", "ss_epoch"), ("global_step", "ss_steps"))
_OWN_NAMES = (MODEL_INDEX, "unet", "vae", "text_encoder", "tokenizer", "scheduler", EXTRAS_FILE)
_AS_IT_IS = Precisions()
_NO_EXTRAS = ModelExtras()
_NO_METADATA: Mapping[str, str] = {}


def save_model(
    model: StableDiffusion,
    target: SaveTarget,
    precisions: Precisions,
    extras: ModelExtras,
    metadata: Mapping[str, str],
    tokenizer_files: Mapping[str, str],
) -> None:
    """Writes the whole model in the form asked for, replacing an older one of that name once the new one is complete.

    Weights are converted while they are written, one at a time. A single file whose tensors do not tell what it is
    (SD2, or any v-prediction model) gets the yaml of the same stem that the Web UI looks for; a yaml that stands there
    already, also one we did not write, describes the model that is replaced and is replaced at the same moment.

    Args:
        target: the place and the form.
        precisions: number formats to write in.
        extras: what the source's files held beside the networks; written back, into folders as `EXTRAS_FILE`.
        metadata: text by key, of the new model; that of `extras` is the source's and is not written by itself.
        tokenizer_files: content of each file of a folder's `tokenizer`, by name.

    Raises:
        UserError: a number does not fit the format asked for, or a folder of that name holds something else. Nothing
            is left behind, and what stood there before is as it was.
    """
    if is_single_file(target.form):
        write = partial(save_single_file, model, metadata=metadata, precisions=precisions, extras=extras)
        _write_with_yaml(model, target.path, write)
    else:
        save_diffusers(model, target.path, tokenizer_files, precisions, extras, metadata, target.form)


def save_single_file(
    model: StableDiffusion,
    path: Path,
    metadata: Mapping[str, str],
    precisions: Precisions = _AS_IT_IS,
    extras: ModelExtras = _NO_EXTRAS,
) -> None:
    """Writes the model as one file in the layout that the Web UI and Diffusers read, and nothing beside it.

    Args:
        model: its tensors win over extras of the same name, and those over tensors that only the format demands.
        path: `.safetensors` or `.ckpt`; an existing file is replaced once the new one is complete.
        metadata: text by key, for the header of a `.safetensors` file; a `.ckpt` keeps it beside its state dict.
        precisions, extras: as in `save_model`.

    Raises:
        UserError: a number does not fit the format asked for.
    """
    tensors = {
        name: in_precision(name, tensor, precisions.of(name), path)
        for name, tensor in _with_extras(_single_file(model), extras).items()
    }
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        write_safetensors(path, tensors, metadata)
    else:
        write_pickled(path, tensors, _beside_state_dict(metadata))


def single_file_tensors(model: StableDiffusion) -> dict[str, Tensor]:
    """All tensors of the model under their single-file names and in their single-file form."""
    return {name: made(tensor) for name, tensor in _single_file(model).items()}


def _single_file(model: StableDiffusion) -> dict[str, Writable]:
    return {
        **unet.to_single_file(model.unet.state_dict()),
        **vae.to_single_file(model.vae.state_dict()),
        **text_encoder.to_single_file(model.text_encoder.state_dict(), model.family),
    }


def save_diffusers(
    model: StableDiffusion,
    folder: Path,
    tokenizer_files: Mapping[str, str],
    precisions: Precisions = _AS_IT_IS,
    extras: ModelExtras = _NO_EXTRAS,
    metadata: Mapping[str, str] = _NO_METADATA,
    form: str = DIFFUSERS_SAFETENSORS,
) -> None:
    """Writes the model as a Diffusers folder, replacing an older model of that name.

    Args:
        folder: created; if it exists it must be empty or itself a Diffusers model.
        tokenizer_files: content of each file of the `tokenizer` folder, by name.
        precisions, extras, metadata: as in `save_model`.
        form: "diffusers_safetensors", or "diffusers" for `.bin` weights.

    Raises:
        UserError: `folder` holds something else, which is left alone, or a number does not fit its format.
    """
    refuse_other_folder(folder)

    def write(temporary: Path) -> None:
        parts = (("unet", model.unet, precisions.weights), ("vae", model.vae, precisions.vae))
        for name, network, dtype in parts:
            _write_config(temporary / name, _network_config(network))
            tensors = _converted(network.state_dict(), dtype, folder / name)
            _write_weights(temporary / name / _NETWORK_FILE[form], tensors)
        # without the prefix older Transformers versions find no weights and fill the encoder with random ones
        prefixed = text_encoder.to_folder(model.text_encoder.state_dict())
        tensors = _converted(prefixed, precisions.weights, folder / "text_encoder")
        _write_config(temporary / "text_encoder", _text_config(model, tensors))
        _write_weights(temporary / "text_encoder" / _TEXT_ENCODER_FILE[form], tensors)
        scheduler = _scheduler(model.prediction_type, extras.scheduler)
        (temporary / "scheduler").mkdir()
        _write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        (temporary / "tokenizer").mkdir()
        for name, text in tokenizer_files.items():
            (temporary / "tokenizer" / name).write_text(text, encoding="utf-8", newline="\n")
        _write_json(temporary / MODEL_INDEX, _model_index(scheduler["_class_name"]))
        if extras.tensors or metadata:
            kept = {name: in_precision(name, t, precisions.of(name), folder) for name, t in extras.tensors.items()}
            write_safetensors(temporary / EXTRAS_FILE, kept, metadata)

    write_whole_folder(folder, write, _OWN_NAMES)


# --- single files -----------------------------------------------------------------------------------------------------


def _write_with_yaml(model: StableDiffusion, path: Path, write: Callable[[Path], None]) -> None:
    """The model by `write`, and its yaml, where it needs one, in the moment before the model gets its name."""
    beside = yaml_beside(path)
    before = beside.read_bytes() if beside.is_file() else None
    if model.family == "sd1" and model.prediction_type == "epsilon" and before is None:
        write(path)
        return
    try:
        write_whole(path, write, lambda _: write_text_whole(beside, inference_yaml(model)))
    except BaseException:
        if before is None:
            beside.unlink(missing_ok=True)
        else:
            beside.write_bytes(before)
        raise


def _with_extras(own: Mapping[str, Writable], extras: ModelExtras) -> dict[str, Writable]:
    """The model's tensors and the extras, which win over tensors that only the format demands."""
    return {
        **own,
        **{
            name: t
            for name, t in extras.tensors.items()
            if name not in own or not is_used(name, tuple(own[name].shape))
        },
    }


def _beside_state_dict(metadata: Mapping[str, str]) -> dict[str, object]:
    # the hashes describe a .safetensors file; here nothing would fill them in
    kept = {key: text for key, text in metadata.items() if key not in (MODEL_HASH_KEY, LEGACY_HASH_KEY)}
    progress = {key: int(kept[ours]) for key, ours in _PROGRESS if kept.get(ours, "").isdecimal()}
    return {**progress, "metadata": kept} if kept else {}


# --- Diffusers folders ------------------------------------------------------------------------------------------------


def _converted(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, where: Path) -> dict[str, Writable]:
    return {name: in_precision(name, tensor, dtype, where) for name, tensor in tensors.items()}


def _write_weights(path: Path, tensors: Mapping[str, Writable]) -> None:
    if path.suffix == SAFETENSORS_SUFFIX:
        write_safetensors(path, tensors, _FOLDER_METADATA)
    else:
        write_pickled(path, tensors, None)


def _network_config(network: Any) -> dict[str, Any]:
    """What Diffusers itself writes, less the path that a model was once loaded from."""
    config = json.loads(network.to_json_string())
    config.pop("_name_or_path", None)
    return config


def _text_config(model: StableDiffusion, tensors: Mapping[str, Writable]) -> dict[str, Any]:
    """What Transformers itself writes, with the number format of the file under its present and its former key.

    Transformers loads in the format that stands there, whatever the file holds, so a note about another file must go.
    """
    config = json.loads(model.text_encoder.config.to_json_string())
    formats = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
        if len(formats) == 1:
            config[key] = next(iter(formats))
    return config


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir()
    _write_json(folder / "config.json", dict(sorted(config.items())))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def _scheduler(prediction_type: str, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration of the sampler: the source's own, else that of the published models, with the noise schedule
    that SD1 and SD2 were trained with."""
    if source is not None:
        return {"_class_name": DDIMScheduler.__name__, **source, "prediction_type": prediction_type}
    scheduler = DDIMScheduler(
        **NOISE_SCHEDULE,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return json.loads(scheduler.to_json_string())


def _model_index(scheduler: str) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
