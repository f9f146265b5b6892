"""Which class an optimizer's name stands for; nothing is imported before it is known to be wanted."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from library.core.errors import Problems, UserError, suggest_name
from library.core.optional import import_optional
from library.options.optimizer import OptimizerOptions

FLAG = "--optimizer_type"
DEFAULT_NAME = "AdamW"

_SWITCHES = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
_PIP_NAMES = {"lion_pytorch": "lion-pytorch"}  # where it is not the name that is imported
_NESTEROV = (("momentum", 0.9), ("nesterov", True))
_NOT_FOR_GRADIENTS_LIKE_OURS = {"SparseAdam": "it learns from sparse gradients only, and there are none here"}


@dataclass(frozen=True)
class KnownOptimizer:
    """A name of ours: the class it stands for, and arguments it adds because the class does something else without."""

    path: str
    fills: tuple[tuple[str, Any], ...] = ()


KNOWN: Mapping[str, KnownOptimizer] = {
    "AdamW": KnownOptimizer("torch.optim.AdamW"),
    "AdamW8bit": KnownOptimizer("bitsandbytes.optim.AdamW8bit"),
    "PagedAdamW": KnownOptimizer("bitsandbytes.optim.PagedAdamW"),
    "PagedAdamW8bit": KnownOptimizer("bitsandbytes.optim.PagedAdamW8bit"),
    "PagedAdamW32bit": KnownOptimizer("bitsandbytes.optim.PagedAdamW32bit"),
    "Lion": KnownOptimizer("lion_pytorch.Lion"),
    "Lion8bit": KnownOptimizer("bitsandbytes.optim.Lion8bit"),
    "PagedLion8bit": KnownOptimizer("bitsandbytes.optim.PagedLion8bit"),
    "SGDNesterov": KnownOptimizer("torch.optim.SGD", _NESTEROV),
    "SGDNesterov8bit": KnownOptimizer("bitsandbytes.optim.SGD8bit", _NESTEROV),
    "DAdaptation": KnownOptimizer("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdamPreprint": KnownOptimizer("dadaptation.experimental.DAdaptAdamPreprint"),
    "DAdaptAdam": KnownOptimizer("dadaptation.DAdaptAdam"),
    "DAdaptAdaGrad": KnownOptimizer("dadaptation.DAdaptAdaGrad"),
    "DAdaptAdan": KnownOptimizer("dadaptation.DAdaptAdan"),
    "DAdaptAdanIP": KnownOptimizer("dadaptation.experimental.DAdaptAdanIP"),
    "DAdaptLion": KnownOptimizer("dadaptation.DAdaptLion"),
    "DAdaptSGD": KnownOptimizer("dadaptation.DAdaptSGD"),
    "Prodigy": KnownOptimizer("prodigyopt.Prodigy"),
    "AdaFactor": KnownOptimizer("transformers.optimization.Adafactor"),
    "AdamWScheduleFree": KnownOptimizer("schedulefree.AdamWScheduleFree"),
    "SGDScheduleFree": KnownOptimizer("schedulefree.SGDScheduleFree"),
    "RAdamScheduleFree": KnownOptimizer("schedulefree.RAdamScheduleFree"),
}


@dataclass(frozen=True)
class Choice:
    """The optimizer that was asked for: the name it was asked by, its class, and what that name fills in."""

    name: str
    kind: type[torch.optim.Optimizer]
    fills: Mapping[str, Any]


def check_switches(options: OptimizerOptions, problems: Problems) -> None:
    """The old switches are names, and there is one optimizer."""
    given = {f"--{field}": name for field, name in _SWITCHES.items() if getattr(options, field)}
    if options.optimizer_type is not None:
        given[f"{FLAG} {options.optimizer_type}"] = options.optimizer_type
    if len({name.casefold() for name in given.values()}) > 1:
        problems.add("they name different optimizers", ", ".join(given), "keep one of them")


def chosen_name(options: OptimizerOptions) -> str:
    """The name that the options ask for, as it was written."""
    switched = [name for field, name in _SWITCHES.items() if getattr(options, field)]
    return options.optimizer_type or (switched[0] if switched else DEFAULT_NAME)


def chosen_path(options: OptimizerOptions) -> str:
    """The dotted path of the class that the options ask for; a name nobody knows is given back as it is."""
    return _look_up(chosen_name(options)).path


def adapts_by_distance(path: str) -> bool:
    """Whether the class at `path` finds the rate from the distance travelled (D-Adaptation, Prodigy)."""
    return path.rsplit(".", 1)[-1].lower().startswith(("dadapt", "prodigy"))


def is_schedule_free(path: str) -> bool:
    """Whether the class at `path` averages weights in place of a schedule."""
    return "schedulefree" in path.rsplit(".", 1)[-1].lower()


def is_adafactor(path: str) -> bool:
    """Whether the class at `path` is Transformers' Adafactor; torch's has no rate of its own."""
    return path.split(".")[0] == "transformers" and path.endswith(".Adafactor")


def path_of(kind: type) -> str:
    """The dotted path of a class, as its own module names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def resolve(options: OptimizerOptions) -> Choice:
    """The class that the options ask for.

    Raises:
        UserError: for a name nobody knows, a missing package, or a class that this training cannot use.
    """
    name = chosen_name(options)
    known = _look_up(name)
    if "." not in known.path:
        names = [*KNOWN, *_torch_names().values()]
        fix = suggest_name(
            name, names, "docs/optimizers.md lists them; a class of another package is package.module.Class"
        )
        raise UserError.of(f"there is no optimizer named {name}", FLAG, fix)
    kind = import_class(known.path, torch.optim.Optimizer, FLAG)
    reason = _why_not(kind)
    if reason is not None:
        raise UserError.of(f"{name} cannot be used: {reason}", FLAG, f"choose another; {DEFAULT_NAME} is a good start")
    return Choice(name, kind, dict(known.fills))


def import_class(path: str, base: type, flag: str) -> type[Any]:
    """The class at a dotted path, which must be a kind of `base`.

    Raises:
        UserError: where the package is missing, has no such class, or has something else under that name.
    """
    module_name, _, name = path.rpartition(".")
    root = module_name.split(".")[0]
    import_optional(root, _PIP_NAMES.get(root, root), f"{flag} {path}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise UserError.of(f"{root} has no module {module_name}", f"{flag} {path}", "look at the path again") from None
    kind = getattr(module, name, None)
    classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
    if kind is None:
        fix = suggest_name(name, classes, "look at the path again")
        raise UserError.of(f"{module_name} has no {name}", f"{flag} {path}", fix)
    if not isinstance(kind, type) or not issubclass(kind, base):
        fix = f"classes of that kind there: {', '.join(classes) or 'none'}"
        raise UserError.of(f"{path} is not a subclass of {path_of(base)}", f"{flag} {path}", fix)
    return kind


def _look_up(name: str) -> KnownOptimizer:
    if "." in name:
        return KnownOptimizer(name)
    for known, entry in KNOWN.items():
        if known.casefold() == name.casefold():
            return entry
    found = _torch_names().get(name.casefold())
    return KnownOptimizer(f"torch.optim.{found}" if found else name)


def _torch_names() -> dict[str, str]:
    classes = (key for key, value in vars(torch.optim).items() if isinstance(value, type))
    return {key.casefold(): key for key in classes if issubclass(getattr(torch.optim, key), torch.optim.Optimizer)}


def _why_not(kind: type[torch.optim.Optimizer]) -> str | None:
    if kind is torch.optim.Optimizer:
        return "it is what all optimizers share, and none itself"
    if kind.__name__ in _NOT_FOR_GRADIENTS_LIKE_OURS:
        return _NOT_FOR_GRADIENTS_LIKE_OURS[kind.__name__]
    parameters = list(inspect.signature(kind.step).parameters.values())[1:]
    if any(item.default is item.empty and item.kind is item.POSITIONAL_OR_KEYWORD for item in parameters):
        return "each of its steps asks for the loss several times (a closure), and training computes it once"
    return None
