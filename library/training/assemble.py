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

from library.checkpoint.metadata import BaseModelFacts, RunFacts
from library.core.device import dtype_of
from library.core.log import get_logger, start_logging
from library.core.randomness import derived_seed
from library.data.dataset import TrainingDataset, make_loader
from library.data.planner import Planner, RequestStream
from library.data.views import Drawing, Views
from library.diffusion.objective import Objective
from library.diffusion.schedule import NUM_TRAIN_TIMESTEPS
from library.methods.base import Method
from library.models.checkpointing import enable_gradient_checkpointing
from library.models.files.mapped import give_own_memory
from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion
from library.optim.optimizers import make_optimizer
from library.optim.schedulers import make_scheduler
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer
from library.training.caching import make_latent_store, make_text_store, worker_count
from library.training.facts import base_facts, saved_metadata
from library.training.guards import WATCHED_UPDATES, GradientWatch, refuse_non_finite
from library.training.latents import LatentEncoder
from library.training.methods import (
    fetch_base_model,
    load_models,
    make_method,
    make_tokenizer,
    save_dtype,
    tracker_name,
)
from library.training.preflight import check_space_again
from library.training.progress import RunPlan, plan_run
from library.training.report import start_report, summary
from library.training.run import EmbeddingRun, FullModelRun, Run
from library.training.runtime import end_runtime, prepare, start_runtime
from library.training.scalars import ScalarLog
from library.training.trainer import Trainer

log = get_logger(__name__)


def train(run: Run) -> None:
    """Builds, trains and saves what preflight found to be in order."""
    options = run.options
    accelerator = start_runtime(options.training.mixed_precision)
    start_logging(accelerator.is_main_process)
    started_at = time.time()
    hashing = ThreadPoolExecutor(max_workers=1)  # a 4 GB file takes seconds to hash; training need not wait
    with accelerator.main_process_first():  # the others find in the cache what one has fetched
        run = replace(run, base=fetch_base_model(run.base))
    if isinstance(run, FullModelRun) and run.base.repo_id is not None:
        check_space_again(run)
    base = hashing.submit(base_facts, run.base) if accelerator.is_main_process else None

    log.info("loading %s", run.base.identity.name)
    learner = load_learner(run, accelerator.device)
    planner = make_planner(run, accelerator.num_processes)
    plan = plan_run(planner, options.training.max_train_steps, options.training.max_train_epochs)
    for line in start_report(run, planner, plan, learner.tokenizer, learner.groups, accelerator):
        log.info(line)
    trainer = build_trainer(run, accelerator, learner, planner, plan)
    try:
        trainer.run()
    finally:
        if accelerator.num_processes == 1:  # with several, draining takes all of them, and one may have failed
            trainer.log.drain()
        trainer.log.close()
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
    for name in ("unet", "text_encoder"):
        # smaller formats lose updates that are small beside the weight
        dtype = torch.float32 if name in method.float32_models else weight_dtype
        nn.Module.to(getattr(models, name), device, dtype)  # the subclasses' own `to` does the same and logs about it
    for part in (models.unet, models.text_encoder, models.vae):
        give_own_memory(part)
    network = method.attach(models)
    if network is not None:
        network.to(device)
        network.train()
    if options.training.gradient_checkpointing:
        enable_gradient_checkpointing(models, with_text_encoder=method.trains_text_encoder(0))
    return Learner(models, method, network, make_tokenizer(run), method.param_groups(), loaded_dtype)


def build_trainer(run: Run, accelerator: Accelerator, learner: Learner, planner: Planner, plan: RunPlan) -> Trainer:
    """Connects data, objective, optimizer and logs."""
    models, options = learner.models, run.options
    encode_latents = LatentEncoder(models.vae, accelerator.device, options.caching.vae_precision)
    views, latents = make_latent_store(run, make_views(run, plan), encode_latents, accelerator)
    texts = make_text_store(run, learner.tokenizer, models.text_encoder, accelerator)
    dataset = TrainingDataset(views, learner.tokenizer, latents, texts)
    objective = Objective(
        models.unet,
        models.text_encoder if texts is None else None,
        CaptionEncoder(options.text),
        learner.network,
        run.base.prediction_type,
        VAE_SCALING_FACTOR,
    )
    optimizer = make_optimizer(options.optimizer, learner.groups)
    scheduler = make_scheduler(options.optimizer.lr_scheduler, optimizer)
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
        num_timesteps=NUM_TRAIN_TIMESTEPS,
    )
    return Views(run.index, run.placements, drawing)


def _watch(run: Run, groups: list[dict[str, Any]], objective: nn.Module, plan: RunPlan) -> GradientWatch:
    # the first batches may be of regularisation pictures, whose captions do not have the new word
    few_have_it = isinstance(run, EmbeddingRun)
    return GradientWatch(
        updates=plan.total_updates if few_have_it else WATCHED_UPDATES,
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


def _save(run: Run, trainer: Trainer, learner: Learner, finished: _Finished) -> None:
    """Writes the trained file with its metadata; weights that are not finite are never written."""
    plan, groups = trainer.plan, trainer.optimizer.param_groups
    refuse_non_finite(groups)
    facts = RunFacts(
        session_id=derived_seed(int(finished.started_at * 1000), 0, "", "session") >> 32,
        started_at=finished.started_at,
        finished_at=finished.finished_at,
        rates={group["name"]: group["lr"] for group in groups},
        optimizer=f"{type(trainer.optimizer.optimizer).__module__}.{type(trainer.optimizer.optimizer).__name__}",
        epochs=plan.epochs,
        max_steps=plan.total_updates,
        epoch=trainer.progress.epoch + 1,
        step=trainer.progress.step,
    )
    metadata = saved_metadata(run, plan, finished.base, facts)
    trainer.method.save(run.files.result, save_dtype(run, learner.loaded_dtype), metadata)
