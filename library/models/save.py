"""Saving a model: as a single file, or as a Diffusers folder. What appears under the final name is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from library.core.atomic_io import TEMPORARY_MARK, write_whole
from library.core.errors import UserError
from library.core.tensor_files import write_safetensors
from library.models.convert import text_encoder, unet, vae
from library.models.stable_diffusion import StableDiffusion
from library.models.weights import SAFETENSORS_SUFFIX, open_weights

_MODEL_INDEX = "model_index.json"
_FOLDER_METADATA = {"format": "pt"}  # Transformers refuses weights that do not say so


def save_single_file(model: StableDiffusion, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes the model as one file in the layout that the Web UI and Diffusers read.

    Args:
        model: weights are written in the number format they have.
        path: `.safetensors` or `.ckpt`; an existing file is replaced once the new one is complete.
        metadata: text by key, for the header of a `.safetensors` file; a `.ckpt` keeps it beside its state dict.
    """
    tensors = single_file_tensors(model)
    if path.suffix.lower() == SAFETENSORS_SUFFIX:
        write_safetensors(path, tensors, metadata)
    else:
        _write_pickled(path, tensors, metadata)


def single_file_tensors(model: StableDiffusion) -> dict[str, Tensor]:
    """All tensors of the model under their single-file names and in their single-file form."""
    return {
        **unet.to_single_file(model.unet.state_dict()),
        **vae.to_single_file(model.vae.state_dict()),
        **text_encoder.to_single_file(model.text_encoder.state_dict(), model.family),
    }


def save_diffusers(model: StableDiffusion, folder: Path, tokenizer_files: Mapping[str, str]) -> None:
    """Writes the model as a Diffusers folder, replacing an older model of that name.

    Args:
        model: weights are written in the number format they have.
        folder: created; if it exists it must be empty or itself a Diffusers model.
        tokenizer_files: content of each file of the `tokenizer` folder, by name.

    Raises:
        UserError: `folder` holds something else, which is left alone.
    """

    def write(temporary: Path) -> None:
        for network, name in ((model.unet, "unet"), (model.vae, "vae")):
            network.save_config(temporary / name)
            weights = temporary / name / "diffusion_pytorch_model.safetensors"
            write_safetensors(weights, network.state_dict(), _FOLDER_METADATA)
        model.text_encoder.config.save_pretrained(temporary / "text_encoder")
        # without the prefix older Transformers versions find no weights and fill the encoder with random ones
        prefixed = text_encoder.to_folder(model.text_encoder.state_dict())
        write_safetensors(temporary / "text_encoder" / "model.safetensors", prefixed, _FOLDER_METADATA)
        _scheduler(model.prediction_type).save_config(temporary / "scheduler")
        (temporary / "tokenizer").mkdir()
        for name, text in tokenizer_files.items():
            (temporary / "tokenizer" / name).write_text(text, encoding="utf-8", newline="\n")
        (temporary / _MODEL_INDEX).write_text(_model_index(), encoding="utf-8", newline="\n")

    _write_whole_folder(folder, write)


def _write_pickled(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    content: dict[str, object] = {"state_dict": {name: tensor.contiguous() for name, tensor in tensors.items()}}
    if metadata:
        content["metadata"] = dict(metadata)

    def write(temporary: Path) -> None:
        # through a handle: given a path, torch writes the (temporary) file name into the file
        with temporary.open("wb") as file:
            torch.save(content, file)

    def check(temporary: Path) -> None:
        if open_weights(temporary).shapes.keys() != tensors.keys():
            raise OSError(f"{path.name} was not written as asked; the disk may be full or failing")

    write_whole(path, write, check)


def _scheduler(prediction_type: str) -> DDIMScheduler:
    """The noise schedule that SD1 and SD2 were trained with, and the sampler settings of the published models."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def _model_index() -> str:
    index: dict[str, object] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    return json.dumps(index, indent=2) + "\n"


def _write_whole_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes beside the final place, then swaps; a killed run leaves the old folder or the new one."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / _MODEL_INDEX).is_file()):
        raise UserError.of("exists and is not a Diffusers model", str(folder), "choose another name, or move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{TEMPORARY_MARK}{os.getpid()}"
    temporary, old = folder.with_name(folder.name + mark), folder.with_name(f"{folder.name}.old{mark}")
    try:
        temporary.mkdir()
        write(temporary)
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        swap_folder(temporary, folder, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def swap_folder(new: Path, folder: Path, old: Path) -> None:
    """Puts `new` in the place of `folder`; when that fails, `folder` is as it was."""
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
