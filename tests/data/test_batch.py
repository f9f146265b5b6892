"""Moving batches."""

from __future__ import annotations

from pathlib import Path

import torch

from library.data.batch import Batch
from library.data.dataset import TrainingDataset
from library.data.placement import place_all
from library.data.planner import Planner
from tests.data.data_helpers import make_world, toy_tokenize


def test_moving_keeps_everything_but_the_device(tmp_path: Path, device: torch.device) -> None:
    index = make_world(tmp_path)
    placements = place_all(index)
    request = Planner(index, placements, [2], 0).epoch_plan(0)[0]
    batch = TrainingDataset(index, placements, toy_tokenize, None, seed=0)[request]
    moved = batch.to(device)
    assert isinstance(moved, Batch) and moved.latents is None
    assert moved.pixels is not None and moved.pixels.device.type == device.type
    assert moved.names == batch.names and moved.position == batch.position
    assert torch.equal(moved.noise.cpu(), batch.noise)
