"""What shows the numbers and pictures of a run to people: TensorBoard, wandb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Tracker(Protocol):
    """Opened by the first thing it is given. Whatever it raises ends it, and not the training."""

    @property
    def name(self) -> str:
        """As `--log_with` has it."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers by tag; steps never go back."""

    def picture(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        """Takes a picture (H, W, 3), sRGB."""

    def flush(self) -> None:
        """Writes what it holds back."""

    def close(self) -> None:
        """Writes the rest, within a bounded time."""

    def told(self) -> str:
        """Where people find what was logged, for the summary; empty where nothing was. Called last."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs to go on where it is, fit for JSON."""

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Goes on after update `step`; what was logged of later ones goes. Called before anything is given."""
