"""Moving batches."""

from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from library.data.batch import Batch
from library.data.dataset import Tokenize, TrainingDataset
from library.data.planner import Planner
from tests.data.data_helpers import make_world, toy_tokenize, toy_tokenize_with_weights, views_of


def first_batch(folder: Path, tokenize: Tokenize) -> Batch:
    index = make_world(folder)
    views = views_of(index, 0)
    request = Planner(index, views.placements, [2], 0).epoch_plan(0)[0]
    return TrainingDataset(views, tokenize)[request]


@pytest.mark.parametrize("tokenize", [toy_tokenize, toy_tokenize_with_weights])
def test_moving_keeps_everything_but_the_device(tmp_path: Path, device: torch.device, tokenize: Tokenize) -> None:
    batch = first_batch(tmp_path, tokenize)
    moved = batch.to(device)
    assert isinstance(moved, Batch) and moved.latents is None
    assert moved.pixels is not None and moved.pixels.device.type == device.type
    assert moved.names == batch.names and moved.position == batch.position
    assert torch.equal(moved.noise.cpu(), batch.noise)
    if batch.token_weights is None:
        assert tokenize is toy_tokenize and moved.token_weights is None
    else:
        assert moved.token_weights is not None and moved.token_weights.device.type == device.type
        assert torch.equal(moved.token_weights.cpu(), batch.token_weights)


def test_weights_lie_behind_their_tokens_and_travel_by_value(tmp_path: Path) -> None:
    names = [item.name for item in fields(Batch)]
    assert names.index("token_weights") == names.index("input_ids") + 1
    batch = first_batch(tmp_path, toy_tokenize_with_weights)
    sent = pickle.loads(pickle.dumps(batch))
    for one in (batch, sent):
        assert one.input_ids.shape == one.token_weights.shape == (2, 2, 77)
        assert (one.input_ids.dtype, one.token_weights.dtype) == (torch.int64, torch.float32)
        assert torch.equal(one.token_weights, batch.input_ids / 100 + 1)
