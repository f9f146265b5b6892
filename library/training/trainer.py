"""The loop. The only one, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from library.core.randomness import derived_seed
from library.data.batch import Batch
from library.diffusion.noise import Noise
from library.diffusion.objective import Captions
from library.methods.base import TEXT_ENCODER, Method
from library.optim.clipping import clip_gradients
from library.optim.optimizers import eval_mode, train_mode
from library.optim.stepping import FusedBackward
from library.training.guards import refuse_non_finite_update
from library.training.keep.keeper import Keeper
from library.training.keep.training_state import TrainingState
from library.training.logs.scalars import Number, rate_scalars
from library.training.previews import Previews
from library.training.progress import Moment, RunPlan
from library.training.requests.watch import Requests, RequestWatch
from library.training.validation import Validation

EncodeLatents = Callable[[torch.Tensor, torch.Tensor, Sequence[str]], torch.Tensor]


@dataclass
class Trainer:
    """Everything one run needs, put together in `assemble`.

    Args:
        accelerator: devices, precision and processes.
        objective: the prepared objective; called with a batch's tensors, returns the loss.
        fused: applies gradients in the backward pass already; None where they are applied together.
        method: what is trained.
        batches: batches of this process, continuous over epochs, ending with the run.
        encode_latents: (pixels, noise of the draw, names) to unscaled latents, for batches without cached latents.
        validation: measures the loss on held-out pictures; None where there are none.
        previews: makes sample pictures.
        plan: length of the run.
        state: all that changes while it trains: optimizer, schedule, average, log, progress, …
        requests: what people ask for while it runs.
        keeper: saves files and states.
        max_grad_norm: limit of the gradient norm; infinite for none.
        seed: the run's seed.
    """

    accelerator: Accelerator
    objective: Callable[..., torch.Tensor]
    method: Method
    batches: Iterable[Batch]
    encode_latents: EncodeLatents
    plan: RunPlan
    state: TrainingState
    requests: RequestWatch
    keeper: Keeper
    previews: Previews
    max_grad_norm: float = math.inf
    seed: int = 0
    fused: FusedBackward | None = None
    validation: Validation | None = None

    def __post_init__(self) -> None:
        state = self.state
        self.optimizer, self.scheduler, self.ema = state.optimizer, state.scheduler, state.ema
        self.log, self.watch, self.progress = state.log, state.watch, state.progress

    def run(self) -> bool:
        """Trains to the end of the plan, or until somebody asks to stop; whether the end was reached.

        Called while `requests` watches.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        loss = torch.zeros((), device=self.accelerator.device)
        names: list[str] = []
        goes_on = True
        train_mode(self.optimizer)
        self._preview_at_first()
        with self._bar() as bar:
            self.method.start_epoch()
            for batch in self.batches:
                if batch.epoch != self.progress.epoch:
                    self.progress.epoch = batch.epoch
                    self.method.start_epoch()
                loss = loss + self._learn_from(batch)
                names += batch.names
                if not batch.closes_update:
                    continue
                numbers = self._update(parameters, loss, names)
                self._report(batch, loss, numbers, bar)
                loss, names = torch.zeros_like(loss), []
                goes_on = self._between_updates(batch)
                if not goes_on:
                    break
        return goes_on

    def _bar(self) -> Any:
        total, done = self.plan.total_updates, self.progress.step
        return tqdm(total=total, initial=done, disable=not self.accelerator.is_main_process, unit="step")

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
                Noise(batch.noise, batch.input_noise, batch.offset_noise, batch.offset_strength),
                batch.timesteps,
                Captions(batch.input_ids, batch.token_weights, batch.text_states),
                batch.loss_weights,
                batch.masks,
                self.method.trains_text_encoder(self.progress.step),
            )
            share = loss * (batch.loss_scale / self.plan.accumulation)
            if self.fused is not None:  # weights change in the backward pass, so this is the last moment to look
                refuse_non_finite_update(share, share, batch.names, self.progress.step)
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

    def _update(
        self, parameters: list[torch.nn.Parameter], loss: torch.Tensor, names: Sequence[str]
    ) -> dict[str, Number]:
        """Applies the gradients; returns what the log has of it, by tag."""
        resting = () if self.method.trains_text_encoder(self.progress.step) else (TEXT_ENCODER,)
        was_skipped = False
        if self.fused is not None:
            grad_norm = self.fused.finish_update()
            self.watch.observe_idle(self.fused.idle_parts())
        else:
            self.watch.observe(resting)
            self.accelerator.unscale_gradients()  # undoes the fp16 scaler's factor, where there is one
            grad_norm = clip_gradients(parameters, self.max_grad_norm)
            if self.accelerator.scaler is None:
                refuse_non_finite_update(loss, grad_norm, names, self.progress.step)
            self.optimizer.step()
            was_skipped = self.accelerator.optimizer_step_was_skipped  # by the fp16 scaler
            self.watch.count_skipped(was_skipped, names, self.progress.step)
            for parameter in parameters:
                parameter.grad = None  # what zero_grad does; Accelerate's own looks up its signature at every call
        numbers = {**rate_scalars(self.optimizer, resting), "grad_norm": grad_norm}
        if self.accelerator.scaler is not None:
            numbers["skipped_updates"] = float(was_skipped)
        if not was_skipped:
            numbers |= self.method.after_update()
            if self.ema is not None:
                self.ema.update()
        self.scheduler.step()  # also where the weights stayed: it counts updates of the plan
        self.progress.step += 1
        return numbers

    def _report(self, batch: Batch, loss: torch.Tensor, numbers: Mapping[str, Number], bar: Any) -> None:
        step = self.progress.step
        if self.log.record(step, batch.epoch + 1, loss, numbers):
            bar.set_description(f"epoch {batch.epoch + 1}/{self.plan.epochs}", refresh=False)
            bar.set_postfix(loss=f"{self.log.average_loss:.4f}", refresh=False)
        bar.update(1)

    def _between_updates(self, batch: Batch) -> bool:
        """What is due after an update; whether training goes on."""
        is_last = self.progress.step == self.plan.total_updates
        moment = Moment(self.progress.step, batch.epoch + 1, batch.closes_epoch, is_last)
        asked = self.requests.look()
        with self.log.pause():
            if moment.ends_epoch or moment.is_last:
                self.log.end_epoch(moment.step, moment.epoch)
            if self.validation is not None and self.validation.due(moment):
                self._validate(self.validation, moment)
            if self.previews.due(moment, asked):
                self._preview(moment)
            self.keeper.keep(moment, asked)
        return not asked.stop or moment.is_last

    def _validate(self, validation: Validation, moment: Moment) -> None:
        """Losses on held-out pictures go to the log; the training does not notice."""
        eval_mode(self.optimizer)
        losses = {"loss/validation": validation.measure()}
        if self.ema is not None:
            with self.ema.swapped():
                losses["loss/validation_ema"] = validation.measure()
        train_mode(self.optimizer)
        self.log.write(moment.step, moment.epoch, losses)

    def _preview_at_first(self) -> None:
        moment = Moment(self.progress.step, self.progress.epoch + 1)
        if moment.step == 0 and self.previews.due(moment, Requests()):
            with self.log.pause():
                self._preview(moment)

    def _preview(self, moment: Moment) -> None:
        """Sample pictures of the weights as they would be saved; the training does not notice."""
        eval_mode(self.optimizer)
        self.previews.make(moment, self.log, self.requests.is_stopping)
        train_mode(self.optimizer)
