"""Everything that can be known to be wrong before a model is loaded, gathered and told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from library.checkpoint.naming import average_file
from library.core.device import dtype_of
from library.core.errors import Problems, UserError
from library.core.launch import launched_processes
from library.core.sizes import Size
from library.data.planner import Planner
from library.methods.base import EMBEDDING, TEXT_ENCODER, UNET
from library.methods.network_module import (
    check_network_family,
    check_network_options,
    network_extension,
    network_in_force,
    without_idle_text_encoder,
)
from library.methods.rates import part_rates
from library.models.embedding_files import text_width
from library.models.forms import (
    EXTENSIONS,
    SaveTarget,
    choose_form,
    files_in_the_way,
    is_single_file,
    refuse_other_folder,
)
from library.optim.optimizers import finds_rate_itself
from library.optim.schedulers import check_scheduler
from library.options.caching import CachingOptions
from library.options.combinations import check_embedding, check_hypernetwork, check_network_parts, check_part_rates
from library.options.data import DataOptions
from library.options.embedding import SAFETENSORS, EmbeddingOptions
from library.options.keeping import KeepingOptions
from library.options.logs import LogOptions
from library.options.memory import MemoryOptions
from library.options.model import ModelOptions
from library.options.network import NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import (
    EMBEDDING_LEARNING_RATE,
    MODEL_LEARNING_RATE,
    NETWORK_LEARNING_RATE,
    OptimizerOptions,
    PartRateOptions,
)
from library.options.parse import OptionValues
from library.options.record import options_record
from library.options.reg_images import RegImageOptions
from library.options.samples import SampleOptions
from library.options.saving import ModelSavingOptions
from library.options.text import TextOptions
from library.options.training import DreamBoothOptions, FineTuningOptions, OutputOptions, TrainingOptions
from library.options.upload import UploadOptions
from library.options.validation import ValidationOptions, check_validation
from library.preview.prompts import SamplePrompt
from library.training.checks.base_model import check_base_model, check_clip_skip
from library.training.checks.logs import check_logs
from library.training.checks.new_word import (
    check_new_word,
    check_word_in_captions,
    template_conflicts,
    template_of,
    with_template,
)
from library.training.checks.options import check_options, check_prediction
from library.training.checks.output import check_output, check_resumed_output, check_space
from library.training.checks.pictures import Pictures, check_pictures
from library.training.checks.resume import Begun, check_resume
from library.training.checks.samples import check_samples
from library.training.checks.save_sizes import embedding_sizes, full_model_sizes, network_sizes
from library.training.checks.uploads import check_uploads
from library.training.progress import RunPlan, plan_run
from library.training.run import BaseModel, EmbeddingRun, FullModelRun, NetworkRun, OutputFiles, Run, RunOptions


def check_network_run(options: OptionValues) -> NetworkRun:
    """Checks options, base model, network, dataset and output of train_network.py.

    Raises:
        UserError: with everything that was found.
    """
    problems = Problems()
    return _check_network(options, _run_options(options, NETWORK_LEARNING_RATE), options.of(NetworkOptions), problems)


def _check_network(options: OptionValues, asked: RunOptions, network: NetworkOptions, problems: Problems) -> NetworkRun:
    kept_as = dtype_of(asked.output.save_precision or asked.training.mixed_precision)
    problems.attempt(lambda: check_network_options(network, kept_as))
    network = without_idle_text_encoder(network)
    check_network_parts(network, options.of(PartRateOptions), problems)
    learning = {UNET: asked.rates.unet, TEXT_ENCODER: asked.rates.text_encoder}
    if network.network_train_unet_only:
        del learning[TEXT_ENCODER]
    if network.network_train_text_encoder_only:
        learning.pop(UNET, None)
    learns = "the network changes what the text encoder makes of captions" if TEXT_ENCODER in learning else None
    found = _check_common(asked, learning, learns, problems)
    width = text_width(found.base.identity) if found.base is not None else None
    if width is not None:
        problems.attempt(lambda: check_network_family(network, width))
    files = _files(asked, problems.attempt(lambda: network_extension(network)) or ".safetensors")
    check_output(asked, files, True, found.plan, problems)
    identity = found.base.identity if found.base is not None else None
    check_space(asked, files, found.plan, network_sizes(asked, network, identity, files), problems)
    return NetworkRun(**vars(_run(asked, found, files, problems)), network=network_in_force(network))


def check_embedding_run(options: OptionValues) -> EmbeddingRun:
    """Checks options, base model, new word, dataset and output of train_textual_inversion.py.

    Raises:
        UserError: with everything that was found.
    """
    problems = Problems()
    asked, embedding = _run_options(options, EMBEDDING_LEARNING_RATE), options.of(EmbeddingOptions)
    check_embedding(embedding, asked.text, asked.memory, problems)
    template = template_of(embedding)
    if template is not None:  # captions are not read, so none can be missing
        asked = replace(asked, data=replace(asked.data, allow_missing_captions=True))
    changes = "the embedding changes what the text encoder makes of captions"
    found = _check_common(asked, {EMBEDDING: asked.rates.asked}, changes, problems)
    word = check_new_word(embedding, found.base.identity if found.base else None, problems)
    notes: list[str] = []
    if found.pictures is not None and template is not None:
        template_conflicts(found.pictures.index.datasets, problems)
        found = replace(found, pictures=replace(found.pictures, index=with_template(found.pictures.index, template)))
        notes.append(f"captions: the template is trained in their place: {template}")
    if found.pictures is not None and word is not None:
        notes += check_word_in_captions(found.pictures.index, word.alias, problems, asked.text)
    files = _files(asked, f".{embedding.save_model_as or SAFETENSORS}")
    check_output(asked, files, True, found.plan, problems)
    identity = found.base.identity if found.base is not None else None
    check_space(asked, files, found.plan, embedding_sizes(asked, word, identity, files), problems)
    run = _run(asked, found, files, problems)
    if word is None:
        raise UserError(problems)
    return EmbeddingRun(**vars(run), word=word, notes=tuple(notes))


def check_full_model_run(options: OptionValues) -> FullModelRun:
    """Checks options, base model, dataset and output of train_db.py.

    Raises:
        UserError: with everything that was found.
    """
    stops = options.of(DreamBoothOptions).stop_text_encoder_training
    trains_text_encoder = stops is None or stops > 0
    return _check_full_model(
        options, _LearningText(trains_text_encoder, stops if trains_text_encoder else None), "dreambooth"
    )


def check_fine_tuning_run(options: OptionValues) -> FullModelRun | NetworkRun:
    """Checks options, base model, dataset and output of fine_tune.py; with `--hypernetwork_module` it trains a network.

    Raises:
        UserError: with everything that was found.
    """
    tuning = options.of(FineTuningOptions)
    if tuning.hypernetwork_module is None and tuning.hypernetwork_weights is None:
        return _check_full_model(options, _LearningText(tuning.train_text_encoder, None), "finetuning")
    problems = Problems()
    check_hypernetwork(tuning, options, problems)
    network = NetworkOptions(
        network_module=tuning.hypernetwork_module or "networks.hypernetwork",
        network_weights=tuning.hypernetwork_weights,
        network_train_unet_only=True,
    )
    return _check_network(options, _run_options(options, NETWORK_LEARNING_RATE), network, problems)


class _LearningText(NamedTuple):
    """Whether the text encoder of a whole model learns, and the updates after which it stops; None for the end."""

    learns: bool
    stops: int | None


def _check_full_model(options: OptionValues, text: _LearningText, tracker: str) -> FullModelRun:
    problems = Problems()
    asked, saving = _run_options(options, MODEL_LEARNING_RATE), options.of(ModelSavingOptions)
    learning = {UNET: asked.rates.unet} | ({TEXT_ENCODER: asked.rates.text_encoder} if text.learns else {})
    check_part_rates(options.of(PartRateOptions), text.learns, problems)
    found = _check_common(asked, learning, "the text encoder is trained" if text.learns else None, problems)
    output = asked.output
    # where the base model is not understood, its form is not known either; the other checks still have their say
    loaded = found.base.identity.form if found.base else saving.save_model_as or "safetensors"
    form = problems.attempt(lambda: choose_form(saving.save_model_as, saving.use_safetensors, loaded)) or loaded
    files = _files(asked, EXTENSIONS.get(form, ""))
    # where the name is refused, the other checks still have their say
    target = problems.attempt(lambda: SaveTarget(files.result, form))
    if not is_single_file(form):
        problems.attempt(lambda: refuse_other_folder(files.result))
        if files.average is not None:
            problems.attempt(lambda: refuse_other_folder(average_file(files.result)))
    elif target is not None and not files.result.exists() and not output.overwrite:
        for path in files_in_the_way(target):
            problems.add("would be replaced by the model's own", str(path), "move it away, or give --overwrite")
    check_output(asked, files, is_single_file(form), found.plan, problems)
    if found.base is not None:
        sizes = full_model_sizes(asked, found.base.identity, files, text.learns)
        check_space(asked, files, found.plan, sizes, problems)
    run = _run(asked, found, files, problems)
    return FullModelRun(
        **vars(run),
        saving=saving,
        form=form,
        trains_text_encoder=text.learns,
        text_encoder_stops=text.stops,
        tracker=tracker,
    )


@dataclass(frozen=True)
class _Found:
    """What the checks of model and pictures gave; None where they found mistakes, or are not asked for."""

    base: BaseModel | None
    pictures: Pictures | None
    plan: RunPlan | None
    prompts: tuple[SamplePrompt, ...]


def _run_options(options: OptionValues, learning_rate: float) -> RunOptions:
    """The options that all scripts have; `learning_rate` is the script's own default."""
    optimizer = options.of(OptimizerOptions)
    if optimizer.learning_rate is None:  # what is told and kept is what happens
        optimizer = replace(optimizer, learning_rate=1.0 if finds_rate_itself(optimizer) else learning_rate)
    rate = optimizer.learning_rate or learning_rate
    data, output = options.of(DataOptions), options.of(OutputOptions)
    return RunOptions(
        model=options.of(ModelOptions),
        data=data,
        reg_images=options.of(RegImageOptions),
        caching=options.of(CachingOptions),
        text=options.of(TextOptions),
        training=options.of(TrainingOptions),
        objective=options.of(ObjectiveOptions),
        optimizer=optimizer,
        memory=options.of(MemoryOptions),
        validation=options.of(ValidationOptions),
        output=replace(output, overwrite=output.overwrite or data.debug_dataset),  # what only shows replaces nothing
        keeping=options.of(KeepingOptions),
        samples=options.of(SampleOptions),
        logs=options.of(LogOptions),
        upload=options.of(UploadOptions),
        rates=part_rates(options.of(PartRateOptions) if options.has(PartRateOptions) else PartRateOptions(), rate),
        record=options_record(options),
    )


def _check_common(
    asked: RunOptions, learning: Mapping[str, float], text_encoder_learns: str | None, problems: Problems
) -> _Found:
    """What every script's run has to get right.

    Args:
        learning: the rates of the parts that train.
        text_encoder_learns: why the outputs of the text encoder change; None where they do not.
    """
    check_options(asked, learning, text_encoder_learns, problems)
    base = check_base_model(asked.model, problems)
    if base is not None:
        check_clip_skip(base.identity, asked.text, problems)
    check_prediction(asked, base.prediction_type if base else None, problems)
    training, masked_loss = asked.training, asked.objective.masked_loss
    steps = training.max_train_steps if training.max_train_epochs is None else None
    pictures = problems.attempt(
        lambda: check_pictures(
            asked.data, asked.caching, asked.text, steps, asked.reg_images, training.seed, masked_loss
        )
    )
    held_out = None if pictures is None else int(pictures.index.is_validation.sum())
    check_validation(asked.validation, asked.data, held_out, problems)
    plan = _plan(training, pictures)
    check_scheduler(asked.optimizer, learning, plan.total_updates if plan else steps, problems)
    check_logs(asked.logs, problems)
    return _Found(
        base,
        pictures,
        plan,
        prompts=check_samples(asked.samples, training.seed, _resolution(pictures), plan, problems),
    )


def _resolution(pictures: Pictures | None) -> Size | None:
    """Of the first dataset that is trained; None where it cannot be known."""
    datasets = [] if pictures is None else [d for d in pictures.description.datasets if not d.is_for_validation()]
    return datasets[0].resolution if datasets else None


def _plan(training: TrainingOptions, pictures: Pictures | None) -> RunPlan | None:
    """The length of the run; None where it cannot be known."""
    if pictures is None or (training.max_train_steps is None and training.max_train_epochs is None):
        return None
    planner = Planner(
        pictures.index,
        pictures.placements,
        [dataset.batch_size for dataset in pictures.index.datasets],
        training.seed,
        training.gradient_accumulation_steps,
        launched_processes(),
    )
    return plan_run(planner, training.max_train_steps, training.max_train_epochs)


def _run(asked: RunOptions, found: _Found, files: OutputFiles, problems: Problems) -> Run:
    resume = check_resume(asked, files, Begun(found.base, found.pictures, found.plan), problems)
    check_resumed_output(asked, files, found.plan, resume.folder if resume else None, problems)
    # last, for the Hub makes a repository only where nothing else is wrong; what only shows uploads nothing
    upload = None if asked.data.debug_dataset else check_uploads(asked.upload, asked.keeping, problems)
    if found.base is None or found.pictures is None or problems:
        raise UserError(problems)
    pictures = found.pictures
    return Run(
        asked,
        found.base,
        pictures.description,
        pictures.index,
        pictures.placements,
        files,
        resume,
        found.prompts,
        upload,
    )


def _files(asked: RunOptions, extension: str) -> OutputFiles:
    return OutputFiles(
        Path(str(asked.output.output_dir)), asked.output.output_name, extension, keeps_average=asked.validation.ema
    )
