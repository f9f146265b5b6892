"""Tiny text encoders of both families and tokenizers, each made once: a tokenizer takes a third of a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from transformers import CLIPTextModel

from library.models.tiny import make_tiny_model
from library.options.text import TextOptions
from library.text.tokenizer import CaptionTokenizer


@pytest.fixture(scope="session")
def encoders() -> Mapping[str, CLIPTextModel]:
    """By family; 12 and 23 layers, frozen. The final norm is given weights and a mean, as trained ones have."""
    models = {family: make_tiny_model(family, seed=3).text_encoder for family in ("sd1", "sd2")}
    draws = torch.Generator().manual_seed(5)
    for model in models.values():
        width = model.config.hidden_size
        model.final_layer_norm.weight.copy_(0.5 + torch.rand(width, generator=draws))
        model.final_layer_norm.bias.copy_(torch.rand(width, generator=draws) - 0.25)
    return models


@pytest.fixture(scope="session")
def caption_tokenizer() -> Callable[[str, TextOptions], CaptionTokenizer]:
    """Makes a tokenizer of a family and options, or gives the one it made before."""
    return cache(CaptionTokenizer)
