"""The loss on pictures that the training never sees: a number of its own, always measured in the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from library.data.dataset import make_loader
from library.data.validation import (
    ValidationBatch,
    ValidationDataset,
    ValidationDraws,
    ValidationRequest,
    validation_requests,
)
from library.diffusion.noise import Noise
from library.diffusion.objective import Captions, Objective
from library.options.objective import ObjectiveOptions
from library.options.validation import ValidationOptions, seed_of_validation
from library.training.caching import worker_count
from library.training.evaluation import evaluating
from library.training.progress import Moment, Moments
from library.training.run import Run

EncodeLatents = Callable[[Tensor, Tensor, Sequence[str]], Tensor]


def plain_objective(options: ObjectiveOptions) -> ObjectiveOptions:
    """The objective of validation: squared errors without any weights, so that runs with other weights, losses and
    noise can be compared. What the model's task is stays: the schedule and the diffusion times.
    """
    return ObjectiveOptions(
        zero_terminal_snr=options.zero_terminal_snr,
        min_timestep=options.min_timestep,
        max_timestep=options.max_timestep,
    )


def validation_draws(run: Run) -> ValidationDraws:
    """What the noise and the diffusion times of a run's validation depend on."""
    options = run.options
    return ValidationDraws(
        seed=seed_of_validation(options.data, options.training.seed),
        min_timestep=options.objective.min_timestep,
        max_timestep=options.objective.max_timestep,
    )


def make_validation(
    run: Run,
    objective: Objective,
    dataset: ValidationDataset,
    encode_latents: EncodeLatents,
    accelerator: Accelerator,
) -> Validation | None:
    """The validation of a run; None where no picture is held out.

    Args:
        run: options and pictures.
        objective: one that nothing else uses, over the very modules that train, made with `plain_objective`.
        dataset: builds the batches.
        encode_latents: (pixels, noise of the draw, names) to unscaled latents, where the dataset has none.
        accelerator: devices, precision and processes.
    """
    if not run.index.is_validation.any():
        return None
    options = run.options.validation
    requests = validation_requests(run.index, run.placements, options.max_validation_steps)
    own = requests[accelerator.process_index :: accelerator.num_processes]
    workers = 0 if dataset.is_cached else worker_count(run)
    return Validation(
        accelerator=accelerator,
        objective=objective,
        requests=requests,
        batches=make_loader(dataset, own, workers, pin_memory=False),
        encode_latents=encode_latents,
        moments=validation_moments(options),
    )


def validation_moments(options: ValidationOptions) -> Moments:
    """As the options say; without a word of theirs, after every epoch. After the last update in any case."""
    says_nothing = options.validate_every_n_steps is None and options.validate_every_n_epochs is None
    every_epochs = 1 if says_nothing else options.validate_every_n_epochs
    return Moments(options.validate_every_n_steps, every_epochs, at_end=True)


@dataclass
class Validation:
    """Measures the mean squared error on the held-out pictures.

    Nothing is drawn from global state and every module gets back its mode, so a training with validation is, bit by
    bit, the training without.

    Args:
        accelerator: devices, precision and processes.
        objective: over the modules that train, without weights; not prepared by the accelerator.
        requests: all batches, of all processes.
        batches: those of this process.
        encode_latents: (pixels, noise of the draw, names) to unscaled latents, for batches without cached latents.
        moments: when it happens.
    """

    accelerator: Accelerator
    objective: Objective
    requests: Sequence[ValidationRequest]
    batches: Iterable[ValidationBatch]
    encode_latents: EncodeLatents
    moments: Moments

    def due(self, moment: Moment) -> bool:
        """See `Moments.due`."""
        return self.moments.due(moment)

    @torch.no_grad()
    def measure(self) -> float:
        """The mean over pictures and their diffusion times; every process has to call it, and gets the same number.

        Each batch is measured by one process and all losses are added in the order of the batches, so that the number
        of processes changes nothing.

        Raises:
            UserError: when a picture cannot be read any more; it is named.
        """
        device = self.accelerator.device
        losses = torch.zeros(len(self.requests), device=device)
        _move_buffers(self.objective, device)
        own = -(-len(self.requests) // self.accelerator.num_processes)
        is_silent = not self.accelerator.is_main_process
        shown = tqdm(self.batches, desc="validation", total=own, unit="batch", leave=False, disable=is_silent)
        with evaluating(self.objective):
            for batch in shown:
                losses[batch.number] = self._loss_of(batch, device)
        total: Tensor = self.accelerator.reduce(losses, reduction="sum")
        sizes = [len(request.records) for request in self.requests]
        return math.fsum(loss * size for loss, size in zip(total.tolist(), sizes, strict=True)) / sum(sizes)

    def _loss_of(self, batch: ValidationBatch, device: torch.device) -> Tensor:
        """The mean over a batch's pictures and times, a scalar."""
        latents = self._latents_of(batch, device)
        ones = torch.ones(len(batch.names), device=device)
        captions = Captions(
            batch.input_ids.to(device),
            None if batch.token_weights is None else batch.token_weights.to(device),
            None if batch.text_states is None else batch.text_states.to(device),
        )
        losses = []
        for noise, timesteps in zip(batch.noise.to(device), batch.timesteps.to(device), strict=True):
            with self.accelerator.autocast():
                losses.append(self.objective(latents, Noise(noise), timesteps, captions, ones, None, False).float())
        return torch.stack(losses).mean()

    def _latents_of(self, batch: ValidationBatch, device: torch.device) -> Tensor:
        if batch.latents is not None:
            return batch.latents.to(device)
        if batch.pixels is None or batch.latent_noise is None:
            raise ValueError("a batch needs latents, or pixels and the noise of their encoding")
        return self.encode_latents(batch.pixels.to(device), batch.latent_noise.to(device), batch.names)


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    """Moves a module's own tables; its parts are where the training has them."""
    for name, table in module.named_buffers(recurse=False):
        setattr(module, name, table.to(device))
