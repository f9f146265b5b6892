"""Network modules by their dotted names, and what can be known of a network before a model is loaded."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch

from library.core.errors import Problems, UserError
from library.models.files.weights import open_weights
from library.options.network import (
    NetworkOptions,
    check_network_files,
    network_alpha_in_force,
    network_dim_in_force,
)

MODULE = "--network_module"
ARGUMENTS = "--network_args"
DEFAULT_EXTENSION = ".safetensors"
_OURS = "networks"
_DOWN, _ALPHA = ".lora_down.weight", ".alpha"
_SCALAR = ((), (1,))

AnswerT = TypeVar("AnswerT")


def import_network_module(name: str) -> ModuleType:
    """The module `--network_module` names.

    Raises:
        UserError: when it cannot be imported or does not follow the protocol.
    """
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a module of others may fail in any way
        if not isinstance(error, ImportError) and name.partition(".")[0] == _OURS:
            raise
        fix = "networks.lora is built in; others need their package installed"
        raise UserError.of(f"cannot import {name}: {_said(error)}", MODULE, fix) from error
    if not callable(getattr(module, "create_network", None)):
        raise UserError.of(f"{name} has no create_network", MODULE, "name a network module")
    return module


def is_ours(module: ModuleType) -> bool:
    """Whether a module comes with this program; those of others may refuse their arguments in any way."""
    return module.__name__.partition(".")[0] == _OURS


def ask_module(module: ModuleType, options: NetworkOptions, flag: str, question: Callable[[], AnswerT]) -> AnswerT:
    """The answer of a module. Whatever one of others raises becomes a sentence; errors of ours are told as they are.

    Args:
        flag: the option that made us ask.

    Raises:
        UserError: the module refuses.
    """
    try:
        return question()
    except Exception as error:
        is_full = isinstance(error, MemoryError) or "memory" in str(error)  # whoever trains tells what to do about it
        if is_ours(module) or is_full or isinstance(error, UserError):
            raise
        where = flag if not options.network_args else f"{flag}, {ARGUMENTS} {' '.join(options.network_args)}"
        what = f"{module.__name__} refuses: {type(error).__name__}: {_said(error)}"
        raise UserError.of(what, where, "look at the module's own manual") from error


def _said(error: Exception) -> str:
    """What an error says; the line that raised it where it says nothing, as `assert` does."""
    frames = traceback.extract_tb(error.__traceback__)
    return str(error) or (frames[-1].line if frames else None) or type(error).__name__


def parse_network_args(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a dict.

    Raises:
        UserError: for a word without `=`, or a key that is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError.of(f"{word!r} is not key=value", "--network_args", "write key=value without spaces")
        if name in found:
            raise UserError.of(f"{name} is given twice", "--network_args", "give it once")
        found[name] = value
    return found


def drops_layers(options: NetworkOptions) -> bool:
    """Whether a module of others may leave whole layers out of a batch: it was given a dropout of its own kind."""
    arguments = parse_network_args(options.network_args)
    return not is_ours(import_network_module(options.network_module)) and any("dropout" in name for name in arguments)


def network_extension(options: NetworkOptions) -> str:
    """The ending of the trained file: that of `--save_model_as`, else the module's own, else .safetensors. A module
    that cannot be imported is told by `check_network_options`."""
    if options.save_model_as is not None:
        return f".{options.save_model_as}"
    try:
        return str(getattr(import_network_module(options.network_module), "FILE_EXTENSION", DEFAULT_EXTENSION))
    except UserError:
        return DEFAULT_EXTENSION


def without_idle_text_encoder(options: NetworkOptions) -> NetworkOptions:
    """The options with the U-Net alone where the module has nothing for the text encoder: TRAINS_TEXT_ENCODER."""
    try:
        module = import_network_module(options.network_module)
    except UserError:  # told by `check_network_options`
        return options
    if getattr(module, "TRAINS_TEXT_ENCODER", True) or options.network_train_text_encoder_only:
        return options
    return replace(options, network_train_unet_only=True)


def rank_and_alpha(module: ModuleType, options: NetworkOptions) -> tuple[int | None, float | None]:
    """What a new network is asked for; without defaults where the module says that it has neither: HAS_RANK."""
    if getattr(module, "HAS_RANK", True):
        return network_dim_in_force(options), network_alpha_in_force(options)
    return options.network_dim, options.network_alpha


def network_in_force(options: NetworkOptions) -> NetworkOptions:
    """The options with rank and alpha filled in; None where a file has several, or there is none.

    Raises:
        UserError: when the file of `--dim_from_weights` cannot be read.
    """
    dim, alpha = rank_and_alpha(import_network_module(options.network_module), options)
    if options.dim_from_weights and options.network_weights is not None:
        file = open_weights(Path(options.network_weights))
        ranks = {key.removesuffix(_DOWN): shape[0] for key, shape in file.shapes.items() if key.endswith(_DOWN)}
        told = {key.removesuffix(_ALPHA): key for key in file.shapes if key.endswith(_ALPHA)}
        # without an alpha, and with one of 0, a module has that of its rank
        alphas = {name: float(file.read(key).flatten()[0]) for name, key in told.items() if file.shapes[key] in _SCALAR}
        in_force = {alphas.get(name, 0.0) or float(ranks[name]) for name in ranks} or set(alphas.values())
        dims = set(ranks.values())
        dim = dims.pop() if len(dims) == 1 else None
        alpha = in_force.pop() if len(in_force) == 1 else None
    return replace(options, network_dim=dim, network_alpha=alpha)


def check_network_options(options: NetworkOptions, save_dtype: torch.dtype | None = None) -> None:
    """Everything that can be known of the network before a model is loaded. A module may have more to say in functions
    `check_options(network_dim, network_args, weights)` and `check_parts(network_args, text_encoder, unet)`; the first
    is asked about each file of `--base_weights` as well, with network_dim None: all ranks come from the file. They are
    given `network_alpha` and `save_dtype`, or `weights`, where they have such parameters.

    Args:
        save_dtype: number format of the file that will be written, where it is known.

    Raises:
        UserError: when module, arguments or files cannot be used.
    """
    problems = Problems()
    check_network_files(options, problems)
    arguments = problems.attempt(lambda: parse_network_args(options.network_args))
    files = {f"--base_weights {name}": Path(name) for name in options.base_weights}
    if options.network_weights is not None:
        files["--network_weights"] = Path(options.network_weights)
    for flag, file in files.items():
        if not file.is_file():
            problems.add(f"{file} is not a file", flag.split()[0], "check the path")
    module = problems.attempt(lambda: import_network_module(options.network_module))
    if module is not None and arguments is not None:
        _check_abilities(module, options, problems)
        _ask_about_options(module, options, arguments, save_dtype, problems)
    problems.raise_if_any()


def check_network_family(options: NetworkOptions, text_width: int) -> None:
    """Whether the files fit the base model's family, where the module can tell it: `check_family(file, where, width)`.

    Args:
        text_width: numbers in a text state of the base model.

    Raises:
        UserError: naming those that were made for another family.
    """
    try:
        module = import_network_module(options.network_module)
    except UserError:  # told by `check_network_options`
        return
    check: Callable[[Path, str, int], None] | None = getattr(module, "check_family", None)
    problems = Problems()
    files = [f"--base_weights {name}" for name in options.base_weights]
    files += [] if options.network_weights is None else [f"--network_weights {options.network_weights}"]
    for where in files:
        file = Path(where.partition(" ")[2])
        if check is not None and file.is_file():
            problems.attempt(partial(ask_module, module, options, where, partial(check, file, where, text_width)))
    problems.raise_if_any()


def _check_abilities(module: ModuleType, options: NetworkOptions, problems: Problems) -> None:
    """What a module cannot do, as far as it shows without a network."""
    for flag, asked in (("--dim_from_weights", options.dim_from_weights), ("--base_weights", options.base_weights)):
        if asked and not callable(getattr(module, "create_network_from_weights", None)):
            problems.add(f"{module.__name__} cannot make a network from a file", flag, f"remove {flag}")
    own_form = getattr(module, "FILE_EXTENSION", None)
    if own_form is not None and network_extension(options) != own_form:
        what, fix = f"files of {module.__name__} are {own_form}, which programs expect", "remove it"
        problems.add(what, f"--save_model_as {options.save_model_as}", fix)
    if options.scale_weight_norms is not None and not getattr(module, "LIMITS_NORMS", True):
        problems.add(f"a network of {module.__name__} cannot limit its norms", "--scale_weight_norms", "remove it")
    if options.dim_from_weights and not is_ours(module):
        # modules of others make a network of what the file holds, and look at nothing else
        for flag, is_given in ((ARGUMENTS, options.network_args), ("--network_dropout", options.network_dropout)):
            if is_given:
                what = f"{module.__name__} takes everything from the file with --dim_from_weights, and would ignore it"
                problems.add(what, flag, f"remove {flag}; or give --network_dim and all arguments of the file instead")


def _ask_about_options(
    module: ModuleType,
    options: NetworkOptions,
    arguments: Mapping[str, str],
    save_dtype: torch.dtype | None,
    problems: Problems,
) -> None:
    """What the module itself says of its options."""

    def ask(flag: str, question: Callable[..., None], *given: object, **more: object) -> None:
        known = inspect.signature(question).parameters
        taken = {name: value for name, value in more.items() if name in known}
        problems.attempt(lambda: ask_module(module, options, flag, lambda: question(*given, **taken)))

    check: Callable[..., None] | None = getattr(module, "check_options", None)
    check_parts: Callable[..., None] | None = getattr(module, "check_parts", None)
    weights = Path(str(options.network_weights))
    file = weights if options.network_weights is not None and weights.is_file() else None
    if check is not None:
        dim, alpha = rank_and_alpha(module, options)
        ask(MODULE, check, dim, arguments, file, network_alpha=alpha, save_dtype=save_dtype)
        for base in map(Path, options.base_weights):
            if base.is_file():
                _check_base(check, base, problems)
    if check_parts is not None:
        trains_text_encoder = not options.network_train_unet_only
        trains_unet = not options.network_train_text_encoder_only
        ask(MODULE, check_parts, arguments, trains_text_encoder, trains_unet, weights=file)


def _check_base(check: Callable[..., None], base: Path, problems: Problems) -> None:
    try:
        check(None, {}, base)
    except UserError as error:
        for problem in error.problems:
            problems.add(problem.what, f"--base_weights {base}", problem.fix)
