"""Optimizers by the names of `--optimizer_type`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from library.core.errors import Problems, suggest_name
from library.options.training import OptimizerOptions

Optimizer = torch.optim.Optimizer

_OPTION_OF_ARGUMENT = {"lr": "--learning_rate"}  # what has a flag of its own
_NOT_FOR_USERS = {"self", "params", "fused", "foreach", "capturable", "differentiable"}


def make_optimizer(options: OptimizerOptions, param_groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimizer over `param_groups`, each with `params`, `lr` and `name`.

    Fused: the quickest on CPU and CUDA alike, and the fp16 scaler need not wait for the device.

    Raises:
        UserError: for arguments the optimizer does not have, or values that are none.
    """
    arguments = parse_optimizer_args(options.optimizer_args)
    return torch.optim.AdamW(list(param_groups), fused=True, **arguments)


def parse_optimizer_args(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as keyword arguments; a comma makes a list. Values are read as literals, never run.

    Raises:
        UserError: with every word that cannot be used.
    """
    problems, arguments = Problems(), dict[str, Any]()
    known = [name for name in inspect.signature(torch.optim.AdamW).parameters if name not in _NOT_FOR_USERS]
    for word in words:
        name, sign, text = word.partition("=")
        if name in _OPTION_OF_ARGUMENT:
            problems.add(f"{name} has an option of its own", "--optimizer_args", f"use {_OPTION_OF_ARGUMENT[name]}")
        elif not sign or name not in known:
            fix = suggest_name(name, known, f"write key=value; known are {', '.join(known)}")
            problems.add(f"{word!r} is not an argument of the optimizer", "--optimizer_args", fix)
        else:
            try:
                arguments[name] = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                problems.add(
                    f"{text!r} is no value for {name}",
                    "--optimizer_args",
                    "a number, numbers joined by commas, True or False",
                )
    problems.raise_if_any()
    return arguments
