"""A training stage of the toy world that can be stopped at any time and goes on where it was, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from library.core.atomic_io import write_whole

_SECONDS_BETWEEN_SAVES = 60
_SAY_EVERY = 100  # steps
_WARM_UP = 0.04  # share of the steps
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Stage:
    """How one network is trained.

    Attributes:
        steps: updates in all.
        rate: the highest learning rate; it warms up in a line and then falls to zero along a cosine.
        average: decay of the running average of the weights, which replaces them in the end; 0 for none.
    """

    name: str
    steps: int
    rate: float
    average: float = 0.0


def run_stage(stage: Stage, network: nn.Module, loss_of: Callable[[int], Tensor], folder: Path) -> nn.Module:
    """Trains a network, or goes on with it, or only reads what an earlier run made.

    Args:
        loss_of: the loss of a step; whatever is random in it must follow from the number of the step alone.
        folder: where the checkpoint lies; `<name>.pt` in it holds the state of the training.

    Returns:
        The network with its final weights, not trainable.
    """
    path = folder / f"{stage.name}.pt"
    optimizer = torch.optim.AdamW(network.parameters(), lr=stage.rate, betas=(0.9, 0.99), weight_decay=0.0)
    averages = [p.detach().clone() for p in network.parameters()] if stage.average else []
    begin = _resume(path, network, optimizer, averages)
    network.train()
    losses: list[Tensor] = []
    started = saved = time.monotonic()
    for step in range(begin, stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * _share_of_rate(step / stage.steps)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
        optimizer.step()
        if averages:
            # a young average of few steps would remember the random beginning
            decay = min(stage.average, (1 + step) / (10 + step))
            torch._foreach_lerp_(averages, [p.detach() for p in network.parameters()], 1 - decay)
        losses.append(loss.detach())
        if (step + 1) % _SAY_EVERY == 0:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            pace = (time.monotonic() - started) / (step + 1 - begin)
            left = pace * (stage.steps - step - 1) / 60
            print(f"{stage.name}: step {step + 1}/{stage.steps}, loss {mean:.4f}, {left:.0f} min left", flush=True)
        if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES or step + 1 == stage.steps:
            _save(path, step + 1, network, optimizer, averages)
            saved = time.monotonic()
    if averages:
        with torch.no_grad():
            for parameter, average in zip(network.parameters(), averages, strict=True):
                parameter.copy_(average)
    return network.eval().requires_grad_(False)


def _share_of_rate(done: float) -> float:
    if done < _WARM_UP:
        return done / _WARM_UP
    return 0.5 + 0.5 * float(torch.cos(torch.tensor((done - _WARM_UP) / (1 - _WARM_UP) * torch.pi)))


def _resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, averages: list[Tensor]) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    for average, stored in zip(averages, state["averages"], strict=True):
        average.copy_(stored)
    return int(state["step"])


def _save(path: Path, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, averages: list[Tensor]) -> None:
    state = {
        "step": step,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averages": averages,
    }
    write_whole(path, lambda temporary: torch.save(state, temporary))
