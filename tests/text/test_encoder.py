from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from library.text.encoder import encode_tokens


@pytest.fixture
def text_encoder() -> CLIPTextModel:
    config = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIPTextModel(config).eval()


def test_states_are_the_normed_output_of_the_last_layer(text_encoder: CLIPTextModel) -> None:
    input_ids = torch.arange(154).reshape(2, 77)
    states = encode_tokens(text_encoder, input_ids)
    hidden = text_encoder(input_ids, output_hidden_states=True).hidden_states
    assert states.shape == (2, 77, 16)
    assert torch.equal(states, text_encoder.final_layer_norm(hidden[-1]))
    assert len(hidden) == 4


def test_later_tokens_do_not_reach_back(text_encoder: CLIPTextModel) -> None:
    input_ids = torch.arange(77)[None]
    changed = input_ids.clone()
    changed[:, 40:] = 5
    first, second = encode_tokens(text_encoder, input_ids), encode_tokens(text_encoder, changed)
    assert torch.allclose(first[:, :40], second[:, :40], atol=1e-6)
    assert not torch.allclose(first[:, 40:], second[:, 40:])


def test_gradients_flow_into_the_encoder(text_encoder: CLIPTextModel) -> None:
    text_encoder.requires_grad_(True)
    encode_tokens(text_encoder, torch.arange(77)[None]).square().sum().backward()
    assert text_encoder.embeddings.token_embedding.weight.grad is not None
