"""Makes the class images that a run is missing: loads the base model once, writes the pictures, lets go of it."""

from __future__ import annotations

import gc
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from library.core.atomic_io import remove_left_overs
from library.core.device import dtype_of
from library.core.errors import UserError, printable
from library.core.log import get_logger, start_logging
from library.models.files.mapped import give_own_memory
from library.models.stable_diffusion import StableDiffusion
from library.options.reg_images import FLAG, RegImageOptions
from library.preview.generate import PromptReader, generate
from library.preview.png_files import write_png
from library.preview.prompts import SamplePrompt
from library.preview.samplers import NoiseSchedule
from library.training.methods import fetch_base_model, load_models
from library.training.out_of_memory import is_out_of_memory
from library.training.painting import noise_schedule
from library.training.reg_images import ClassImage, needs_reg_images
from library.training.run import BaseModel, Run
from library.training.runtime import start_runtime

log = get_logger(__name__)

_BYTES_PER_PIXEL = 3  # a PNG takes half of it as a rule


def make_reg_images(run: Run) -> None:
    """Makes every class image that is missing. Several processes share the work, and all wait for the last.

    A run that is stopped meanwhile leaves whole pictures only, and the next one goes on.

    Raises:
        UserError: no room for them, the model cannot be had, or a picture cannot be made or written.
    """
    missing, options = needs_reg_images(run), run.options.reg_images
    _check_room(missing)
    precision = run.options.training.mixed_precision
    accelerator = start_runtime(precision)
    start_logging(accelerator.is_main_process)
    for line in _report(missing, options):
        log.info(line)
    if accelerator.is_main_process:
        for folder in _folders(missing):
            remove_left_overs(folder, ".png")
    with accelerator.main_process_first():  # all of them know by now what is missing; nobody looks any more
        base = fetch_base_model(run.base)
    log.info("loading %s", base.identity.name)
    maker = _Maker(
        load_for_inference(base, accelerator.device, dtype_of(precision)),
        PromptReader.of(base.identity.family, run.options.text),
        noise_schedule(base.prediction_type),
        options,
    )
    try:
        seconds = _make_share(maker, missing, accelerator)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"memory ran out while class images were made: {error}".splitlines()[0]
        fix = "what is made is kept; give --mixed_precision bf16 or fp16, or a lower --resolution"
        raise UserError.of(what, "--generate_reg_images", fix) from error
    accelerator.wait_for_everyone()
    del maker
    _free_memory(accelerator.device)
    log.info("class images: %d made, %.1f s each%s", len(missing), seconds, _shared(accelerator))


def load_for_inference(base: BaseModel, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """The base model ready to make pictures: U-Net and text encoder in `dtype`, the VAE in float32."""
    models = load_models(base)
    nn.Module.to(models.unet, device, dtype)
    nn.Module.to(models.text_encoder, device, dtype)
    nn.Module.to(models.vae, device, torch.float32)
    for part in (models.unet, models.text_encoder, models.vae):
        give_own_memory(part)
    return models


@dataclass(frozen=True)
class _Maker:
    """Makes class images and writes them."""

    models: StableDiffusion
    reader: PromptReader
    schedule: NoiseSchedule
    options: RegImageOptions

    def __call__(self, image: ClassImage) -> None:
        options = self.options
        request = SamplePrompt(
            prompt=image.prompt,
            size=image.size,
            seed=image.seed,
            negative_prompt=options.reg_image_negative_prompt,
            steps=options.reg_image_steps,
            scale=options.reg_image_scale,
        )
        pixels = generate(self.models, self.reader, self.schedule, request)
        try:
            write_png(image.path, pixels, texts_of(request))
        except OSError as error:
            what = f"{image.path} cannot be written: {error.strerror or error}"
            raise UserError.of(what, FLAG, "make room or mend the rights; the next start goes on from here") from None


def texts_of(request: SamplePrompt) -> dict[str, str]:
    """What a generated picture says of itself."""
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": str(request.seed),
        "steps": str(request.steps),
        "scale": f"{request.scale:g}",
        "sampler": request.sampler,
        "size": str(request.size),
        "software": "sd-atelier",
    }


def _make_share(maker: _Maker, missing: Sequence[ClassImage], accelerator: Accelerator) -> float:
    """Makes the pictures of this process; how many seconds one took."""
    own = missing[accelerator.process_index :: accelerator.num_processes]
    start = time.monotonic()
    for image in tqdm(own, desc="class images", unit="picture", disable=not accelerator.is_main_process):
        maker(image)
    return (time.monotonic() - start) / max(1, len(own))


def _report(missing: Sequence[ClassImage], options: RegImageOptions) -> list[str]:
    """How many pictures will be made, of what, where and in which shapes."""
    lines = []
    for folder in _folders(missing):
        own = [image for image in missing if image.path.parent == folder]
        shapes = ", ".join(f"{size}: {number}" for size, number in sorted(Counter(i.size for i in own).items()))
        lines.append(f'class images: {len(own)} of "{own[0].prompt}" will be made in {folder} ({shapes})')
    avoided = f', not "{options.reg_image_negative_prompt}"' if options.reg_image_negative_prompt else ""
    lines.append(f"class images: {options.reg_image_steps} steps, guidance {options.reg_image_scale:g}{avoided}")
    return [printable(line) for line in lines]


def _folders(missing: Sequence[ClassImage]) -> list[Path]:
    return list(dict.fromkeys(image.path.parent for image in missing))


def _check_room(missing: Sequence[ClassImage]) -> None:
    for folder in _folders(missing):
        needed = sum(_BYTES_PER_PIXEL * image.size.area for image in missing if image.path.parent == folder)
        free = shutil.disk_usage(folder).free
        if free < needed:
            what = f"only {free >> 20} MiB are free on its disk, and the class images may take {needed >> 20} MiB"
            raise UserError.of(what, str(folder), f"free some, or ask for fewer with {FLAG}")


def _shared(accelerator: Accelerator) -> str:
    return f" in each of {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""


def _free_memory(device: torch.device) -> None:
    """Gives the card back what the models held, before training loads its own."""
    gc.collect()  # modules may be held in circles
    if device.type == "cuda":
        torch.cuda.empty_cache()
