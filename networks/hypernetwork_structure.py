"""What a hypernetwork is made of, and the words of `--network_args` that say it.

The names and their meaning are those of the Web UI, which made up the format.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from library.core.errors import UserError

# By the Web UI's names, which are those of torch's classes but for `swish`; those that need arguments, have weights of
# their own or look at more than one number are left out.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "linear": nn.Identity,
        "swish": nn.Hardswish,
        **{
            kind.__name__.lower(): kind
            for kind in (
                *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Mish, nn.SELU, nn.CELU),
                *(nn.ReLU6, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Hardtanh, nn.Hardsigmoid),
                *(nn.LogSigmoid, nn.Tanhshrink, nn.Hardswish),
            )
        },
    }
)
INITIALIZATIONS = ("Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal")
DROPOUT_RATE = 0.3  # of `use_dropout`, as in the Web UI
ARGUMENTS = "--network_args"
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class Structure:
    """The form that all modules of a hypernetwork share.

    Attributes:
        layer_structure: widths of the layers as multiples of the module's own; the first and the last are 1.
        activation_func: of `ACTIVATIONS`, behind every linear layer but the last.
        weight_initialization: of `INITIALIZATIONS`.
        is_layer_norm: a layer norm behind every linear layer and its activation.
        activate_output: the activation behind the last linear layer as well.
        dropout_structure: the share dropped behind each width of `layer_structure`; the first and the last are 0.
    """

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation_func: str = "linear"
    weight_initialization: str = "Normal"
    is_layer_norm: bool = False
    activate_output: bool = False
    dropout_structure: tuple[float, ...] = (0, 0, 0)


def parse_arguments(network_args: Mapping[str, str]) -> dict[str, Any]:
    """The values of those arguments that are given.

    Raises:
        UserError: an argument does not exist, or its value means nothing.
    """
    for name in network_args:
        if name not in _PARSERS:
            near = difflib.get_close_matches(name, _PARSERS, 1)
            fix = f"did you mean {near[0]}?" if near else f"networks.hypernetwork knows {', '.join(_PARSERS)}"
            raise UserError.of(f"{name} is not an argument of networks.hypernetwork", ARGUMENTS, fix)
    return {name: _PARSERS[name](name, text.strip()) for name, text in network_args.items()}


def new_structure(given: Mapping[str, Any], dropout: float | None = None) -> Structure:
    """The structure of a new hypernetwork.

    Args:
        given: see `parse_arguments`.
        dropout: rate of `--network_dropout`, which takes the place of `DROPOUT_RATE`.

    Raises:
        UserError: values contradict each other, or one would do nothing.
    """
    layers = given.get("layer_structure", Structure.layer_structure)
    drops = dropout_structure(given, layers, dropout)
    plain = {field.name: given[field.name] for field in fields(Structure) if field.name in given}
    structure = Structure(**{**plain, "layer_structure": layers, "dropout_structure": drops})
    is_linear, ends = structure.activation_func == "linear", len(layers) == 2
    if structure.activate_output and is_linear:
        raise _idle("activate_output", "the activation function is linear", "give activation_func, such as relu")
    if not is_linear and ends and not structure.activate_output:
        raise _idle("activation_func", "there is one layer alone, and its output has none", "give activate_output=true")
    return structure


def structure_of_file(given: Mapping[str, Any], found: Structure, where: str, dropout: float | None) -> Structure:
    """The structure of a file that is gone on from; only dropout may be asked for anew.

    Raises:
        UserError: what is given contradicts the file, or would do nothing.
    """
    if "weight_initialization" in given:
        raise _idle("weight_initialization", "the weights come from a file", "leave it out")
    for name in ("layer_structure", "activation_func", "is_layer_norm", "activate_output"):
        if name in given and given[name] != getattr(found, name):
            what = f"{name}={_shown(given[name])} is asked for, and {where} has {_shown(getattr(found, name))}"
            raise UserError.of(what, ARGUMENTS, "leave it out: the file tells it")
    if dropout is None and not any("dropout" in name for name in given):
        return found
    return replace(found, dropout_structure=dropout_structure(given, found.layer_structure, dropout))


def dropout_structure(
    given: Mapping[str, Any], layers: tuple[float, ...], dropout: float | None = None
) -> tuple[float, ...]:
    """The share that is dropped behind each width of `layers`.

    Raises:
        UserError: values contradict each other, or one would do nothing.
    """
    asked = given.get("use_dropout", dropout is not None)
    if "dropout_structure" in given:
        return _own_dropout(given, layers, dropout)
    if not asked:
        if given.get("last_layer_dropout"):
            raise _idle("last_layer_dropout", "dropout is off", "give use_dropout=true as well")
        if dropout is not None:
            raise UserError.of("use_dropout is switched off", f"--network_dropout, {ARGUMENTS}", "leave one out")
        return (0,) * len(layers)
    rate = DROPOUT_RATE if dropout is None else dropout
    shares = usual_dropout(layers, rate, given.get("last_layer_dropout", True))
    if not any(shares):
        raise _idle("use_dropout", "no layer is left that drops anything", "give more layers, or a rate above 0")
    return shares


def usual_dropout(layers: tuple[float, ...], rate: float, in_last: bool) -> tuple[float, ...]:
    """Behind every inner layer; `in_last` says whether the last inner one is among them."""
    inner = len(layers) - 2
    return (0, *(rate if number < inner - 1 or in_last else 0 for number in range(inner)), 0)


def _own_dropout(given: Mapping[str, Any], layers: tuple[float, ...], dropout: float | None) -> tuple[float, ...]:
    shares: tuple[float, ...] = given["dropout_structure"]
    others = [name for name in ("use_dropout", "last_layer_dropout") if name in given and not given[name]]
    if dropout is not None or others or not any(shares):
        what = "dropout_structure tells every share that is dropped"
        other = "--network_dropout" if dropout is not None else " and ".join(others) or "dropout_structure itself"
        raise UserError.of(f"{what}, and {other} speaks against it", ARGUMENTS, "leave one of them out")
    if len(shares) != len(layers) or shares[0] or shares[-1] or max(shares) >= 1:
        what = f"dropout_structure={_shown(shares)} does not fit to layer_structure={_shown(layers)}"
        fix = "give as many shares below 1, the first and the last of them 0"
        raise UserError.of(what, ARGUMENTS, fix)
    return shares


def _idle(name: str, why: str, fix: str) -> UserError:
    return UserError.of(f"{name} would do nothing: {why}", ARGUMENTS, fix)


def _shown(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)


# --- values -----------------------------------------------------------------------------------------------------------


def _wrong(name: str, text: str, expected: str) -> UserError:
    return UserError.of(f"{name}={text} is not {expected}", ARGUMENTS, f"write for example {name}={_EXAMPLES[name]}")


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.strip("[]()").split(","))
    except ValueError:
        raise _wrong(name, text, "a list of numbers with commas between them") from None
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise _wrong(name, text, "a list of numbers from 0 on")
    return tuple(int(value) if value.is_integer() else value for value in values)


def _layers(name: str, text: str) -> tuple[float, ...]:
    values = _numbers(name, text)
    if len(values) < 2 or values[0] != 1 or values[-1] != 1 or min(values) <= 0:
        raise _wrong(name, text, "a list of multiples above 0 that begins and ends with 1")
    return values


def _sizes(name: str, text: str) -> tuple[int, ...]:
    values = _numbers(name, text)
    if len(set(values)) < len(values) or not all(isinstance(value, int) and value > 0 for value in values):
        raise _wrong(name, text, "a list of different widths")
    return tuple(int(value) for value in values)


def _switch(name: str, text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise _wrong(name, text, "true or false")
    return text.lower() in _TRUE


def _activation(name: str, text: str) -> str:
    if text.lower() not in ACTIVATIONS:
        raise _wrong(name, text, f"one of {', '.join(ACTIVATIONS)}")
    return text.lower()


def _initialization(name: str, text: str) -> str:
    known = {kind.lower(): kind for kind in INITIALIZATIONS}
    if text.lower() not in known:
        raise _wrong(name, text, f"one of {', '.join(INITIALIZATIONS)}")
    return known[text.lower()]


_PARSERS: Mapping[str, Callable[[str, str], Any]] = MappingProxyType(
    {
        "layer_structure": _layers,
        "activation_func": _activation,
        "weight_initialization": _initialization,
        "is_layer_norm": _switch,
        "activate_output": _switch,
        "use_dropout": _switch,
        "last_layer_dropout": _switch,
        "dropout_structure": _numbers,
        "sizes": _sizes,
    }
)
_EXAMPLES = {
    "layer_structure": "1,2,1",
    "activation_func": "relu",
    "weight_initialization": "XavierUniform",
    "is_layer_norm": "true",
    "activate_output": "true",
    "use_dropout": "true",
    "last_layer_dropout": "false",
    "dropout_structure": "0,0.3,0",
    "sizes": "768,320,640,1280",
}
