"""The latent store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from library.core.errors import UserError
from library.data.dataset import draw_latent_noise, read_picture
from library.data.latents import fill_memory_store
from library.data.placement import place_all
from tests.data.data_helpers import make_world, toy_encode


@pytest.mark.parametrize("workers", [0, 2])
def test_store_holds_the_latents_of_every_picture(tmp_path: Path, workers: int) -> None:
    index = make_world(tmp_path)
    placements = place_all(index)
    calls: list[tuple[int, int]] = []
    store = fill_memory_store(
        index, placements, toy_encode, 3, workers, lambda done, total: calls.append((done, total))
    )
    assert calls == [(done, 10) for done in range(1, 11)]
    for record in range(len(index)):
        noise = draw_latent_noise(index, placements, record, 3)
        expected = toy_encode(read_picture(index, placements, record)[None], noise[None])[0]
        assert torch.equal(store.get(record), expected) and store.get(record).dtype == torch.float32


def test_pictures_are_encoded_one_at_a_time(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    counts = []

    def encode(pixels: Tensor, latent_noise: Tensor) -> Tensor:
        counts.append(len(pixels))
        return toy_encode(pixels, latent_noise)

    fill_memory_store(index, place_all(index), encode, 0, workers=0)
    assert counts == [1] * len(index)


def test_latents_that_are_not_finite_name_the_picture(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    with pytest.raises(UserError, match=r"0\.png"):
        fill_memory_store(index, place_all(index), lambda pixels, noise: noise * torch.inf, 0, workers=0)
