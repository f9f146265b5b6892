"""Network modules by their dotted names, and what can be known of a network before a model is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from library.core.errors import Problems, UserError
from library.models.files.weights import open_weights
from library.options.network import (
    NetworkOptions,
    check_network_files,
    network_alpha_in_force,
    network_dim_in_force,
)

MODULE = "--network_module"
DEFAULT_EXTENSION = ".safetensors"
_OURS = "networks"


def import_network_module(name: str) -> ModuleType:
    """The module `--network_module` names.

    Raises:
        UserError: when it cannot be imported or does not follow the protocol.
    """
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        fix = "networks.lora is built in; others need their package installed"
        raise UserError.of(f"cannot import {name}: {error}", MODULE, fix) from error
    if not callable(getattr(module, "create_network", None)):
        raise UserError.of(f"{name} has no create_network", MODULE, "name a network module")
    return module


def is_ours(module: ModuleType) -> bool:
    """Whether a module comes with this program; those of others may refuse their arguments in any way."""
    return module.__name__.partition(".")[0] == _OURS


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


def network_extension(options: NetworkOptions) -> str:
    """The ending of the trained file: that of `--save_model_as`, else the module's own, else .safetensors. A module
    that cannot be imported is told by `check_network_options`."""
    if options.save_model_as is not None:
        return f".{options.save_model_as}"
    try:
        return str(getattr(import_network_module(options.network_module), "FILE_EXTENSION", DEFAULT_EXTENSION))
    except UserError:
        return DEFAULT_EXTENSION


def network_in_force(options: NetworkOptions) -> NetworkOptions:
    """The options with rank and alpha filled in; None where a file has several, or has none.

    Raises:
        UserError: when the file of `--dim_from_weights` cannot be read.
    """
    dim, alpha = network_dim_in_force(options), network_alpha_in_force(options)
    if options.dim_from_weights and options.network_weights is not None:
        file = open_weights(Path(options.network_weights))
        ranks = {shape[0] for key, shape in file.shapes.items() if key.endswith(".lora_down.weight")}
        alphas = {float(file.read(key)) for key, shape in file.shapes.items() if key.endswith(".alpha") and shape == ()}
        dim = ranks.pop() if len(ranks) == 1 else None
        alpha = alphas.pop() if len(alphas) == 1 else None
    return replace(options, network_dim=dim, network_alpha=alpha)


def check_network_options(options: NetworkOptions) -> None:
    """Everything that can be known of the network before a model is loaded. A module may have more to say in functions
    `check_options(network_dim, network_args, weights)` and `check_parts(network_args, text_encoder, unet)`; the first
    is asked about each file of `--base_weights` as well, with network_dim None: all ranks come from the file.

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
        _ask_module(module, options, arguments, problems)
    problems.raise_if_any()


def _ask_module(module: ModuleType, options: NetworkOptions, arguments: Mapping[str, str], problems: Problems) -> None:
    """What the module itself says of its options."""
    for flag, asked in (("--dim_from_weights", options.dim_from_weights), ("--base_weights", options.base_weights)):
        if asked and not callable(getattr(module, "create_network_from_weights", None)):
            problems.add(f"{module.__name__} cannot make a network from a file", flag, f"remove {flag}")
    own_form = getattr(module, "FILE_EXTENSION", None)
    if own_form is not None and network_extension(options) != own_form:
        what, fix = f"files of {module.__name__} are {own_form}, which programs expect", "remove it"
        problems.add(what, f"--save_model_as {options.save_model_as}", fix)
    check: Callable[..., None] | None = getattr(module, "check_options", None)
    check_parts: Callable[..., None] | None = getattr(module, "check_parts", None)
    weights = options.network_weights
    if check is not None:
        exists = weights is not None and Path(weights).is_file()
        file = Path(str(weights)) if exists else None
        dim = network_dim_in_force(options) if exists or not options.dim_from_weights else None
        problems.attempt(lambda: check(dim, arguments, file))
        for base in map(Path, options.base_weights):
            if base.is_file():
                _check_base(check, base, problems)
    if check_parts is not None:
        trains_text_encoder = not options.network_train_unet_only
        trains_unet = not options.network_train_text_encoder_only
        problems.attempt(lambda: check_parts(arguments, trains_text_encoder, trains_unet))


def _check_base(check: Callable[..., None], base: Path, problems: Problems) -> None:
    try:
        check(None, {}, base)
    except UserError as error:
        for problem in error.problems:
            problems.add(problem.what, f"--base_weights {base}", problem.fix)
