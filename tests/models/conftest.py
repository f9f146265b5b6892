"""Toy-width models, in memory and in every form on disk; made once per session, to be read only."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.models.save import save_diffusers, save_single_file
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import KINDS, make_tiny_model
from library.text.tokenizer import tokenizer_files


@pytest.fixture(scope="session")
def models_in_memory() -> dict[str, StableDiffusion]:
    """A toy model of each kind: sd1, sd2, sd2_v."""
    return {kind: make_tiny_model(kind, seed=0) for kind in KINDS}


@pytest.fixture(scope="session")
def model_files(models_in_memory: dict[str, StableDiffusion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with KIND.safetensors, KIND.ckpt and the Diffusers folder KIND for each kind."""
    folder = tmp_path_factory.mktemp("tiny_models")
    for kind, model in models_in_memory.items():
        save_single_file(model, folder / f"{kind}.safetensors", {"format": "pt"})
        save_single_file(model, folder / f"{kind}.ckpt", {})
        save_diffusers(model, folder / kind, tokenizer_files(model.family))
    return folder
