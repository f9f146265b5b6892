"""A training stage of the toy world that can be stopped at any time and goes on where it was, bit for bit."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.toy_world.recipe import Build, code_digest, weights_digest
from library.core.atomic_io import remove_left_overs, write_whole
from library.core.errors import Problem, Problems, UserError

_SUFFIX = ".pt"
_SECONDS_BETWEEN_SAVES = 60.0
_SAY_EVERY = 100  # steps
_WARM_UP = 0.04  # share of the steps
_LARGEST_GRADIENT = 1.0
_MOST_LEFT_OUT = 20  # updates in a row without a finite gradient
_BEGINNING = "first weights"
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Stage:
    """How one network is trained.

    Attributes:
        steps: updates in all, of a whole build.
        rate: the highest learning rate; it warms up in a line and then falls along a cosine.
        average: decay of the running average of the weights, which replaces them in the end; 0 for none.
        horizon: step at which that cosine arrives at zero; 0 for the last one.
        cool_down: the last steps, in which the rate falls to zero in a line as well.
        code: the modules of this folder, beside this one, that decide what is learned.
    """

    name: str
    steps: int
    rate: float
    average: float = 0.0
    horizon: int = 0
    cool_down: int = 0
    code: tuple[str, ...] = ()

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        left = min(1.0, (self.steps - step) / self.cool_down) if self.cool_down else 1.0
        return self.rate * _share_of_rate(step / (self.horizon or self.steps)) * left

    def shortened(self, build: Build) -> Stage:
        """The same with as many steps as the build takes."""
        steps, horizon, cool_down = (
            build.part(count) if count else 0 for count in (self.steps, self.horizon, self.cool_down)
        )
        return replace(self, steps=steps, horizon=horizon, cool_down=cool_down)

    def checkpoint(self, build: Build) -> Path:
        """The file that holds the state of the training."""
        return build.folder / f"{self.name}{_SUFFIX}"

    def asked(self, build: Build) -> dict[str, str]:
        """What makes this training what it is, by the names that a message calls it."""
        return {
            "--seed": str(build.seed),
            "--steps_divisor": str(build.divisor),
            "--threads": str(torch.get_num_threads()),  # which decide how sums round
            "steps": str(self.steps),
            "learning rate": str(self.rate),
            "average": str(self.average),
            "horizon": str(self.horizon),
            "cool-down": str(self.cool_down),
            "code of the recipe": code_digest("stages", "recipe", *self.code),
        }


def run_stage(
    stage: Stage,
    network: nn.Module,
    loss_of: Callable[[int], Tensor],
    build: Build,
    before: Iterable[nn.Module] = (),
    seconds_between_saves: float = _SECONDS_BETWEEN_SAVES,
) -> nn.Module:
    """Trains a network, or goes on with it, or only reads what an earlier run made.

    Args:
        network: as the stage begins with it.
        loss_of: the loss of a step; whatever is random in it must follow from the number of the step alone.
        before: networks that the loss takes as they are.
        seconds_between_saves: at most so much work is lost when the process is killed.

    Returns:
        The network with its final weights, not trainable.

    Raises:
        UserError: the checkpoint there is of another training or cannot be read, or none can be written.
    """
    made_by = {**stage.asked(build), _BEGINNING: weights_digest(network, *before)}
    path = stage.checkpoint(build)
    stage = stage.shortened(build)
    training, steps = _Training(stage, network, made_by), stage.steps
    begin = training.resume(path)
    if begin:
        print(f"{stage.name}: {begin} of {steps} steps are there", flush=True)
    network.train().requires_grad_(True)
    losses: list[Tensor] = []
    started = saved = time.monotonic()
    for step in range(begin, steps):
        losses.append(training.update(loss_of(step), step))
        done = step + 1
        if done % _SAY_EVERY == 0 or done == steps:
            mean = float(torch.stack(losses).nanmean())
            losses.clear()
            left = (time.monotonic() - started) / (done - begin) * (steps - done) / 60
            print(f"{stage.name}: step {done}/{steps}, loss {mean:.4f}, {left:.0f} min left", flush=True)
        if time.monotonic() - saved > seconds_between_saves or done == steps:
            training.save(path, done)
            saved = time.monotonic()
    training.take_average()
    return network.eval().requires_grad_(False)


class _Training:
    """A network with its optimizer and its average: all that changes while it learns."""

    def __init__(self, stage: Stage, network: nn.Module, made_by: dict[str, str]) -> None:
        self._stage = stage
        self._network = network
        self._made_by = made_by
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=stage.rate, betas=(0.9, 0.99), weight_decay=0.0)
        self._averages = [p.detach().clone() for p in network.parameters()] if stage.average else []
        self._left_out = 0  # updates in a row

    def update(self, loss: Tensor, step: int) -> Tensor:
        """One update; the loss without its graph."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._stage.rate_at(step)
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), _LARGEST_GRADIENT)
        if not bool(norm.isfinite()):
            self._leave_out(step)
            return torch.full_like(loss, torch.nan)
        self._left_out = 0
        self._optimizer.step()
        if self._averages:
            # a young average of few steps would remember the random beginning
            decay = min(self._stage.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, [p.detach() for p in self._network.parameters()], 1 - decay)
        return loss.detach()

    def _leave_out(self, step: int) -> None:
        """bf16 overflows now and then; the weights must not become what it leaves behind."""
        print(f"{self._stage.name}: step {step + 1} is left out, its gradient is not finite", flush=True)
        self._left_out += 1
        if self._left_out == _MOST_LEFT_OUT:
            what = f"{_MOST_LEFT_OUT} updates in a row had no finite gradient: the training has gone astray"
            raise UserError.of(what, self._stage.name, "start again with another --seed and another --work")

    def take_average(self) -> None:
        """The average, where there is one, takes the place of the weights."""
        if self._averages:
            with torch.no_grad():
                for parameter, average in zip(self._network.parameters(), self._averages, strict=True):
                    parameter.copy_(average)

    def save(self, path: Path, step: int) -> None:
        state = {
            "made_by": self._made_by,
            "step": step,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "averages": self._averages,
        }

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # by its path, torch would write the file's name into it
                torch.save(state, file)

        try:
            write_whole(path, write)
        except (OSError, RuntimeError) as error:  # the second is how torch tells of a full disk
            raise UserError.of(
                f"the checkpoint cannot be written ({error})", str(path), "mend that and start again: it goes on"
            ) from error

    def resume(self, path: Path) -> int:
        """The number of steps that are done."""
        remove_left_overs(path.parent, _SUFFIX)
        if not path.is_file():
            return 0
        if problem := _problem(path, self._made_by):
            raise UserError([problem])
        # not mapped: kernels round by how memory is aligned, and some of these tensors are taken as they are
        state = torch.load(path, weights_only=True)
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        for average, stored in zip(self._averages, state["averages"], strict=True):
            average.copy_(stored)
        return int(state["step"])


def check_checkpoints(stages: Iterable[Stage], build: Build, problems: Problems) -> None:
    """Complains of every checkpoint in the build's folder that is of another training, as far as can be told now."""
    for stage in stages:
        path = stage.checkpoint(build)
        if path.is_file() and (problem := _problem(path, stage.asked(build))):
            problems.extend([problem])


def _problem(path: Path, asked: dict[str, str]) -> Problem | None:
    """Why the checkpoint is none of the training that was asked for."""
    try:
        made_by = dict(torch.load(path, weights_only=True, mmap=True)["made_by"])
    except (*_UNREADABLE, KeyError, TypeError):
        return Problem(
            "is no checkpoint of this recipe, or is damaged", str(path), "remove it, or give another folder as --work"
        )
    differing = [
        f"{name} {made_by.get(name, 'unknown')} instead of {value}"
        for name, value in asked.items()
        if made_by.get(name) != value
    ]
    if not differing:
        return None
    return Problem(
        f"is of another training: {', '.join(differing)}",
        str(path),
        "give the options and the code of that training, another folder as --work, or remove the file to begin anew",
    )


def _share_of_rate(done: float) -> float:
    if done < _WARM_UP:
        return done / _WARM_UP
    return 0.5 + 0.5 * float(torch.cos(torch.tensor((done - _WARM_UP) / (1 - _WARM_UP) * torch.pi)))
