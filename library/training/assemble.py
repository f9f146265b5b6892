"""Puts a run together: the one place where data, models, objective, optimizer and method meet."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from library.checkpoint.metadata import BaseModelFacts, RunFacts, base_model_facts
from library.core.device import dtype_of
from library.core.log import get_logger, start_logging
from library.core.randomness import derived_seed
from library.data.batch import Batch
from library.data.dataset import Loader, TrainingDataset, make_loader
from library.data.latents import MemoryLatentStore, fill_memory_store
from library.data.planner import Planner, RequestStream
from library.diffusion.objective import Objective
from library.diffusion.schedule import NUM_TRAIN_TIMESTEPS
from library.methods.network import Network
from library.models.checkpointing import enable_gradient_checkpointing
from library.models.load import load_stable_diffusion
from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion
from library.optim.optimizers import make_optimizer
from library.optim.schedulers import make_scheduler
from library.options.data import default_worker_count
from library.text.encoder import encode_tokens
from library.text.tokenizer import CaptionTokenizer
from library.training.facts import network_metadata
from library.training.guards import GradientWatch, refuse_non_finite
from library.training.latents import LatentEncoder
from library.training.preflight import NetworkRun
from library.training.progress import RunPlan, plan_run
from library.training.report import start_report, summary
from library.training.runtime import prepare, start_runtime
from library.training.scalars import ScalarLog
from library.training.trainer import Trainer

log = get_logger(__name__)

TRACKER_NAME = "network_train"


def train_network(run: NetworkRun) -> None:
    """Builds, trains and saves what `check_network_run` found to be in order."""
    accelerator = start_runtime(run.training.mixed_precision)
    start_logging(accelerator.is_main_process)
    started_at = time.time()
    hashing = ThreadPoolExecutor(max_workers=1)  # a 4 GB file takes seconds to hash; training need not wait
    predicts_velocity = run.prediction_type == "v_prediction"
    base = None
    if accelerator.is_main_process:
        base = hashing.submit(base_model_facts, run.identity.path, run.identity.family, predicts_velocity)

    log.info("loading %s", run.identity.path)
    learner = load_learner(run, accelerator.device)
    planner = make_planner(run, accelerator.num_processes)
    plan = plan_run(planner, run.training.max_train_steps, run.training.max_train_epochs)
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
        _save(run, trainer, finished)
        for line in summary(run, trainer, finished.finished_at - started_at):
            log.info(line)
    hashing.shutdown()
    accelerator.wait_for_everyone()  # the others stay until the file is written
    accelerator.end_training()


@dataclass(frozen=True)
class Learner:
    """The models with the network attached, their tokenizer, and what of the network trains.

    Attributes:
        groups: optimizer groups, see `Method.param_groups`.
    """

    models: StableDiffusion
    method: Network
    network: nn.Module
    tokenizer: CaptionTokenizer
    groups: list[dict[str, Any]]


@dataclass(frozen=True)
class _Finished:
    """When the run began and ended (seconds since 1970), and what is known of its base model."""

    started_at: float
    finished_at: float
    base: BaseModelFacts


def load_learner(run: NetworkRun, device: torch.device) -> Learner:
    """Loads the models and attaches the network to them."""
    models = load_stable_diffusion(run.identity, run.prediction_type)
    weight_dtype = dtype_of(run.training.mixed_precision)
    for model in (models.unet, models.text_encoder):
        nn.Module.to(model, device, weight_dtype)  # the subclasses' own `to` does the same and logs about it
    method = Network(run.network, run.optimizer.learning_rate, run.training.seed)
    network = method.attach(models)
    network.to(device)
    network.train()
    if run.training.gradient_checkpointing:
        enable_gradient_checkpointing(models, with_text_encoder=method.trains_text_encoder(0))
    return Learner(models, method, network, CaptionTokenizer(run.identity.family), method.param_groups())


def build_trainer(
    run: NetworkRun, accelerator: Accelerator, learner: Learner, planner: Planner, plan: RunPlan
) -> Trainer:
    """Connects data, objective, optimizer and logs."""
    models = learner.models
    encode_latents = LatentEncoder(models.vae, accelerator.device)
    store = _cache_latents(run, encode_latents, accelerator) if run.data.cache_latents else None
    objective = Objective(
        models.unet, models.text_encoder, encode_tokens, learner.network, run.prediction_type, VAE_SCALING_FACTOR
    )
    optimizer = make_optimizer(run.optimizer, learner.groups)
    scheduler = make_scheduler(run.optimizer.lr_scheduler, optimizer)
    stream = RequestStream(planner, accelerator.process_index, plan.total_updates)
    prepared_objective, prepared_optimizer = prepare(accelerator, objective, optimizer)
    return Trainer(
        accelerator=accelerator,
        objective=prepared_objective,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        method=learner.method,
        batches=_make_batches(run, stream, learner.tokenizer, store, accelerator),
        encode_latents=encode_latents,
        watch=_watch(learner.groups, objective),
        log=_open_log(run, plan, accelerator),
        plan=plan,
        max_grad_norm=run.training.max_grad_norm or inf,
        seed=run.training.seed,
    )


def make_planner(run: NetworkRun, processes: int) -> Planner:
    """The planner of a checked run."""
    batch_sizes = [dataset.batch_size for dataset in run.index.datasets]
    return Planner(
        run.index, run.placements, batch_sizes, run.training.seed, run.training.gradient_accumulation_steps, processes
    )


def _cache_latents(run: NetworkRun, encode: LatentEncoder, accelerator: Accelerator) -> MemoryLatentStore:
    with tqdm(
        total=len(run.index), desc="caching latents", unit="picture", disable=not accelerator.is_main_process
    ) as bar:
        store = fill_memory_store(
            run.index,
            run.placements,
            encode,
            run.training.seed,
            _workers(run),
            lambda done, _: bar.update(done - bar.n),
        )
    encode.release()
    return store


def _workers(run: NetworkRun) -> int:
    asked = run.data.max_data_loader_n_workers
    return default_worker_count() if asked is None else asked


def _make_batches(
    run: NetworkRun,
    stream: RequestStream,
    tokenizer: CaptionTokenizer,
    store: MemoryLatentStore | None,
    accelerator: Accelerator,
) -> Loader[Batch]:
    dataset = TrainingDataset(
        run.index, run.placements, tokenizer, store, run.training.seed, num_timesteps=NUM_TRAIN_TIMESTEPS
    )
    return make_loader(dataset, stream, _workers(run), pin_memory=accelerator.device.type == "cuda")


def _watch(groups: list[dict[str, Any]], objective: nn.Module) -> GradientWatch:
    return GradientWatch(
        components={group["name"]: group["params"] for group in groups},
        names={parameter: name for name, parameter in objective.named_parameters()},
    )


def _open_log(run: NetworkRun, plan: RunPlan, accelerator: Accelerator) -> ScalarLog:
    def mean(values: torch.Tensor) -> torch.Tensor:
        return accelerator.reduce(values, reduction="mean")

    if not accelerator.is_main_process:
        return ScalarLog(None, None, plan.updates_per_epoch, mean)
    return ScalarLog(run.files.log, _tensorboard_folder(run), plan.updates_per_epoch, mean)


def _tensorboard_folder(run: NetworkRun) -> Path | None:
    if run.output.logging_dir is None:
        return None
    stamp = datetime.now().strftime("%Y%m%d%H%M%S")
    return Path(run.output.logging_dir) / f"{run.output.log_prefix or ''}{stamp}" / TRACKER_NAME


def _save(run: NetworkRun, trainer: Trainer, finished: _Finished) -> None:
    """Writes the network file with its metadata; weights that are not finite are never written."""
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
    metadata = network_metadata(run, plan, finished.base, facts)
    dtype = dtype_of(run.output.save_precision or run.training.mixed_precision)
    trainer.method.save(run.files.network, dtype, metadata)
