"""A trained file put to use at any strength: from what the model was to what was learned, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.toy_world.applied import apply
from library.core.errors import UserError
from library.models.embedding_files import write_embedding
from library.options.text import TextOptions
from library.preview.generate import PromptReader
from tests.learning.learning import base_copy, base_model

WIDTH = 48  # of the toy world's text encoder
PROMPT = "a large teal-x circle, sky background"


def test_a_word_goes_from_what_it_began_as_to_what_was_learned_and_back(tmp_path: Path) -> None:
    path = tmp_path / "word.safetensors"
    vectors = torch.randn((2, WIDTH), generator=torch.Generator().manual_seed(0))
    write_embedding(path, vectors, torch.float32, {})
    model = base_copy()
    applied = apply("textual_inversion", path, model, "teal-x", "blue")

    def states(strength: float) -> torch.Tensor:
        applied.set_strength(strength)
        return applied.reader.states(model.text_encoder, [PROMPT])

    learned = applied.reader.states(model.text_encoder, [PROMPT])
    first, half, last = (states(strength) for strength in (0.0, 0.5, 1.0))
    as_blue = PromptReader.of("sd1", TextOptions()).states(
        base_model().text_encoder, [PROMPT.replace("teal-x", "blue blue")]
    )
    torch.testing.assert_close(first, as_blue)
    assert torch.equal(last, learned) and torch.equal(states(0.0), first)
    assert not torch.equal(half, first) and not torch.equal(half, last)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        apply("lora", tmp_path / "lora.safetensors", base_copy(), "", "")
