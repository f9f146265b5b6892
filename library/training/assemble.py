"""Puts a run together: the one place where data, models, objective, optimizer and method meet."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from library.core.device import dtype_of
from library.core.errors import Stopped
from library.core.log import get_logger, start_logging
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
from library.optim.optimizers import describe_optimizer, make_optimizer
from library.optim.schedulers import describe_scheduler, make_scheduler
from library.optim.stepping import FusedBackward, describe_stepping, learns_in_low_precision, make_stepping
from library.options.objective import ObjectiveOptions
from library.text.tokenizer import CaptionTokenizer
from library.training.caching import make_latent_store, make_text_store, worker_count
from library.training.checks.output import check_space_again
from library.training.ema import Ema
from library.training.facts import base_facts
from library.training.guards import WATCHED_UPDATES, GradientWatch, MovementWatch
from library.training.keep.keeper import Keeper
from library.training.keep.resume import restore
from library.training.keep.session import Session
from library.training.keep.trained_files import TrainedFiles
from library.training.keep.training_state import TrainingState
from library.training.keep.uploads import make_uploads
from library.training.latents import LatentEncoder
from library.training.loading import load_in_turn, place
from library.training.logs.trackers import open_log
from library.training.methods import (
    fetch_base_model,
    load_models,
    make_caption_encoder,
    make_method,
    make_tokenizer,
    save_dtype,
)
from library.training.out_of_memory import explained_out_of_memory
from library.training.previews import make_previews
from library.training.progress import Moment, Progress, RunPlan, plan_run
from library.training.report import start_report, summary
from library.training.requests.signals import interruptible
from library.training.requests.watch import RequestWatch
from library.training.run import EmbeddingRun, FullModelRun, NetworkRun, Run
from library.training.runtime import end_runtime, prepare, start_runtime
from library.training.trainer import Trainer
from library.training.validation import make_validation, plain_objective, validation_draws

log = get_logger(__name__)


def train(run: Run) -> None:
    """Builds, trains and saves what preflight found to be in order."""
    options = run.options
    accelerator = start_runtime(options.training.mixed_precision, options.memory.full_fp16, _part_rests(run))
    start_logging(accelerator.is_main_process)
    started_at = time.time()
    with accelerator.main_process_first():  # the others find in the cache what one has fetched
        run = replace(run, base=fetch_base_model(run.base))
    planner = make_planner(run, accelerator.num_processes)
    plan = plan_run(planner, options.training.max_train_steps, options.training.max_train_epochs)
    if isinstance(run, FullModelRun) and run.base.repo_id is not None:
        check_space_again(run, plan)

    log.info("loading %s", run.base.identity.name)
    with explained_out_of_memory(run):
        learner = load_in_turn(accelerator, options.memory.lowram, lambda: load_learner(run, accelerator.device))
        for line in start_report(run, planner, plan, learner.tokenizer, learner.groups, accelerator):
            log.info(line)
        trainer = build_trainer(run, accelerator, learner, planner, plan)
        for line in _learning_lines(run, trainer.optimizer):
            log.info(line)
        has_ended = _train(trainer)
    if accelerator.is_main_process:
        for line in summary(run, trainer, time.time() - started_at):
            log.info(line)
    end_runtime(accelerator)  # the others stay until the file is written
    trainer.keeper.raise_if_incomplete()
    if not has_ended:
        raise Stopped(f"stopped after update {trainer.progress.step} of {plan.total_updates}")


def _train(trainer: Trainer) -> bool:
    """Trains and saves the end; whether it was reached."""
    try:
        with trainer.requests.watched():  # also while the end is saved
            has_ended = trainer.run()
            if has_ended:
                trainer.state.movement.refuse_still()
                trainer.keeper.finish(Moment(trainer.progress.step, trainer.plan.epochs, is_last=True))
        with interruptible():  # it may wait for uploads
            trainer.keeper.close(has_ended)
    finally:
        if trainer.accelerator.num_processes == 1:  # with several, draining takes all of them, and one may have failed
            trainer.log.drain()
        trainer.log.close()
    return has_ended


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
    """Connects data, objective, optimizer and logs, and puts all of it where the run goes on."""
    options = run.options
    optimizer = make_optimizer(options.optimizer, learner.groups)  # before the caches, which take long: it may complain
    optimizer = make_stepping(optimizer, options.memory, options.training.seed)
    scheduler = make_scheduler(options.optimizer, optimizer, plan.total_updates)
    feed = _make_feed(run, accelerator, learner, plan)
    objective = make_objective(run, learner, options.objective, feed.encodes_captions)
    unweighted = make_objective(run, learner, plain_objective(options.objective), feed.encodes_captions)
    fused = FusedBackward(optimizer) if options.memory.fused_backward_pass else None
    prepared_objective, prepared_optimizer = prepare(accelerator, objective, optimizer)
    state = TrainingState(
        groups=learner.groups,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        scaler=accelerator.scaler,
        ema=Ema(learner.groups, options.validation.ema_decay) if options.validation.ema else None,
        log=open_log(run, plan, accelerator),
        watch=_watch(run, learner.groups, objective, plan),
        movement=MovementWatch(learner.groups),
        progress=Progress(),
        session=Session.begin(),
    )
    if run.resume is not None:
        for line in restore(run.resume, state):
            log.info(line)
    stream = RequestStream(planner, accelerator.process_index, plan.total_updates)
    state.progress.epoch, updates_of_it = planner.place_of(state.progress.step)
    stream.seek(state.progress.epoch, updates_of_it)
    return Trainer(
        accelerator=accelerator,
        objective=prepared_objective,
        method=learner.method,
        batches=make_loader(feed.dataset, stream, worker_count(run), pin_memory=accelerator.device.type == "cuda"),
        encode_latents=feed.encode_latents,
        plan=plan,
        state=state,
        requests=RequestWatch(run.files.folder, run.files.name, accelerator, options.keeping.save_on_signal),
        keeper=_make_keeper(run, accelerator, learner, plan, state),
        max_grad_norm=options.training.max_grad_norm or inf,
        seed=options.training.seed,
        fused=fused,
        validation=make_validation(run, unweighted, feed.held_out, feed.encode_latents, accelerator),
        previews=make_previews(run, learner.models, learner.network, accelerator),
    )


@dataclass(frozen=True)
class _Feed:
    """Where batches come from, and what the models still have to do with them."""

    dataset: TrainingDataset
    held_out: ValidationDataset
    encode_latents: LatentEncoder
    encodes_captions: bool


def _make_feed(run: Run, accelerator: Accelerator, learner: Learner, plan: RunPlan) -> _Feed:
    """Fills the caches that are asked for."""
    models, options = learner.models, run.options
    encode_latents = LatentEncoder(models.vae, accelerator.device, options.caching.vae_precision)
    views, latents = make_latent_store(run, make_views(run, plan), encode_latents, accelerator)
    texts = make_text_store(run, learner.tokenizer, models.text_encoder, accelerator)
    source = NoiseSource(options.training.seed, options.objective)
    dataset = TrainingDataset(views, learner.tokenizer, source, latents, texts)
    held_out = ValidationDataset(views, validation_draws(run), learner.tokenizer, latents, texts)
    return _Feed(dataset, held_out, encode_latents, encodes_captions=texts is None)


def _make_keeper(run: Run, accelerator: Accelerator, learner: Learner, plan: RunPlan, state: TrainingState) -> Keeper:
    hashing = ThreadPoolExecutor(max_workers=1)  # a 4 GB file takes seconds to hash; training need not wait
    base = hashing.submit(base_facts, run.base)
    hashing.shutdown(wait=False)
    trained = TrainedFiles(
        run=run,
        plan=plan,
        method=learner.method,
        optimizer=state.optimizer,
        ema=state.ema,
        dtype=save_dtype(run, learner.loaded_dtype),
        base=base,
        session=state.session,
    )
    uploads = make_uploads(run, accelerator)
    return Keeper(run.files, trained, state, uploads, accelerator.is_main_process)


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


def _learning_lines(run: Run, optimizer: torch.optim.Optimizer) -> list[str]:
    """What the report says of optimizer and schedule."""
    options = run.options.optimizer
    return [
        *describe_optimizer(options, optimizer),
        *describe_stepping(optimizer),
        *describe_scheduler(options, optimizer),
    ]
