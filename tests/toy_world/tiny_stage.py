"""A training stage of a few small layers, and a process that trains it and dies: what test_stages.py kills.

python tests/toy_world/tiny_stage.py FOLDER SECONDS_BETWEEN_SAVES STEP_TO_DIE_AT
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from examples.toy_world.recipe import Build, seeded
from examples.toy_world.stages import Stage, run_stage
from library.core.randomness import derived_seed

STEPS = 12
STAGE = Stage("tiny", steps=STEPS, rate=1e-2, average=0.9)
NEVER = 10_000


class Stop(Exception):  # noqa: N818
    """The run is stopped here."""


def stop() -> None:
    raise Stop


def train(
    build: Build,
    stage: Stage = STAGE,
    at: int = NEVER,
    end: Callable[[], None] = stop,
    seconds_between_saves: float = 0.0,
) -> nn.Module:
    """The trained network; at step `at`, `end` is called instead."""
    with seeded(build.seed):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3))
    network.to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        if step == at:
            end()
        with seeded(derived_seed(build.seed, step, "tiny", "pictures")):
            pictures = torch.randn(2, 3, 8, 8)
            wanted = torch.randn(2, 3, 4, 4)
        return (network(pictures) - wanted).pow(2).mean()

    return run_stage(stage, network, loss_of, build, seconds_between_saves=seconds_between_saves)


def die() -> None:
    """As power fails: nothing is put in order."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Build(0, Path(sys.argv[1])), at=int(sys.argv[3]), end=die, seconds_between_saves=float(sys.argv[2]))
