"""Puts a run together: the one place where data, models, objective, optimizer and method meet."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from library.checkpoint.metadata import BaseModelFacts, RunFacts, average_values
from library.core.device import dtype_of
from library.core.errors import Problems
from library.core.log import get_logger, start_logging
from library.core.randomness import derived_seed
from library.data.dataset import TrainingDataset, make_loader
from library.data.planner import Planner, RequestStream
from library.data.validation import ValidationDataset
from library.data.views import Drawing, Views
from library.diffusion.noise import NoiseSource
from library.diffusion.objective import Objective
from library.methods.base import TEXT_ENCODER, UNET, Method
from library.methods.network_module import drops_layers
from library.models.attention import choose_attention, compile_unet
from library.models.checkpointing import enable_gradient_checkpointing
from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion
from library.optim.optimizers import describe_optimizer, eval_mode, make_optimizer, optimizer_name, rates_told
from library.optim.schedulers import describe_scheduler, make_scheduler
from library.optim.stepping import FusedBackward, describe_stepping, learns_in_low_precision, make_stepping
from library.options.objective import ObjectiveOptions
from library.text.tokenizer import CaptionTokenizer
from library.training.caching import make_latent_store, make_text_store, worker_count
from library.training.ema import Ema
from library.training.facts import base_facts, saved_metadata
from library.training.guards import WATCHED_UPDATES, GradientWatch, MovementWatch, refuse_non_finite
from library.training.latents import LatentEncoder
from library.training.loading import load_in_turn, place
from library.training.methods import (
    fetch_base_model,
    load_models,
    make_caption_encoder,
    make_method,
    make_tokenizer,
    save_dtype,
    tracker_name,
)
from library.training.out_of_memory import explained_out_of_memory
from library.training.output_checks import check_space_again
from library.training.progress import RunPlan, plan_run
from library.training.report import start_report, summary
from library.training.run import EmbeddingRun, FullModelRun, NetworkRun, Run
from library.training.runtime import end_runtime, prepare, start_runtime
from library.training.scalars import ScalarLog
from library.training.trainer import Trainer
from library.training.validation import make_validation, plain_objective, validation_draws

log = get_logger(__name__)


def train(run: Run) -> None:
    """Builds, trains and saves what preflight found to be in order."""
    options = run.options
    accelerator = start_runtime(options.training.mixed_precision, options.memory.full_fp16, _part_rests(run))
    start_logging(accelerator.is_main_process)
    started_at = time.time()
    hashing = ThreadPoolExecutor(max_workers=1)  # a 4 GB file takes seconds to hash; training need not wait
    with accelerator.main_process_first():  # the others find in the cache what one has fetched
        run = replace(run, base=fetch_base_model(run.base))
    if isinstance(run, FullModelRun) and run.base.repo_id is not None:
        check_space_again(run)
    base = hashing.submit(base_facts, run.base) if accelerator.is_main_process else None

    log.info("loading %s", run.base.identity.name)
    with explained_out_of_memory(run):
        learner = load_in_turn(accelerator, options.memory.lowram, lambda: load_learner(run, accelerator.device))
        planner = make_planner(run, accelerator.num_processes)
        plan = plan_run(planner, options.training.max_train_steps, options.training.max_train_epochs)
        for line in start_report(run, planner, plan, learner.tokenizer, learner.groups, accelerator):
            log.info(line)
        trainer = build_trainer(run, accelerator, learner, planner, plan)
        for line in _learning_lines(run, trainer.optimizer):
            log.info(line)
        movement = MovementWatch(learner.groups)
        try:
            trainer.run()
        finally:
            if accelerator.num_processes == 1:  # with several, draining takes all of them, and one may have failed
                trainer.log.drain()
            trainer.log.close()
    movement.refuse_still()
    if base is not None:
        finished = _Finished(started_at, time.time(), base.result())
        _save(run, trainer, learner, finished)
        for line in summary(run, trainer, finished.finished_at - started_at):
            log.info(line)
    hashing.shutdown()
    end_runtime(accelerator)  # the others stay until the file is written


@dataclass(frozen=True)
class Learner:
    """The models with the method attached, their tokenizer, and what trains.

    Attributes:
        network: what trains beside the models; None where the models themselves learn.
        groups: optimizer groups, see `Method.param_groups`.
        loaded_dtype: number format of the base model's weights.
    """

    models: StableDiffusion
    method: Method
    network: nn.Module | None
    tokenizer: CaptionTokenizer
    groups: list[dict[str, Any]]
    loaded_dtype: torch.dtype


@dataclass(frozen=True)
class _Finished:
    """When the run began and ended (seconds since 1970), and what is known of its base model."""

    started_at: float
    finished_at: float
    base: BaseModelFacts


def load_learner(run: Run, device: torch.device) -> Learner:
    """Loads the models and attaches the method to them."""
    options = run.options
    models = load_models(run.base)
    loaded_dtype = models.unet.dtype
    method = make_method(run, models)
    weight_dtype = dtype_of(options.training.mixed_precision)
    learning_dtype = weight_dtype if learns_in_low_precision(options.memory) else torch.float32
    learning = {UNET} | ({TEXT_ENCODER} if method.trains_text_encoder(0) else set())
    # what is saved and does not learn keeps all its digits, whatever the format of what learns
    held = {part: learning_dtype if part in learning else torch.float32 for part in method.float32_models}
    place(models, device, {part: held.get(part, weight_dtype) for part in (UNET, TEXT_ENCODER)})
    choose_attention(models.unet, options.memory)
    network = method.attach(models)
    if network is not None:
        network.to(device, learning_dtype)
        network.train()
    if options.training.gradient_checkpointing:
        enable_gradient_checkpointing(models, with_text_encoder=method.trains_text_encoder(0))
    compile_unet(models.unet, options.memory)
    return Learner(models, method, network, make_tokenizer(run), method.param_groups(), loaded_dtype)


def build_trainer(run: Run, accelerator: Accelerator, learner: Learner, planner: Planner, plan: RunPlan) -> Trainer:
    """Connects data, objective, optimizer and logs."""
    models, options = learner.models, run.options
    optimizer = make_optimizer(options.optimizer, learner.groups)  # before the caches, which take long: it may complain
    optimizer = make_stepping(optimizer, options.memory, options.training.seed)
    scheduler = make_scheduler(options.optimizer, optimizer, plan.total_updates)
    encode_latents = LatentEncoder(models.vae, accelerator.device, options.caching.vae_precision)
    views, latents = make_latent_store(run, make_views(run, plan), encode_latents, accelerator)
    texts = make_text_store(run, learner.tokenizer, models.text_encoder, accelerator)
    source = NoiseSource(options.training.seed, options.objective)
    dataset = TrainingDataset(views, learner.tokenizer, source, latents, texts)
    objective = make_objective(run, learner, options.objective, encodes_captions=texts is None)
    held_out = ValidationDataset(views, validation_draws(run), learner.tokenizer, latents, texts)
    unweighted = make_objective(run, learner, plain_objective(options.objective), encodes_captions=texts is None)
    fused = FusedBackward(optimizer) if options.memory.fused_backward_pass else None
    stream = RequestStream(planner, accelerator.process_index, plan.total_updates)
    prepared_objective, prepared_optimizer = prepare(accelerator, objective, optimizer)
    return Trainer(
        accelerator=accelerator,
        objective=prepared_objective,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        method=learner.method,
        batches=make_loader(dataset, stream, worker_count(run), pin_memory=accelerator.device.type == "cuda"),
        encode_latents=encode_latents,
        watch=_watch(run, learner.groups, objective, plan),
        log=_open_log(run, plan, accelerator),
        plan=plan,
        max_grad_norm=options.training.max_grad_norm or inf,
        seed=options.training.seed,
        fused=fused,
        validation=make_validation(run, plan, unweighted, held_out, encode_latents, accelerator),
        ema=Ema(learner.groups, options.validation.ema_decay) if options.validation.ema else None,
    )


def make_objective(run: Run, learner: Learner, options: ObjectiveOptions, encodes_captions: bool) -> Objective:
    """The objective over the models of a run; captions come encoded where it does not encode them."""
    return Objective(
        learner.models.unet,
        learner.models.text_encoder if encodes_captions else None,
        make_caption_encoder(run),
        learner.network,
        run.base.prediction_type,
        VAE_SCALING_FACTOR,
        options,
    )


def make_planner(run: Run, processes: int) -> Planner:
    """The planner of a checked run."""
    batch_sizes = [dataset.batch_size for dataset in run.index.datasets]
    return Planner(
        run.index,
        run.placements,
        batch_sizes,
        run.options.training.seed,
        run.options.training.gradient_accumulation_steps,
        processes,
    )


def make_views(run: Run, plan: RunPlan) -> Views:
    """How the uses of a checked run's pictures see them."""
    options = run.options
    drawing = Drawing(
        seed=options.training.seed,
        variants=options.data.augmentation_variants,
        redraws_latents=options.caching.cache_latent_distribution,
        total_steps=plan.total_updates,
    )
    return Views(run.index, run.placements, drawing)


def _part_rests(run: Run) -> bool:
    """Whether something that trains is left out of the computation at some updates."""
    return _stop_of_text_encoder(run) is not None or _drops_layers(run)


def _stop_of_text_encoder(run: Run) -> int | None:
    return run.text_encoder_stops if isinstance(run, FullModelRun) and run.trains_text_encoder else None


def _drops_layers(run: Run) -> bool:
    return isinstance(run, NetworkRun) and drops_layers(run.network)


def _watch(run: Run, groups: list[dict[str, Any]], objective: nn.Module, plan: RunPlan) -> GradientWatch:
    # the first batches may be of regularisation pictures, whose captions do not have the new word
    few_have_it = isinstance(run, EmbeddingRun)
    # a part that stops learning is judged at the last update before
    ends = (plan.total_updates, _stop_of_text_encoder(run) or plan.total_updates)
    return GradientWatch(
        updates=plan.total_updates if few_have_it else min(WATCHED_UPDATES, *ends),
        drops_layers=_drops_layers(run),
        components={group["name"]: group["params"] for group in groups},
        names={parameter: name for name, parameter in objective.named_parameters()},
    )


def _open_log(run: Run, plan: RunPlan, accelerator: Accelerator) -> ScalarLog:
    def mean(values: torch.Tensor) -> torch.Tensor:
        return accelerator.reduce(values, reduction="mean")

    if not accelerator.is_main_process:
        return ScalarLog(None, None, plan.updates_per_epoch, mean)
    return ScalarLog(run.files.log, _tensorboard_folder(run), plan.updates_per_epoch, mean)


def _tensorboard_folder(run: Run) -> Path | None:
    if run.options.output.logging_dir is None:
        return None
    stamp = datetime.now().strftime("%Y%m%d%H%M%S")
    return Path(run.options.output.logging_dir) / f"{run.options.output.log_prefix or ''}{stamp}" / tracker_name(run)


def _learning_lines(run: Run, optimizer: torch.optim.Optimizer) -> list[str]:
    """What the report says of optimizer and schedule."""
    options = run.options.optimizer
    return [
        *describe_optimizer(options, optimizer),
        *describe_stepping(optimizer),
        *describe_scheduler(options, optimizer),
    ]


def _save(run: Run, trainer: Trainer, learner: Learner, finished: _Finished) -> None:
    """Writes the trained file with its metadata, and its running average; weights that are not finite are never
    written."""
    plan = trainer.plan
    eval_mode(trainer.optimizer)
    refuse_non_finite(trainer.optimizer.param_groups)
    facts = RunFacts(
        session_id=derived_seed(int(finished.started_at * 1000), 0, "", "session") >> 32,
        started_at=finished.started_at,
        finished_at=finished.finished_at,
        rates=rates_told(trainer.optimizer),
        optimizer=optimizer_name(run.options.optimizer),
        epochs=plan.epochs,
        max_steps=plan.total_updates,
        epoch=trainer.progress.epoch + 1,
        step=trainer.progress.step,
    )
    dtype, problems = save_dtype(run, learner.loaded_dtype), Problems()
    metadata = saved_metadata(run, plan, finished.base, facts)
    problems.attempt(lambda: trainer.method.save(run.files.result, dtype, metadata))
    if trainer.ema is not None and run.files.average is not None:
        average = run.files.average
        told = metadata | average_values(average.stem, run.options.validation.ema_decay)
        with trainer.ema.swapped():
            problems.attempt(lambda: trainer.method.save(average, dtype, told))
    problems.raise_if_any()
