"""Loader processes start once, and one epoch follows another without a pause."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from library.data.dataset import TrainingDataset, make_loader
from library.data.planner import BatchRequest, Planner, RequestStream
from tests.data.data_helpers import SEED, make_world, noise_of, toy_tokenize, views_of

EPOCHS = 6


class Signed(Dataset[tuple[int, int]]):
    """Builds real batches and tells who built them: process and epoch."""

    def __init__(self, dataset: TrainingDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, request: BatchRequest) -> tuple[int, int]:
        return os.getpid(), self._dataset[request].epoch


@pytest.mark.parametrize(("workers", "start_method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_no_pause_between_epochs(tmp_path: Path, workers: int, start_method: str | None) -> None:
    index = make_world(tmp_path)
    views = views_of(index, SEED)
    planner = Planner(index, views.placements, [2], SEED)
    dataset: Dataset[Any] = Signed(TrainingDataset(views, toy_tokenize, noise_of(views)))
    stream = RequestStream(planner, 0, planner.updates_in_epochs(EPOCHS))
    arrivals = []
    for process, epoch in make_loader(dataset, stream, workers, pin_memory=False, start_method=start_method):
        arrivals.append((time.perf_counter(), process, epoch))
    assert {epoch for _, _, epoch in arrivals} == set(range(EPOCHS))
    assert len({process for _, process, _ in arrivals}) == max(1, workers)  # none was started again
    pauses = [after[0] - before[0] for before, after in pairwise(arrivals) if after[2] != before[2]]
    assert len(pauses) == EPOCHS - 1 and max(pauses) < 1.0
