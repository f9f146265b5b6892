"""Everything that can be known to be wrong before a model is loaded, gathered and told at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from library.checkpoint.naming import last_file, log_file
from library.core.device import check_precision
from library.core.errors import Problems, UserError
from library.core.optional import import_optional
from library.methods.network import check_network_options
from library.models.files.folder_weights import STEMS, weights_files
from library.models.forms import (
    choose_form,
    files_in_the_way,
    is_single_file,
    refuse_other_folder,
    target_for,
)
from library.models.hub import fetch_weights, locate
from library.models.identify import ModelIdentity, identify, resolve_prediction_type
from library.models.topology import FAMILIES
from library.optim.optimizers import parse_optimizer_args
from library.options.caching import CachingOptions
from library.options.combinations import check_caching, check_embedding, check_length, check_network_parts, check_text
from library.options.data import DataOptions
from library.options.embedding import SAFETENSORS, EmbeddingOptions
from library.options.model import ModelOptions
from library.options.network import NetworkOptions
from library.options.parse import OptionValues
from library.options.saving import ModelSavingOptions
from library.options.text import TextOptions
from library.options.training import (
    EMBEDDING_LEARNING_RATE,
    MODEL_LEARNING_RATE,
    NETWORK_LEARNING_RATE,
    FineTuningOptions,
    OptimizerOptions,
    OutputOptions,
    TrainingOptions,
)
from library.training.new_word import (
    check_new_word,
    check_word_in_captions,
    template_conflicts,
    template_of,
    with_template,
)
from library.training.pictures import Pictures, check_pictures
from library.training.run import BaseModel, EmbeddingRun, FullModelRun, NetworkRun, OutputFiles, Run, RunOptions

if TYPE_CHECKING:
    from library.models.vae_source import VaeIdentity

NEEDED_SPACE = 1 << 28  # 256 MiB: the largest network file in use, its temporary twin, and the logs
_MODEL_FLAG, _VAE_FLAG = "--pretrained_model_name_or_path", "--vae"

ResultT = TypeVar("ResultT")


def check_network_run(options: OptionValues) -> NetworkRun:
    """Checks options, base model, network, dataset and output of train_network.py.

    Raises:
        UserError: with everything that was found.
    """
    problems = Problems()
    asked, network = _run_options(options, NETWORK_LEARNING_RATE), options.of(NetworkOptions)
    check_network_parts(network, problems)
    _attempt(problems, lambda: check_network_options(network))
    learns = None if network.network_train_unet_only else "the network changes what the text encoder makes of captions"
    found = _check_common(asked, learns, problems)
    output = asked.output
    files = _files(output, last_file(Path(str(output.output_dir)), output.output_name, ".safetensors"))
    _check_output(output, files, True, problems)
    _check_space(output, 0, problems)
    return NetworkRun(**vars(_run(asked, found, files, problems)), network=network)


def check_embedding_run(options: OptionValues) -> EmbeddingRun:
    """Checks options, base model, new word, dataset and output of train_textual_inversion.py.

    Raises:
        UserError: with everything that was found.
    """
    problems = Problems()
    asked, embedding = _run_options(options, EMBEDDING_LEARNING_RATE), options.of(EmbeddingOptions)
    check_embedding(embedding, asked.text, problems)
    template = template_of(embedding)
    if template is not None:  # captions are not read, so none can be missing
        asked = replace(asked, data=replace(asked.data, allow_missing_captions=True))
    found = _check_common(asked, "the embedding changes what the text encoder makes of captions", problems)
    word = check_new_word(embedding, found.base.identity if found.base else None, problems)
    notes: list[str] = []
    if found.pictures is not None and template is not None:
        template_conflicts(found.pictures.index.datasets, problems)
        found = replace(found, pictures=replace(found.pictures, index=with_template(found.pictures.index, template)))
        notes.append(f"captions: the template is trained in their place: {template}")
    if found.pictures is not None and word is not None:
        notes += check_word_in_captions(found.pictures.index, word.alias, problems, asked.text)
    output = asked.output
    ending = f".{embedding.save_model_as or SAFETENSORS}"
    files = _files(output, last_file(Path(str(output.output_dir)), output.output_name, ending))
    _check_output(output, files, True, problems)
    _check_space(output, 0, problems)
    run = _run(asked, found, files, problems)
    if word is None:
        raise UserError(problems)
    return EmbeddingRun(**vars(run), word=word, notes=tuple(notes))


def check_space_again(run: FullModelRun) -> None:
    """Room for the trained model, asked when a model of the Hub has been fetched: only then its size is known.

    Raises:
        UserError: the disk is too full.
    """
    problems, output = Problems(), run.options.output
    _check_space(output, _full_model_size(run.base.identity, output), problems)
    problems.raise_if_any()


def check_full_model_run(options: OptionValues) -> FullModelRun:
    """Checks options, base model, dataset and output of train_db.py.

    Raises:
        UserError: with everything that was found.
    """
    return _check_full_model(options, True, "dreambooth")


def check_fine_tuning_run(options: OptionValues) -> FullModelRun:
    """Checks options, base model, dataset and output of fine_tune.py.

    Raises:
        UserError: with everything that was found.
    """
    return _check_full_model(options, options.of(FineTuningOptions).train_text_encoder, "finetuning")


def _check_full_model(options: OptionValues, trains_text_encoder: bool, tracker: str) -> FullModelRun:
    problems = Problems()
    asked, saving = _run_options(options, MODEL_LEARNING_RATE), options.of(ModelSavingOptions)
    found = _check_common(asked, "the text encoder is trained" if trains_text_encoder else None, problems)
    output = asked.output
    # where the base model is not understood, its form is not known either; the other checks still have their say
    loaded = found.base.identity.form if found.base else saving.save_model_as or "safetensors"
    form = _attempt(problems, lambda: choose_form(saving.save_model_as, saving.use_safetensors, loaded)) or loaded
    stem = last_file(Path(str(output.output_dir)), output.output_name, "").name
    target = _attempt(problems, lambda: target_for(Path(str(output.output_dir)), stem, form))
    if target is None:
        raise UserError(problems)
    files = _files(output, target.path)
    if not is_single_file(form):
        _attempt(problems, lambda: refuse_other_folder(target.path))
    elif not target.path.exists() and not output.overwrite:
        for path in files_in_the_way(target):
            problems.add("would be replaced by the model's own", str(path), "move it away, or give --overwrite")
    _check_output(output, files, is_single_file(form), problems)
    if found.base is not None:
        _check_space(output, _full_model_size(found.base.identity, output), problems)
    run = _run(asked, found, files, problems)
    return FullModelRun(**vars(run), saving=saving, form=form, trains_text_encoder=trains_text_encoder, tracker=tracker)


@dataclass(frozen=True)
class _Found:
    """What the checks of model and pictures gave; None where they found mistakes."""

    base: BaseModel | None
    pictures: Pictures | None


def _run_options(options: OptionValues, learning_rate: float) -> RunOptions:
    """The options that all scripts have; `learning_rate` is the script's own default."""
    optimizer = options.of(OptimizerOptions)
    if optimizer.learning_rate is None:
        optimizer = replace(optimizer, learning_rate=learning_rate)  # what is told and kept is what happens
    data, output = options.of(DataOptions), options.of(OutputOptions)
    return RunOptions(
        model=options.of(ModelOptions),
        data=data,
        caching=options.of(CachingOptions),
        text=options.of(TextOptions),
        training=options.of(TrainingOptions),
        optimizer=optimizer,
        output=replace(output, overwrite=output.overwrite or data.debug_dataset),  # what only shows replaces nothing
        learning_rate=optimizer.learning_rate or learning_rate,
    )


def _check_common(asked: RunOptions, text_encoder_learns: str | None, problems: Problems) -> _Found:
    """What every script's run has to get right."""
    check_length(asked.training, problems)
    check_text(asked.text, problems)
    check_caching(asked.caching, asked.text, text_encoder_learns, problems)
    _attempt(problems, lambda: check_precision(asked.training.mixed_precision))
    _attempt(problems, lambda: parse_optimizer_args(asked.optimizer.optimizer_args))
    if asked.output.logging_dir is not None:
        _attempt(problems, lambda: import_optional("tensorboard", "tensorboard", "--logging_dir"))
    base = check_base_model(asked.model, problems)
    if base is not None:
        _check_clip_skip(base.identity, asked.text, problems)
    steps = asked.training.max_train_steps if asked.training.max_train_epochs is None else None
    return _Found(base, _attempt(problems, lambda: check_pictures(asked.data, asked.caching, asked.text, steps)))


def _run(asked: RunOptions, found: _Found, files: OutputFiles, problems: Problems) -> Run:
    if found.base is None or found.pictures is None or problems:
        raise UserError(problems)
    pictures = found.pictures
    return Run(asked, found.base, pictures.description, pictures.index, pictures.placements, files)


def check_base_model(model: ModelOptions, problems: Problems) -> BaseModel | None:
    """What `--pretrained_model_name_or_path` and `--vae` name; None, with the mistakes gathered, if it is unclear."""
    located = _attempt(problems, lambda: locate(str(model.pretrained_model_name_or_path), _MODEL_FLAG))
    identity = _attempt(problems, lambda: identify(located.path)) if located else None
    vae = _attempt(problems, lambda: _find_vae(str(model.vae))) if model.vae is not None else None
    if located is None or identity is None:
        return None
    predicts = _attempt(problems, lambda: resolve_prediction_type(identity, model.v2, model.v_parameterization))
    if predicts is None:
        return None
    named = replace(identity, name=located.repo_id or identity.name)
    return BaseModel(named, predicts, located.repo_id, *(vae or ()))


def _find_vae(name: str) -> tuple[VaeIdentity, str]:
    """The VAE that is named, and its name without folders. One of the Hub is fetched at once: it is small."""
    from library.models.vae_source import identify_vae  # with diffusers, which takes seconds to import

    located = locate(name, _VAE_FLAG)
    if located.repo_id is not None:
        return identify_vae(fetch_weights(located.repo_id, _VAE_FLAG, ("vae",))), located.repo_id
    return identify_vae(located.path), located.path.name


def _check_clip_skip(identity: ModelIdentity, text: TextOptions, problems: Problems) -> None:
    if text.clip_skip is None:
        return
    layers = FAMILIES[identity.family].text_layers
    if identity.family == "sd2":
        what = f"{identity.path} is Stable Diffusion 2.x, which always uses the penultimate layer of its text encoder"
        problems.add(what, "--clip_skip", "remove --clip_skip")
    elif text.clip_skip > layers:
        what = f"the text encoder has {layers} layers, layer {text.clip_skip} from the end does not exist"
        problems.add(what, "--clip_skip", "give 1 or 2, as the base model was trained")


def _attempt(problems: Problems, check: Callable[[], ResultT]) -> ResultT | None:
    """The result of a check, or None with its problems gathered."""
    try:
        return check()
    except UserError as error:
        problems.extend(error.problems)
        return None


def _files(output: OutputOptions, result: Path) -> OutputFiles:
    return OutputFiles(result, log_file(Path(str(output.output_dir)), output.output_name))


def _full_model_size(identity: ModelIdentity, output: OutputOptions) -> int:
    """Bytes that the trained model may take: those of the base model's weights, twice as many where half precision is
    saved as float32; 0 where they are still to be fetched."""
    grown = 2 if output.save_precision == "float" else 1
    if identity.layout == "single_file":
        return grown * identity.path.stat().st_size
    try:
        files = [path for part, stem in STEMS.items() for path in weights_files(identity.path / part, stem)]
    except UserError:  # told when they are loaded
        return 0
    return grown * sum(path.stat().st_size for path in files)


def _check_output(output: OutputOptions, files: OutputFiles, is_file: bool, problems: Problems) -> None:
    """Whether result (a file, or a folder) and logs can be written where they are asked for."""
    folder = Path(str(output.output_dir))
    folders = {"--output_dir": folder}
    if output.logging_dir is not None:
        folders["--logging_dir"] = Path(output.logging_dir)
    blocked = False
    for flag, named in folders.items():
        file = next((path for path in (named, *named.parents) if path.is_file()), None)
        if file is not None:
            problems.add(f"{file} is a file, a folder is needed", flag, "name another folder")
            blocked = True
    if blocked:
        return
    if is_file and files.result.is_dir():
        what = f"{files.result} is a folder, and a file is to be written there"
        problems.add(what, "--output_name", "choose another name")
    # a log alone is left of a run that was stopped; it stands in nobody's way
    if files.result.exists() and not output.overwrite:
        problems.add(
            f"{files.result} of an earlier run would be lost",
            "--output_dir, --output_name",
            "choose another --output_name, move the old file away, or give --overwrite",
        )


def _check_space(output: OutputOptions, model_size: int, problems: Problems) -> None:
    folder, needed = Path(str(output.output_dir)).absolute(), NEEDED_SPACE + model_size
    nearest = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        fix = f"free {needed >> 20} MiB or choose another folder"
        problems.add(f"only {free >> 20} MiB are free on its disk", "--output_dir", fix)
