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
from library.diffusion.noise import NoiseSource
from library.options.objective import ObjectiveOptions
from tests.data.data_helpers import make_world, noise_of, toy_tokenize, toy_tokenize_with_weights, views_of


def first_batch(folder: Path, tokenize: Tokenize) -> Batch:
    index = make_world(folder)
    views = views_of(index, 0)
    request = Planner(index, views.placements, [2], 0).epoch_plan(0)[0]
    return TrainingDataset(views, tokenize, noise_of(views))[request]


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


EVERYTHING = ObjectiveOptions(
    noise_offset=0.1, adaptive_noise_scale=0.05, multires_noise_iterations=4, ip_noise_gamma=0.1, max_timestep=500
)


def test_everything_that_is_drawn_is_in_the_batch(tmp_path: Path) -> None:
    """Each use's own draws, stacked; they travel between processes and devices."""
    index = make_world(tmp_path)
    views, source = views_of(index, 0), NoiseSource(0, EVERYTHING)
    request = Planner(index, views.placements, [2], 0).epoch_plan(0)[0]
    batch = TrainingDataset(views, toy_tokenize, source)[request]
    assert len(batch.names) == 2
    uses = [views.use(record, repeat) for record, repeat in zip(request.records, request.repeats, strict=True)]
    drawn = [source(0, use, views.placements.bucket_size(request.records[0])) for use in uses]
    for item in (batch, pickle.loads(pickle.dumps(batch))):
        assert item.timesteps.tolist() == [draw.timestep for draw in drawn]
        for name in ("noise", "input_noise", "offset_noise", "offset_strength"):
            assert torch.equal(getattr(item, name), torch.stack([getattr(draw, name) for draw in drawn]))
    assert batch.offset_noise is not None and batch.offset_noise.shape == (2, 4, 1, 1)
    assert batch.offset_strength is not None and batch.offset_strength.shape == (2, 1, 1, 1)


def test_what_is_not_asked_for_is_not_there(tmp_path: Path) -> None:
    batch = first_batch(tmp_path, toy_tokenize)
    assert batch.input_noise is batch.offset_noise is batch.offset_strength is None


def test_the_composition_of_a_batch_changes_no_draw(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    views = views_of(index, 0)
    dataset = TrainingDataset(views, toy_tokenize, NoiseSource(0, EVERYTHING))

    def draws(batch_size: int, processes: int) -> dict[tuple[str, int], bytes]:
        found = {}
        for request in Planner(index, views.placements, [batch_size], 0, 1, processes).epoch_plan(1):
            batch = dataset[request]
            parts = [batch.noise, batch.input_noise, batch.offset_noise, batch.offset_strength, batch.timesteps]
            for row, use in enumerate(zip(batch.names, request.repeats, strict=True)):
                found[use] = b"".join(part[row].numpy().tobytes() for part in parts if part is not None)
        return found

    alone = draws(1, 1)
    assert len(alone) == len(set(alone.values())) > 10 and len(next(iter(alone.values()))) > 3 * 4 * 16
    assert draws(2, 1) == draws(5, 1) == draws(2, 2) == alone
