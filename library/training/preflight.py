"""Everything that can be known to be wrong before a model is loaded, gathered and told at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from library.checkpoint.naming import last_file, log_file
from library.core.device import check_precision
from library.core.errors import Problems, UserError
from library.core.optional import import_optional
from library.data.config import Description, read_description
from library.data.index import ImageIndex, build_index
from library.data.placement import Placements, place_all
from library.methods.network import check_network_options
from library.models.identify import ModelIdentity, identify, resolve_prediction_type
from library.optim.optimizers import parse_optimizer_args
from library.options.combinations import check_length, check_network_parts
from library.options.data import DataOptions
from library.options.model import ModelOptions
from library.options.network import NetworkOptions
from library.options.parse import OptionValues
from library.options.training import OptimizerOptions, OutputOptions, TrainingOptions

NEEDED_SPACE = 1 << 28  # 256 MiB: the largest network file in use, its temporary twin, and the logs

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class OutputFiles:
    """Where the run writes."""

    network: Path
    log: Path


@dataclass(frozen=True)
class NetworkRun:
    """A run of train_network.py that was found to be in order."""

    model: ModelOptions
    data: DataOptions
    network: NetworkOptions
    training: TrainingOptions
    optimizer: OptimizerOptions
    output: OutputOptions
    identity: ModelIdentity
    prediction_type: str
    description: Description
    index: ImageIndex
    placements: Placements
    files: OutputFiles


def check_network_run(options: OptionValues) -> NetworkRun:
    """Checks options, base model, network, dataset and output of train_network.py.

    Raises:
        UserError: with everything that was found.
    """
    problems = Problems()
    model, data = options.of(ModelOptions), options.of(DataOptions)
    network, training, output = options.of(NetworkOptions), options.of(TrainingOptions), options.of(OutputOptions)
    check_length(training, problems)
    check_network_parts(network, problems)
    optimizer = options.of(OptimizerOptions)
    _attempt(problems, lambda: check_network_options(network))
    _attempt(problems, lambda: check_precision(training.mixed_precision))
    _attempt(problems, lambda: parse_optimizer_args(optimizer.optimizer_args))
    files = _check_output(output, problems)
    if output.logging_dir is not None:
        _attempt(problems, lambda: import_optional("tensorboard", "tensorboard", "--logging_dir"))
    base = _attempt(problems, lambda: _check_base_model(model))
    pictures = _attempt(problems, lambda: _check_pictures(data))
    if base is None or pictures is None or problems:
        raise UserError(problems)
    return NetworkRun(
        model=model,
        data=data,
        network=network,
        training=training,
        optimizer=optimizer,
        output=output,
        identity=base.identity,
        prediction_type=base.prediction_type,
        description=pictures.description,
        index=pictures.index,
        placements=place_all(pictures.index),
        files=files,
    )


@dataclass(frozen=True)
class _BaseModel:
    identity: ModelIdentity
    prediction_type: str


@dataclass(frozen=True)
class _Pictures:
    description: Description
    index: ImageIndex


def _check_base_model(model: ModelOptions) -> _BaseModel:
    identity = identify(Path(str(model.pretrained_model_name_or_path)))
    return _BaseModel(identity, resolve_prediction_type(identity, model.v2, model.v_parameterization))


def _check_pictures(data: DataOptions) -> _Pictures:
    problems = Problems()
    description = read_description(data, problems)
    # pictures are looked at even when their description has mistakes: a broken one should be known at once
    index = _attempt(problems, lambda: build_index(description, data.prior_loss_weight))
    if index is None or problems:
        raise UserError(problems)
    return _Pictures(description, index)


def _attempt(problems: Problems, check: Callable[[], ResultT]) -> ResultT | None:
    """The result of a check, or None with its problems gathered."""
    try:
        return check()
    except UserError as error:
        problems.extend(error.problems)
        return None


def _check_output(output: OutputOptions, problems: Problems) -> OutputFiles:
    folder = Path(str(output.output_dir))
    files = OutputFiles(last_file(folder, output.output_name, ".safetensors"), log_file(folder, output.output_name))
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
        return files
    # a log alone is left of a run that was stopped; it stands in nobody's way
    if files.network.exists() and not output.overwrite:
        problems.add(
            f"{files.network} of an earlier run would be lost",
            "--output_dir, --output_name",
            "choose another --output_name, move the old file away, or give --overwrite",
        )
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(nearest).free
    if free < NEEDED_SPACE:
        fix = f"free {NEEDED_SPACE >> 20} MiB or choose another folder"
        problems.add(f"only {free >> 20} MiB are free on its disk", "--output_dir", fix)
    return files
