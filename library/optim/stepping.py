"""Optimizer steps that need less memory: parameters one after the other, half-precision weights, gradients freed early.

All by composition: the optimizer inside is any of them, as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Parameter

from library.core.errors import Problems, UserError
from library.core.randomness import derived_seed
from library.optim.optimizers import kind_steps_apart, steps_apart
from library.optim.registry import FLAG, chosen_name, chosen_path, is_schedule_free, resolve
from library.optim.rounding import round_at_random
from library.options.memory import MemoryOptions
from library.options.optimizer import OptimizerOptions
from library.options.training import TrainingOptions

TOGETHER = 1 << 22  # numbers that are stepped at once: small weights in one call, and never more than 16 MB lent
_HALVES = (torch.float16, torch.bfloat16)
_UPDATES = "updates_done"  # in the state


def check_low_precision(
    memory: MemoryOptions, training: TrainingOptions, optimizer: OptimizerOptions, problems: Problems
) -> None:
    """Whether half-precision weights and the fused backward pass fit the other options."""
    flags = [flag for flag, is_on in (("--full_fp16", memory.full_fp16), ("--full_bf16", memory.full_bf16)) if is_on]
    if len(flags) > 1:
        problems.add("weights have one format", ", ".join(flags), "keep one of them")
        return
    for flag in flags:
        wanted = flag.removeprefix("--full_")
        if training.mixed_precision != wanted:
            what = f"weights in {wanted} are computed with in {wanted}"
            problems.add(
                what, f"{flag}, --mixed_precision {training.mixed_precision}", f"give --mixed_precision {wanted}"
            )
        if is_schedule_free(chosen_path(optimizer)):
            what = f"{chosen_name(optimizer)} derives weights from weights, which rounding would spoil"
            problems.add(what, flag, f"remove it, or choose another {FLAG}")
    if memory.fused_backward_pass:
        _check_fused(training, optimizer, problems)


def _check_fused(training: TrainingOptions, optimizer: OptimizerOptions, problems: Problems) -> None:
    flag = "--fused_backward_pass"
    if training.gradient_accumulation_steps > 1:
        what = "gradients are applied and freed one by one, so none can be added up"
        problems.add(what, f"{flag}, --gradient_accumulation_steps", "remove one of them; a larger batch does the same")
    if training.max_grad_norm:
        what = "the norm of all gradients is known only when all have been applied"
        problems.add(what, f"{flag}, --max_grad_norm {training.max_grad_norm:g}", "give --max_grad_norm 0")
    if training.mixed_precision == "fp16":
        what = "the scaler of fp16 must see all gradients before the first is applied"
        problems.add(what, f"{flag}, --mixed_precision fp16", "use bf16 or no")
    try:
        choice = resolve(optimizer)
    except UserError:
        return  # told by the check of the optimizer
    if not kind_steps_apart(choice.kind):
        problems.add(_why_not_apart(choice.name), f"{flag}, {FLAG}", "AdamW, Lion, AdaFactor or an 8-bit one can")


def _why_not_apart(name: str) -> str:
    return f"{name} is not known to step each weight alone: what it shares between them must be complete first"


def learns_in_low_precision(memory: MemoryOptions) -> bool:
    """Whether the trained weights themselves are held in fp16 or bf16."""
    return memory.full_fp16 or memory.full_bf16


def make_stepping(optimizer: torch.optim.Optimizer, memory: MemoryOptions, seed: int) -> torch.optim.Optimizer:
    """The optimizer as the memory options want it; itself where they want nothing."""
    return SinglySteppingOptimizer(optimizer, seed) if learns_in_low_precision(memory) else optimizer


def describe_stepping(optimizer: torch.optim.Optimizer) -> list[str]:
    """Lines for the start report; `optimizer` may be wrapped by Accelerate."""
    if not isinstance(optimizer, SinglySteppingOptimizer):
        inner = getattr(optimizer, "optimizer", None)
        return describe_stepping(inner) if isinstance(inner, torch.optim.Optimizer) else []
    lines = ["optimizer: weights are stepped in float32 and rounded at random into their own format"]
    if not steps_apart(optimizer):
        lines.append("optimizer: all weights at once, because it shares numbers between them: more memory at the step")
    return lines


class SinglySteppingOptimizer(torch.optim.Optimizer):
    """Steps a few parameters of another optimizer at a time, half-precision ones in float32.

    The optimizer inside sees float32 stand-ins for fp16 and bf16 parameters and their gradients, for the time of its
    step only; its state stays in float32. Results are rounded back at random by a generator of (seed, update number,
    parameter number). An optimizer that cannot step apart is lent all parameters at once.

    `param_groups`, `state` and `defaults` are those of the optimizer inside.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        self.optimizer = optimizer
        self.updates_done = 0
        self._seed = seed
        self._apart = steps_apart(optimizer)
        self._places = self._find_places()
        self._raise_state()
        self.__setstate__({})  # torch's hooks; its constructor would replace the groups and the state inside

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer inside."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The state of the optimizer inside."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the optimizer inside."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the optimizer inside."""
        self.optimizer.add_param_group(param_group)
        self._places = self._find_places()
        self._raise_state()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Applies the gradients of all parameters.

        Raises:
            ValueError: for a closure; the loss is computed once.
        """
        if closure is not None:
            raise ValueError("the loss is computed once, there is nothing a closure could do")
        self._places = self._find_places()
        for parameters in self._portions():
            self._step(parameters)
        self.updates_done += 1

    @torch.no_grad()
    def step_one(self, parameter: Parameter) -> None:
        """Applies the gradient of one parameter; `end_update` follows the last one of an update."""
        self._step([parameter])

    def end_update(self) -> None:
        """Counts an update that was made by `step_one`."""
        self.updates_done += 1

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer inside, and how many updates were done."""
        return {**self.optimizer.state_dict(), _UPDATES: self.updates_done}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes a state exactly: what is float32 stays so beside half-precision parameters."""
        inside = dict(state_dict)
        self.updates_done = inside.pop(_UPDATES)
        self._places = self._find_places()
        with self._lent(list(self._places), _of_no_size):
            self.optimizer.load_state_dict(inside)
        self._raise_state()

    def _raise_state(self) -> None:
        """State is float32 from the start; Adagrad's is made in its constructor, in the format of the weights."""
        for parameter in self._places:
            state = self.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.dtype in _HALVES:
                    state[key] = value.float()

    def _find_places(self) -> dict[Parameter, tuple[int, int]]:
        """All parameters in order, each with the number of its group and its own."""
        pairs = [(item, place) for place, group in enumerate(self.param_groups) for item in group["params"]]
        return {item: (place, number) for number, (item, place) in enumerate(pairs)}

    def _portions(self) -> Iterator[list[Parameter]]:
        """The parameters that have a gradient, as many at once as may be."""
        portion: list[Parameter] = []
        size = 0
        for parameter in self._places:
            if parameter.grad is None:
                continue
            if self._apart and portion and size + parameter.numel() > TOGETHER:
                yield portion
                portion, size = [], 0
            portion.append(parameter)
            size += parameter.numel()
        if portion:
            yield portion

    def _step(self, parameters: Sequence[Parameter]) -> None:
        with self._lent(parameters, _in_float32) as stand_ins:
            self.optimizer.step()
        for parameter, stand_in in stand_ins.items():
            key = f"{self.updates_done}/{self._places[parameter][1]}"
            generator = torch.Generator(parameter.device)
            generator.manual_seed(derived_seed(self._seed, 0, key, "rounding of weights"))
            parameter.copy_(round_at_random(stand_in, parameter.dtype, generator))

    @contextmanager
    def _lent(self, parameters: Sequence[Parameter], make: Any) -> Iterator[dict[Parameter, torch.Tensor]]:
        """For a while the optimizer inside has these parameters only, half-precision ones by their stand-ins."""
        stand_ins = {item: make(item) for item in parameters if item.dtype in _HALVES}
        before = [group["params"] for group in self.param_groups]
        for group in self.param_groups:
            group["params"] = []
        for item in parameters:
            self.param_groups[self._places[item][0]]["params"].append(stand_ins.get(item, item))
        self._rename({item: stand_in for item, stand_in in stand_ins.items()})
        try:
            yield stand_ins
        finally:
            for group, own in zip(self.param_groups, before, strict=True):
                group["params"] = own
            self._rename({stand_in: item for item, stand_in in stand_ins.items()})

    def _rename(self, names: Mapping[Any, Any]) -> None:
        for old, new in names.items():
            if old in self.state:
                self.state[new] = self.state.pop(old)


def _in_float32(parameter: Parameter) -> torch.Tensor:
    stand_in = parameter.detach().float()
    stand_in.grad = parameter.grad.float() if parameter.grad is not None else None
    return stand_in


def _of_no_size(parameter: Parameter) -> torch.Tensor:
    """What loading looks at: device and number format."""
    return torch.empty(0, device=parameter.device)


class FusedBackward:
    """Applies each gradient as soon as the backward pass has it, and frees it: they are never all there at once.

    The learning rate of an update must be set before its backward pass. `finish_update` ends the update.

    Raises:
        UserError: for an optimizer that cannot step its parameters apart, and in the backward pass for a gradient that
            is not finite, before its weight changes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not steps_apart(optimizer):
            name = type(optimizer).__name__
            raise UserError.of(_why_not_apart(name), "--fused_backward_pass", "remove it, or choose AdamW")
        if not isinstance(optimizer, SinglySteppingOptimizer):
            optimizer = SinglySteppingOptimizer(optimizer, 0)
        self._optimizer = optimizer
        self._norms: list[torch.Tensor] = []
        self._idle = {group.get("name", f"group {number}") for number, group in enumerate(optimizer.param_groups)}
        self._parts = {
            parameter: group.get("name", f"group {number}")
            for number, group in enumerate(optimizer.param_groups)
            for parameter in group["params"]
        }
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._apply) for parameter in self._parts]

    def finish_update(self) -> torch.Tensor:
        """Ends the update; the norm of all its gradients, a scalar tensor on their device.

        Raises:
            UserError: where no gradient was there at all.
        """
        if not self._norms:
            what = f"no weight of {' and '.join(sorted(set(self._parts.values())))} received a gradient"
            raise UserError.of(what, "training", "nothing was changed; check the rates and options of these parts")
        self._optimizer.end_update()
        norm = torch.linalg.vector_norm(torch.stack(self._norms))
        self._norms = []
        return norm

    def idle_parts(self) -> list[str]:
        """The parts that received no gradient so far, or zeros only."""
        return sorted(self._idle)

    def remove(self) -> None:
        """Gives the parameters back as they were: gradients stay again."""
        for hook in self._hooks:
            hook.remove()

    def _apply(self, parameter: Any) -> None:
        gradient = parameter.grad
        if gradient is None:
            return
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        # asked gradient by gradient, which waits for the device each time: the weight must not change before
        size, part = float(norm), self._parts[parameter]
        if not math.isfinite(size):
            what = f"a gradient of {part} is no longer finite"
            fix = "this weight was not changed, others of the same update were; earlier files are as they were; lower"
            raise UserError.of(what, "training", f"{fix} the learning rate")
        if size:
            self._idle.discard(part)
        self._optimizer.step_one(parameter)
        parameter.grad = None
        self._norms.append(norm)
