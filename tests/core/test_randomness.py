"""Draws depend on their name alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from library.core.randomness import derived_seed, generator, seeded_torch

ROOT = Path(__file__).resolve().parents[2]


def test_same_name_gives_the_same_numbers_in_another_process() -> None:
    code = (
        "from library.core.randomness import generator;"
        "print(generator(42, 3, 'folder/猫.png', 'noise').standard_normal(4).tolist())"
    )
    other = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert other.stdout.strip() == str(generator(42, 3, "folder/猫.png", "noise").standard_normal(4).tolist())


def test_every_part_of_the_name_counts() -> None:
    names = [
        (1, 0, "a", "noise"),
        (2, 0, "a", "noise"),
        (1, 1, "a", "noise"),
        (1, 0, "b", "noise"),
        (1, 0, "a", "order"),
    ]
    first_numbers = [generator(*name).integers(2**62) for name in names]
    assert len(set(first_numbers)) == len(names)


def test_numbers_are_standard_normal() -> None:
    drawn = np.concatenate([generator(0, 0, str(i), "noise").standard_normal(1000) for i in range(100)])
    assert abs(drawn.mean()) < 0.015 and abs(drawn.std() - 1) < 0.015


def test_derived_seed_fits_a_torch_generator() -> None:
    seeds = {derived_seed(0, epoch, "x", "network") for epoch in range(100)}
    assert len(seeds) == 100 and all(0 <= seed < 2**63 for seed in seeds)


def test_seeded_torch_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    with seeded_torch(1, "test"):
        first = torch.rand(3)
    with seeded_torch(1, "test"):
        again = torch.rand(3)
    assert torch.equal(first, again)
    assert torch.equal(before, torch.get_rng_state())
