"""The loop. The only one, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from library.core.errors import UserError
from library.core.randomness import derived_seed
from library.data.batch import Batch
from library.diffusion.objective import Captions
from library.methods.base import Method
from library.optim.clipping import clip_gradients
from library.training.guards import GradientWatch
from library.training.progress import Progress, RunPlan
from library.training.scalars import ScalarLog

EncodeLatents = Callable[[torch.Tensor, torch.Tensor, Sequence[str]], torch.Tensor]


@dataclass
class Trainer:
    """Everything one run needs, put together in `assemble`.

    Args:
        accelerator: devices, precision and processes.
        objective: the prepared objective; called with a batch's tensors, returns the loss.
        optimizer: the prepared optimizer.
        scheduler: advanced once per update.
        method: what is trained.
        batches: batches of this process, continuous over epochs, ending with the run.
        encode_latents: (pixels, noise of the draw, names) to unscaled latents, for batches without cached latents.
        watch: looks at the first gradients.
        log: takes loss and rates.
        plan: length of the run.
        max_grad_norm: limit of the gradient norm; infinite for none.
        seed: the run's seed.
    """

    accelerator: Accelerator
    objective: Callable[..., torch.Tensor]
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LRScheduler
    method: Method
    batches: Iterable[Batch]
    encode_latents: EncodeLatents
    watch: GradientWatch
    log: ScalarLog
    plan: RunPlan
    max_grad_norm: float = math.inf
    seed: int = 0
    progress: Progress = field(default_factory=Progress)

    def run(self) -> None:
        """Trains to the end of the plan."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        loss = torch.zeros((), device=self.accelerator.device)
        with tqdm(total=self.plan.total_updates, disable=not self.accelerator.is_main_process, unit="step") as bar:
            for batch in self.batches:
                loss = loss + self._learn_from(batch)
                if not batch.closes_update:
                    continue
                grad_norm = self._update(parameters)
                self._report(batch, loss, grad_norm, bar)
                loss = torch.zeros_like(loss)
        self.log.end_epoch(self.progress.step, self.progress.epoch + 1)

    def _learn_from(self, batch: Batch) -> torch.Tensor:
        """Adds a batch's gradient to the update's; returns its share of the update's loss.

        A share is `loss_scale / accumulation`; the engine averages over processes. Together that is the mean over the
        batches that an update really has.
        """
        batch = batch.to(self.accelerator.device)
        self.method.before_batch(derived_seed(self.seed, batch.epoch, str(batch.position), "network"))
        with self._synchronised_if(batch.closes_update):
            loss = self.objective(
                self._latents_of(batch),
                batch.noise,
                batch.timesteps,
                Captions(batch.input_ids, batch.token_weights, batch.text_states),
                batch.loss_weights,
                batch.masks,
                self.method.trains_text_encoder(self.progress.step),
            )
            share = loss * (batch.loss_scale / self.plan.accumulation)
            self.accelerator.backward(share)
        return share.detach()

    def _latents_of(self, batch: Batch) -> torch.Tensor:
        if batch.latents is not None:
            return batch.latents
        if batch.pixels is None or batch.latent_noise is None:
            raise ValueError("a batch needs latents, or pixels and the noise of their encoding")
        return self.encode_latents(batch.pixels, batch.latent_noise, batch.names)

    def _synchronised_if(self, closes_update: bool) -> Any:
        """Processes exchange gradients with the last batch of an update only."""
        return nullcontext() if closes_update else self.accelerator.no_sync(self.objective)

    def _update(self, parameters: list[torch.nn.Parameter]) -> torch.Tensor:
        self.watch.observe()
        self.accelerator.unscale_gradients()  # undoes the fp16 scaler's factor, where there is one
        grad_norm = clip_gradients(parameters, self.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        for parameter in parameters:
            parameter.grad = None  # what zero_grad does; Accelerate's own looks up its signature at every call
        self.progress.step += 1
        return grad_norm

    def _refuse_non_finite_loss(self, step: int) -> None:
        average = self.log.average_loss
        if average is not None and not math.isfinite(average):
            raise UserError.of(
                f"the loss is no longer a finite number at update {step}",
                "training",
                "nothing was saved; lower the learning rate; with fp16, try bf16 or a higher --network_alpha",
            )

    def _report(self, batch: Batch, loss: torch.Tensor, grad_norm: torch.Tensor, bar: Any) -> None:
        step = self.progress.step
        if batch.epoch != self.progress.epoch:
            self.log.end_epoch(step - 1, self.progress.epoch + 1)
        self.progress.epoch = batch.epoch
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        if self.log.record(step, batch.epoch + 1, loss, grad_norm, rates):
            self._refuse_non_finite_loss(step)
            bar.set_description(f"epoch {batch.epoch + 1}/{self.plan.epochs}", refresh=False)
            bar.set_postfix(loss=f"{self.log.average_loss:.4f}", refresh=False)
        bar.update(1)
