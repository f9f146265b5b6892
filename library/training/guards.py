"""Stops a run whose parts do not learn although they were asked to, or whose numbers are none any more."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from library.core.errors import UserError
from library.core.wording import some_of

WATCHED_UPDATES = 3  # LoRA's down matrices have zero gradients at the first update, its up matrices do not
# The fp16 scaler begins at 65536 and halves at each update that it leaves out: after so many in a row it is below 1.
MOST_SKIPPED = 20
_FILES_TOLD = 4
_LOOKED_AT = 8  # weights of each part


@dataclass
class GradientWatch:
    """Looks at the gradients of the first updates.

    Args:
        components: parameters by the name of the part they belong to.
        names: the name of each parameter, for messages.
        updates: how many are looked at. An embedding takes more than weights do, for its word may be in few captions.
        drops_layers: whole layers are left out at random, so single weights may lack a gradient.
    """

    components: Mapping[str, Sequence[nn.Parameter]]
    names: Mapping[nn.Parameter, str]
    updates: int = WATCHED_UPDATES
    drops_layers: bool = False
    _moved: set[str] = field(default_factory=set)
    _updates: int = 0
    _skipped: int = 0

    def observe(self, resting: Collection[str] = ()) -> None:
        """Called with the gradients of an update in place, before they are applied.

        Args:
            resting: parts that do not learn at this update.

        Raises:
            UserError: when a parameter is outside the computation, or a part had no gradient in all watched updates.
        """
        if self._updates >= self.updates:
            return
        self._updates += 1
        learning = {name: parameters for name, parameters in self.components.items() if name not in resting}
        if not self.drops_layers:
            self._refuse_disconnected(learning)
        for component, parameters in learning.items():
            if component not in self._moved and any(bool(p.grad.any()) for p in parameters if p.grad is not None):
                self._moved.add(component)
        still = [component for component in learning if component not in self._moved]
        if still and self._updates == self.updates:
            raise self._without_gradient(still)

    def observe_idle(self, idle: Sequence[str]) -> None:
        """The same where gradients are applied in the backward pass and gone after it.

        Args:
            idle: the parts that received no gradient so far.

        Raises:
            UserError: when there are such parts after all watched updates.
        """
        self._updates += 1
        self._moved.update(name for name in self.components if name not in idle)
        still = [name for name in idle if name not in self._moved]  # a resumed run did not see all the updates
        if still and self._updates == self.updates:
            raise self._without_gradient(still)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"updates": self._updates, "moved": sorted(self._moved), "skipped": self._skipped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._updates, self._skipped = int(state["updates"]), int(state["skipped"])
        self._moved = set(state["moved"])

    def _without_gradient(self, parts: Sequence[str]) -> UserError:
        return UserError.of(
            f"{' and '.join(parts)} should train but received no gradient in the first {self.updates} updates"
            f" (for example {self.names.get(self.components[parts[0]][0], '?')})",
            "training",
            "nothing was saved; check the rates and options of that part, or report this as a bug",
        )

    def count_skipped(self, was_skipped: bool, files: Sequence[str], step: int) -> None:
        """Counts updates that the fp16 scaler left out, in a row.

        Raises:
            UserError: there are too many: no scale would help.
        """
        self._skipped = self._skipped + 1 if was_skipped else 0
        if self._skipped >= MOST_SKIPPED:
            what = f"the gradients of the last {MOST_SKIPPED} updates, up to update {step + 1}, overflowed in fp16"
            raise _not_finite(what, files)

    def _refuse_disconnected(self, learning: Mapping[str, Sequence[nn.Parameter]]) -> None:
        for component, parameters in learning.items():
            lost = [self.names.get(p, "?") for p in parameters if p.grad is None]
            if lost:
                raise UserError.of(
                    f"{component} should train, but {len(lost)} of its {len(parameters)} weights take no part in the"
                    f" computation, for example {lost[0]}",
                    "training",
                    "nothing was saved; the network module does not fit this model, or this is a bug to report",
                )


class MovementWatch:
    """Keeps some small weights of each part as they were, to see at the end whether the part moved at all."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            groups: the optimizer's, before the first update.
        """
        self._watched: dict[str, list[Tensor]] = {
            group["name"]: sorted(group["params"], key=Tensor.numel)[:_LOOKED_AT] for group in groups
        }
        self._start: dict[str, list[Tensor]] = {}
        self.begin_here()

    def begin_here(self) -> None:
        """Takes the weights as they are now for those that training began with."""
        self._start = {part: [p.detach().clone() for p in watched] for part, watched in self._watched.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with: the weights that training began with, by part."""
        return {part: list(weights) for part, weights in self._start.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave; parts that it does not know begin here."""
        for part, weights in self._start.items():
            known = state.get(part, [])
            if [tensor.shape for tensor in known] == [tensor.shape for tensor in weights]:
                self._start[part] = [old.to(now) for old, now in zip(known, weights, strict=True)]

    def refuse_still(self) -> None:
        """Called after the last update.

        Raises:
            UserError: a part has the very weights that it began with.
        """
        still = [part for part, began in self._start.items() if all(map(torch.equal, self._watched[part], began))]
        if still:
            raise UserError.of(
                f"{' and '.join(still)} should train, but kept the weights that it began with",
                "training",
                "nothing was saved; raise the learning rate of that part, or look at its schedule",
            )


def refuse_non_finite_update(loss: Tensor, grad_norm: Tensor, files: Sequence[str], step: int) -> None:
    """Stops before an update that would spoil the weights. One number is read from the device.

    Args:
        files: the pictures of the update, for the message.
        step: updates done before.

    Raises:
        UserError: loss or gradients are not finite.
    """
    if bool((loss.detach() + grad_norm).isfinite()):
        return
    wrong = "loss is" if not bool(loss.isfinite()) else "gradients are"
    raise _not_finite(f"the {wrong} no longer finite at update {step + 1}", files)


def _not_finite(what: str, files: Sequence[str]) -> UserError:
    names = some_of(list(files[:_FILES_TOLD]), len(files))
    return UserError.of(
        f"{what}; its pictures: {names}",
        "training",
        "the weights were not changed by it, and earlier files are as they were; look at these pictures, lower the"
        " learning rate, or with fp16 try bf16",
    )


def refuse_non_finite(groups: Sequence[Mapping[str, Any]]) -> None:
    """Stops before weights that are not finite are written.

    Raises:
        UserError: naming the component.
    """
    for group in groups:
        if not all(bool(p.isfinite().all()) for p in group["params"]):
            raise UserError.of(
                f"the weights of {group['name']} are no longer finite, so they were not saved",
                "training",
                "lower the learning rate; with fp16, try bf16",
            )
