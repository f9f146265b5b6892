"""Pictures made with the models of a run while they train; afterwards everything is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from library.diffusion.schedule import training_schedule
from library.models.stable_diffusion import StableDiffusion
from library.options.text import TextOptions
from library.preview.generate import PromptReader, generate
from library.preview.prompts import SamplePrompt
from library.preview.samplers import NoiseSchedule
from library.training.evaluation import evaluating, lent_to
from library.training.methods import make_caption_encoder, make_tokenizer
from library.training.run import Run


def noise_schedule(prediction_type: str, zero_terminal_snr: bool = False) -> NoiseSchedule:
    """The schedule that a model is trained with."""
    return NoiseSchedule(tuple(training_schedule(zero_terminal_snr).tolist()), prediction_type)


def prompt_text_options(text: TextOptions) -> TextOptions:
    """How sample prompts are read: as the captions of the run, and with weights in any case. Where captions have none,
    the Web UI is followed, which keeps the mean of the text states."""
    padded = replace(text, no_token_padding=False)  # the batch would decide, and a prompt is alone
    if padded.weighted_captions:
        return padded
    return replace(padded, weighted_captions=True, restore_weighted_mean=True)


def make_prompt_reader(run: Run) -> PromptReader:
    """What reads the sample prompts of a run: it knows its new word, where there is one."""
    text = prompt_text_options(run.options.text)

    def reading(tokens: int) -> Run:
        return replace(run, options=replace(run.options, text=replace(text, max_token_length=tokens)))

    return PromptReader(
        lambda tokens: make_tokenizer(reading(tokens)), make_caption_encoder(reading(text.max_token_length))
    )


@dataclass(frozen=True)
class Painter:
    """Makes pictures with models that train.

    Args:
        network: what trains beside the models, or None.
        accelerator: pictures are made in the precision of its training.
    """

    models: StableDiffusion
    network: nn.Module | None
    reader: PromptReader
    schedule: NoiseSchedule
    accelerator: Accelerator

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, pictures can be made: no dropout, VAE (in float32) and text encoder where the U-Net is, which caches
        may have sent away."""
        models, device = self.models, next(self.models.unet.parameters()).device
        parts = (models.unet, models.text_encoder, models.vae, *([] if self.network is None else [self.network]))
        with ExitStack() as stack:
            stack.enter_context(evaluating(*parts))
            stack.enter_context(lent_to(models.text_encoder, device))
            stack.enter_context(lent_to(models.vae, device, torch.float32))
            yield

    def paint(self, prompt: SamplePrompt) -> NDArray[np.uint8]:
        """One picture (H, W, 3), sRGB.

        Raises:
            UserError: what comes out are no finite numbers.
        """
        return generate(self.models, self.reader, self.schedule, prompt, self.accelerator.autocast)
