"""A LoRA learns from ten pictures what its base cannot draw, and its strength leads evenly from one to the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples.toy_world.novelties import BRICKS, CRESCENT, TEAL_PAINT, Novelty
from library.models.stable_diffusion import StableDiffusion
from tests.learning.learning import (
    base_model,
    base_share,
    novelty_share,
    pictures_of,
    prompts_of,
    show,
    train,
    with_network,
    write_novelty,
)

RECIPE = ("--network_dim", "8", "--network_alpha", "8", "--learning_rate", "2e-3")
U_NET_ONLY = ("--network_train_unet_only", "--cache_text_encoder_outputs")
NOVELTIES = (CRESCENT, BRICKS, TEAL_PAINT)


def trained(novelty: Novelty, folder: Path, updates: int, seed: int, *words: str) -> Path:
    pictures = write_novelty(novelty, folder / "pictures", seed)
    said = ("--train_data_dir", str(pictures), "--max_train_steps", str(updates), *RECIPE, *words)
    return train("train_network", folder / "trained", said, seed)


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm())


@torch.no_grad()
def told(model: StableDiffusion) -> Tensor:
    """What the U-Net says of a few noisy latents, from no noise to nothing else."""
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn((4, 4, 8, 8), generator=draws)
    states = torch.randn((4, 77, model.unet.config["cross_attention_dim"]), generator=draws)
    return model.unet(latents, torch.tensor([20, 300, 600, 950]), states).sample


@pytest.fixture(scope="module")
def crescents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the shortest run that shows it."""
    return trained(CRESCENT, tmp_path_factory.mktemp("crescents"), 50, 1, *U_NET_ONLY)


def test_a_short_run_learns_a_shape(crescents: Path) -> None:
    assert base_share(CRESCENT, 8) <= 0.1
    assert novelty_share(with_network("lora", crescents), CRESCENT, 8) >= 0.6


def test_strength_leads_from_the_base_bit_for_bit_to_what_was_learned(crescents: Path) -> None:
    base = told(base_model())
    none, half, full = (told(with_network("lora", crescents, strength)) for strength in (0, 0.5, 1))
    assert torch.equal(none, base)
    whole = apart(full, base)
    assert 0.2 * whole < apart(half, base) < 0.8 * whole
    assert apart(half, (base + full) / 2) < 0.3 * whole
    prompts = prompts_of(CRESCENT, 2)
    assert (pictures_of(with_network("lora", crescents, 0), prompts) == pictures_of(base_model(), prompts)).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("novelty", NOVELTIES, ids=lambda novelty: novelty.name)
def test_it_learns_a_shape_a_texture_and_a_colour(novelty: Novelty, seed: int, tmp_path: Path) -> None:
    before = base_share(novelty)
    path = trained(novelty, tmp_path, 240, seed, *U_NET_ONLY)
    half, after = (novelty_share(with_network("lora", path, strength), novelty) for strength in (0.5, 1))
    show(f"LoRA, {novelty.name}, seed {seed}", before=before, half=half, after=after)
    assert before <= 0.1 and after >= 0.85
    assert before < half < after


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns_with_the_text_encoder(seed: int, tmp_path: Path) -> None:
    path = trained(CRESCENT, tmp_path, 240, seed)
    after = novelty_share(with_network("lora", path), CRESCENT)
    show(f"LoRA with the text encoder, seed {seed}", after=after)
    assert after >= 0.85
