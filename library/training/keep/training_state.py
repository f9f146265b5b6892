"""All that a run must know to go on as if it had never stopped."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from library.core.errors import UserError
from library.core.wording import some_of
from library.optim.optimizers import unwrapped
from library.optim.registry import path_of
from library.training.ema import Ema
from library.training.guards import GradientWatch, MovementWatch
from library.training.keep.session import Session
from library.training.logs.scalars import ScalarLog
from library.training.progress import Progress

_COMPILED = "_orig_mod."  # torch.compile puts it into names
_NAMES_TOLD = 3
_BEGIN_ANEW = "resume with the options of the run that saved it, or begin a new run"


@dataclass(frozen=True)
class TrainingState:
    """The parts of a run that change while it trains.

    Args:
        groups: optimizer groups as the method gave them; their parameters are the weights that train.
        optimizer: the prepared one.
        scaler: of fp16; None where there is none.
        ema: the running average; None where none is kept.

    Attributes:
        began: the settings of each group before the first update, so that it can be told later what a person has
            changed and what the optimizer has.
    """

    groups: Sequence[Mapping[str, Any]]
    optimizer: Any
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: Any
    ema: Ema | None
    log: ScalarLog
    watch: GradientWatch
    movement: MovementWatch
    progress: Progress
    session: Session
    began: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began", settings_of(self.optimizer))

    def named_weights(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """The weights that train, in the optimizer's order: group, name, weight."""
        for group in self.groups:
            for number, parameter in enumerate(group["params"]):
                name = self.watch.names.get(parameter, f"{group['name']}.{number}")
                yield group["name"], name.replace(_COMPILED, ""), parameter

    def state_dict(self) -> dict[str, Any]:
        """Every part by name: nested dicts and lists of tensors (the very ones, not copies), numbers and texts.

        Nothing frozen is in it. To be called between two updates.

        Raises:
            RuntimeError: the weights are an average at the moment, lent to be judged or saved.
        """
        if not all(group.get("train_mode", True) for group in self.optimizer.param_groups):
            raise RuntimeError("the weights of a schedule-free optimizer are its average at the moment")
        weights: dict[str, dict[str, Tensor]] = {group["name"]: {} for group in self.groups}
        for group_name, name, parameter in self.named_weights():
            weights[group_name][name] = parameter.detach()
        parts: dict[str, Any] = {
            "progress": {"step": self.progress.step},
            "session": {"started_at": self.session.started_at, "number": self.session.number},
            "weights": weights,
            "optimizer": {
                "class": self.optimizer_class,
                "began": self.began,
                "state": self.optimizer.state_dict(),
            },
            "scheduler": self.scheduler.state_dict(),
            "log": self.log.state_dict(),
            "watch": self.watch.state_dict(),
            "movement": self.movement.state_dict(),
        }
        if self.scaler is not None:
            parts["scaler"] = self.scaler.state_dict()
        if self.ema is not None:
            parts["ema"] = self.ema.state_dict()
        return parts

    def load_state_dict(self, parts: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave in a run with the same options, see `load_optimizer`.

        Raises:
            UserError: it is of a run that trained something else, or in another way.
        """
        missing = sorted(set(self._own_parts()) ^ (set(parts) & {"scaler", "ema"}))
        if missing:
            raise unfit(f"it and this run differ in {' and '.join(missing)}")
        self.load_weights(parts["weights"])
        self.load_optimizer(parts["optimizer"]["state"])
        self.scheduler.load_state_dict(copy.deepcopy(parts["scheduler"]))
        self.load_rest(parts)

    def load_rest(self, parts: Mapping[str, Any]) -> None:
        """Everything but weights, optimizer and schedule; scaler and average where both sides have one."""
        if self.scaler is not None and "scaler" in parts:
            self.scaler.load_state_dict(parts["scaler"])
        if self.ema is not None and "ema" in parts:
            self.ema.load_state_dict(parts["ema"])
        self.log.load_state_dict(parts["log"])
        self.watch.load_state_dict(parts["watch"])
        self.movement.load_state_dict(parts["movement"])
        self.progress.step = int(parts["progress"]["step"])
        self.session.started_at = float(parts["session"]["started_at"])
        self.session.number = int(parts["session"]["number"])

    @torch.no_grad()
    def load_weights(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Puts weights in by name, whatever group they stood in.

        Raises:
            UserError: there are others than this run trains, or others of its shapes.
        """
        given = {name: tensor for group in groups.values() for name, tensor in group.items()}
        wanted = {name: parameter for _, name, parameter in self.named_weights()}
        lost = sorted(set(given) ^ set(wanted))
        if lost:
            both = f"it holds {len(given)} trained weights, and this run trains {len(wanted)}"
            raise unfit(f"{both}; they differ in {some_of(lost[:_NAMES_TOLD], len(lost))}")
        other = [name for name, parameter in wanted.items() if parameter.shape != given[name].shape]
        if other:
            sizes = f"{list(given[other[0]].shape)} instead of {list(wanted[other[0]].shape)}"
            raise unfit(f"{len(other)} of its weights have other shapes, {other[0]} {sizes}")
        for name, parameter in wanted.items():
            parameter.copy_(given[name])

    def load_optimizer(self, state: Mapping[str, Any]) -> None:
        """Puts the optimizer's own state in, bit by bit; its tensors are the optimizer's from now on.

        They must have memory of their own: in a file's they are aligned as it has them, and sums round differently.

        Raises:
            UserError: it is of another optimizer, or of other groups of weights.
        """
        try:
            self.optimizer.load_state_dict(dict(state))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise unfit(f"its optimizer does not fit: {error}") from error
        self._keep_formats(state["state"])

    def _keep_formats(self, saved: Mapping[int, Any]) -> None:
        """Torch brings an optimizer's tensors into the format of the weights; what was of another stays so here."""
        inner = unwrapped(self.optimizer)
        parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            for key, before in saved.get(number, {}).items():
                now = inner.state.get(parameter, {}).get(key)
                if isinstance(before, Tensor) and isinstance(now, Tensor) and before.dtype != now.dtype:
                    inner.state[parameter][key] = before.to(now.device, copy=True)

    @property
    def optimizer_class(self) -> str:
        """The class of the optimizer itself, by its path."""
        return path_of(type(unwrapped(self.optimizer)))

    def _own_parts(self) -> list[str]:
        asked = {"scaler": self.scaler, "ema": self.ema}
        return [name for name, part in asked.items() if part is not None]


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """Copies of the settings of an optimizer's groups, without the weights."""
    return [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def unfit(what: str) -> UserError:
    """A state that is not one of this run."""
    return UserError.of(f"the state does not fit: {what}", "--resume", _BEGIN_ANEW)
