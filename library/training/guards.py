"""Stops a run whose parts do not learn although they were asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from library.core.errors import UserError

WATCHED_UPDATES = 3  # LoRA's down matrices have zero gradients at the first update, its up matrices do not


@dataclass
class GradientWatch:
    """Looks at the gradients of the first updates.

    Args:
        components: parameters by the name of the part they belong to.
        names: the name of each parameter, for messages.
        updates: how many are looked at. An embedding takes more than weights do, for its word may be in few captions.
    """

    components: Mapping[str, Sequence[nn.Parameter]]
    names: Mapping[nn.Parameter, str]
    updates: int = WATCHED_UPDATES
    _moved: set[str] = field(default_factory=set)
    _updates: int = 0

    def observe(self) -> None:
        """Called with the gradients of an update in place, before they are applied.

        Raises:
            UserError: when a parameter is outside the computation, or a part had no gradient in all watched updates.
        """
        if self._updates >= self.updates:
            return
        self._updates += 1
        self._refuse_disconnected()
        for component, parameters in self.components.items():
            if component not in self._moved and any(bool(p.grad.any()) for p in parameters if p.grad is not None):
                self._moved.add(component)
        still = [component for component in self.components if component not in self._moved]
        if still and self._updates == self.updates:
            raise UserError.of(
                f"{' and '.join(still)} should train but received no gradient in the first {self.updates} updates"
                f" (for example {self.names.get(self.components[still[0]][0], '?')})",
                "training",
                "nothing was saved; check the rates and options of that part, or report this as a bug",
            )

    def _refuse_disconnected(self) -> None:
        for component, parameters in self.components.items():
            lost = [self.names.get(p, "?") for p in parameters if p.grad is None]
            if lost:
                raise UserError.of(
                    f"{component} should train, but {len(lost)} of its {len(parameters)} weights take no part in the"
                    f" computation, for example {lost[0]}",
                    "training",
                    "nothing was saved; the network module does not fit this model, or this is a bug to report",
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
