"""A running average of the trained weights, which often does better than the weights of the last update.

Source: Polyak and Juditsky 1992 for averages over the course of training; the exponential one with its fast start is
that of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from library.core.errors import UserError

_AT_ONCE = 1 << 24  # numbers; where weights are of half precision, so many are held in float32 beside them


class Ema:
    """The average of every trained parameter, in float32, on its device.

    After the update with the number n, counted from 0, `average = decay_n * average + (1 - decay_n) * parameter` with
    `decay_n = min(decay, (1 + n) / (10 + n))`: at the start it follows fast, so that it forgets the untrained weights.

    Args:
        groups: optimizer groups; the parameters are those of their `params`.
        decay: 0 (no average at all) to 1 (it never moves, once n is large).
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], decay: float) -> None:
        self._parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        self._averages = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]
        self._decay = decay
        self._is_swapped = False
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes the parameters as they are after an update."""
        self._refuse_while_swapped()
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for run in _runs(self._averages):
            current = [parameter.detach().float() for parameter in self._parameters[run]]
            torch._foreach_lerp_(self._averages[run], current, 1 - decay)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters are the averages, rounded to their own format; afterwards what they were, bit by bit.

        Weights in float32 change places with their averages one by one, so that no third copy of a model is needed.
        """
        self._refuse_while_swapped()
        kept = self._put_averages_in()
        self._is_swapped = True
        try:
            yield
        finally:
            self._is_swapped = False
            self._put_back(kept)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with; the tensors are the averages themselves, not copies."""
        self._refuse_while_swapped()
        return {"updates": self.updates, "averages": list(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave; the decay stays the one that is asked for now.

        Raises:
            UserError: when these are not the averages of the same parameters.
        """
        self._refuse_while_swapped()
        found = state["averages"]
        if [tensor.shape for tensor in found] != [average.shape for average in self._averages]:
            what = (
                f"the saved state has averages of {len(found)} weights, and they do not fit the {len(self._averages)}"
            )
            fix = "resume with the options of the run that saved the state, or without --ema"
            raise UserError.of(f"{what} that are trained now", "--ema", fix)
        for average, tensor in zip(self._averages, found, strict=True):
            average.copy_(tensor)
        self.updates = int(state["updates"])

    @torch.no_grad()
    def _put_averages_in(self) -> dict[int, Tensor]:
        """Puts the averages into the parameters; returns copies, by number, of those that could not change places."""
        kept: dict[int, Tensor] = {}
        for number, (parameter, average) in enumerate(zip(self._parameters, self._averages, strict=True)):
            if parameter.dtype == torch.float32:
                _exchange(parameter, average)
            else:
                kept[number] = parameter.detach().clone()
                parameter.copy_(average)
        return kept

    @torch.no_grad()
    def _put_back(self, kept: Mapping[int, Tensor]) -> None:
        for number, (parameter, average) in enumerate(zip(self._parameters, self._averages, strict=True)):
            if number in kept:
                parameter.copy_(kept[number])
            else:
                _exchange(parameter, average)

    def _refuse_while_swapped(self) -> None:
        if self._is_swapped:
            raise RuntimeError("the averages are in the parameters' place")


def _exchange(parameter: Tensor, average: Tensor) -> None:
    before = parameter.detach().clone()
    parameter.copy_(average)
    average.copy_(before)


def _runs(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Cuts a list into runs of tensors that have at most `_AT_ONCE` numbers together, or are alone."""
    start, held = 0, 0
    for number, tensor in enumerate(tensors):
        if held and held + tensor.numel() > _AT_ONCE:
            yield slice(start, number)
            start, held = number, 0
        held += tensor.numel()
    if tensors:
        yield slice(start, len(tensors))
