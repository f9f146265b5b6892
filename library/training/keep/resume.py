"""Going on from a state."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from library.checkpoint.foreign_state import ForeignState, read_foreign_state
from library.checkpoint.public_order import in_public_order
from library.checkpoint.state import read_state
from library.core.log import get_logger
from library.methods.base import TEXT_ENCODER
from library.optim.optimizers import unwrapped
from library.training.keep.training_state import TrainingState, settings_of, unfit
from library.training.resume_point import ResumePoint

log = get_logger(__name__)

_RATE_KEYS = frozenset({"lr", "initial_lr"})
# what stands before a weight's own name: engines, the objective, the lists of our LoRA network, older Transformers
_PREFIXES = ("module.", "trained.", "unet_loras.", "text_encoder_loras.", "unet.", "text_encoder.", "text_model.")
# what bitsandbytes keeps more of large weights than of small ones
_OF_EIGHT_BITS = frozenset({"qmap1", "qmap2", "absmax1", "absmax2", "max1", "max2", "new_max1", "new_max2"})


def restore(point: ResumePoint, state: TrainingState) -> list[str]:
    """Puts every part of the run where it was; returns lines that say what could not be restored, or was changed.

    Raises:
        UserError: the state does not fit this run.
    """
    for warning in point.warnings:
        log.warning("%s", warning)
    if point.is_foreign:
        return [_headline(point), *_restore_foreign(read_foreign_state(point.folder), state)]
    parts = read_state(point.folder)
    if point.is_exact:
        state.load_state_dict(parts)
        return [_headline(point)]
    return [_headline(point), *(f"changed: {change}" for change in point.changes), *_restore_changed(parts, state)]


def _headline(point: ResumePoint) -> str:
    return f"resumed: {point.folder.name}, after update {point.step}"


def _restore_changed(parts: Mapping[str, Any], state: TrainingState) -> list[str]:
    """Options have changed, or the length of the run: what they say now is in force, all else goes on as it was."""
    lines: list[str] = []
    state.load_weights(parts["weights"])
    saved = parts["optimizer"]
    fast_forward(state.scheduler, int(parts["progress"]["step"]))
    settings = settings_of(state.optimizer)
    if saved["class"] == state.optimizer_class:
        order = [name for group in parts["weights"].values() for name in group]
        _load_regrouped(saved, order, list(parts["weights"]), settings, state)
    else:
        lines.append(f"not restored: the optimizer begins anew, it was {saved['class']}")
    if state.ema is not None and "ema" not in parts:
        _begin_average(state)
        lines.append("not restored: the running average begins here, the state has none")
    state.movement.begin_here()
    state.load_rest(parts)
    return lines


def _load_regrouped(
    saved: Mapping[str, Any], order: Sequence[str], groups: Sequence[str], settings: list[dict[str, Any]],
    state: TrainingState,
) -> None:  # fmt: skip
    """What the optimizer knows of each weight, by name, and its groups' settings, but for those that were changed.

    Args:
        order: names of the weights, and `groups` of the groups, as the saved optimizer counted them.
        settings: of the groups of this run, where the schedule has them now.
    """
    old, began = saved["state"], dict(zip(groups, saved["began"], strict=True))
    known = {name: old["state"][number] for number, name in enumerate(order) if number in old["state"]}
    current = {name: group for name, group in zip(groups, old["param_groups"], strict=True)}
    packed = state.optimizer.state_dict()
    for group, now, first in zip(packed["param_groups"], settings, state.began, strict=True):
        name = group["name"]
        group.update(now)
        if name in current:
            group.update(_kept(now, first, began[name], current[name]))
    names = [name for _, name, _ in state.named_weights()]
    own = {number: known[name] for number, name in enumerate(names) if name in known}
    others = {key: value for key, value in old.items() if key not in ("state", "param_groups")}
    state.load_optimizer({**packed, **others, "state": own})


def _kept(
    now: Mapping[str, Any], first: Mapping[str, Any], began: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a group that go on as they were: no person has changed them, and the schedule leaves them."""
    moved = _RATE_KEYS | {key for key in now if not _same(now[key], first.get(key))}
    asked = {key for key in now if not _same(first.get(key), began.get(key))}
    return {key: value for key, value in current.items() if key in now and key not in moved | asked}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    return bool(one == other)


def fast_forward(scheduler: torch.optim.lr_scheduler.LRScheduler, updates: int) -> None:
    """Brings a new schedule to where it is after so many updates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was learned in between
        for _ in range(updates):
            scheduler.step()


def _begin_average(state: TrainingState) -> None:
    if state.ema is not None:
        weights = [parameter.detach() for _, _, parameter in state.named_weights()]
        state.ema.load_state_dict({"updates": 0, "averages": weights})


def _restore_foreign(foreign: ForeignState, state: TrainingState) -> list[str]:
    """The weights by their names, and the optimizer where its shapes fit those of our weights, one by one."""
    state.load_weights({"": _foreign_weights(foreign, state)})
    lines = [f"missing: {sentence}" for sentence in foreign.missing]
    if foreign.optimizer is None or not _load_foreign_optimizer(foreign.optimizer, state):
        lines.append("not restored: the optimizer begins anew, its state does not fit")
    if state.scaler is not None and foreign.scaler is not None:
        state.scaler.load_state_dict({**state.scaler.state_dict(), **foreign.scaler})
    step = foreign.step or 0
    fast_forward(state.scheduler, step)
    _begin_average(state)
    state.movement.begin_here()
    state.progress.step = step
    return lines


def _foreign_weights(foreign: ForeignState, state: TrainingState) -> dict[str, Tensor]:
    """The tensors of our trained weights by our names."""
    given = {_plain(name): tensor for weights in foreign.weights for name, tensor in weights.items()}
    found = {name: given[_plain(name)] for _, name, _ in state.named_weights() if _plain(name) in given}
    if not found:
        raise unfit("another tool wrote it, and none of the weights that train here is in it")
    return found


def _plain(name: str) -> str:
    """A weight's name without what says which model it is of; those of U-Net and text encoder never meet."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _load_foreign_optimizer(optimizer: Mapping[str, Any], state: TrainingState) -> bool:
    """Whether the optimizer's state fits; if so it is put in.

    It knows weights by their numbers. Those of the public tool are counted in another order than ours; whose order it
    is the shapes tell: no two of the layers that stand elsewhere have all of theirs in common.

    An optimizer that keeps numbers in its groups, too (the rate that it finds, the average it makes), begins anew:
    other tools save its weights in another of their forms.
    """
    packed = state.optimizer.state_dict()
    known: Mapping[int, Any] = optimizer.get("state", {})
    sizes = [len(group["params"]) for group in optimizer.get("param_groups", ())]
    keeps_more = any({"d", "train_mode"} & set(group) for group in packed["param_groups"])
    needed = _kept_for_a_weight(state.optimizer)
    if not known or keeps_more or needed is None:
        return False
    if any(not needed <= set(own) <= needed | _OF_EIGHT_BITS for own in known.values()):
        return False
    weights = [parameter for _, _, parameter in state.named_weights()]
    for groups in (_groups_of_the_public_tool(state), [group for _, group in _numbered(state)]):
        order = [number for group in groups for number in group]
        as_counted = [len(group) for group in groups] == sizes or (len(order) == sum(sizes) and len(sizes) == 1)
        if groups and as_counted and _fits(known, [weights[number].shape for number in order]):
            state.load_optimizer({**packed, "state": {order[number]: own for number, own in known.items()}})
            return True
    return False


def _fits(known: Mapping[int, Any], shapes: Sequence[torch.Size]) -> bool:
    """Whether what an optimizer keeps of each weight has that weight's shape."""
    return all(
        number < len(shapes)
        and all(value.shape == shapes[number] for value in own.values() if isinstance(value, Tensor) and value.dim())
        for number, own in known.items()
    )


def _numbered(state: TrainingState) -> list[tuple[str, list[int]]]:
    """Names of the groups, with the numbers of their weights."""
    found: dict[str, list[int]] = {}
    for number, (group, _, _) in enumerate(state.named_weights()):
        found.setdefault(group, []).append(number)
    return list(found.items())


def _groups_of_the_public_tool(state: TrainingState) -> list[list[int]]:
    """The numbers of our weights, group by group, as the public tool counts them; empty where that is not known.

    Of whole models it takes the U-Net first, of networks the text encoder.
    """
    names = [_plain(name) for _, name, _ in state.named_weights()]
    is_network = any(name.startswith("lora_") for name in names)
    groups = _numbered(state)
    if not is_network:
        groups.sort(key=lambda group: group[0].startswith(TEXT_ENCODER))
    found = []
    for _, numbers in groups:
        own = {names[number]: number for number in numbers}
        order = in_public_order(list(own))
        if order is None or len(own) < len(numbers):
            return []
        found.append([own[name] for name in order])
    return found


def _kept_for_a_weight(optimizer: Any) -> set[str] | None:
    """What an optimizer keeps for each weight, seen at one small weight; None where that cannot be tried."""
    inner, weight = unwrapped(optimizer), torch.nn.Parameter(torch.zeros(2, 2))
    taken = inspect.signature(type(inner)).parameters
    arguments = {key: value for key, value in inner.defaults.items() if key in taken and value is not None}
    weight.grad = torch.zeros_like(weight)
    try:
        trial = type(inner)([weight], **arguments)
        trial.step()
    except Exception:  # classes of others refuse with whatever they like
        return None
    return set(trial.state[weight])
