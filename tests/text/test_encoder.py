from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel

from library.options.text import TextOptions
from library.text.encoder import CaptionEncoder, unused_layers

PLAIN = CaptionEncoder(TextOptions())
Encoders = Mapping[str, CLIPTextModel]


@pytest.fixture
def text_encoder(encoders: Encoders) -> CLIPTextModel:
    return copy.deepcopy(encoders["sd1"])


def some_ids(*shape: int) -> torch.Tensor:
    return torch.randint(49406, shape, generator=torch.Generator().manual_seed(1))


def some_weights(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def test_states_are_the_normed_output_of_the_last_layer(text_encoder: CLIPTextModel) -> None:
    input_ids = some_ids(2, 1, 77)
    outputs = text_encoder(input_ids[:, 0], output_hidden_states=True)
    expected = outputs.last_hidden_state
    assert torch.equal(expected, text_encoder.final_layer_norm(outputs.hidden_states[-1]))
    assert torch.equal(PLAIN(text_encoder, input_ids, None), expected)
    assert torch.equal(CaptionEncoder(TextOptions(clip_skip=1))(text_encoder, input_ids, None), expected)


@pytest.mark.parametrize(("clip_skip", "asked"), [(None, False), (1, False), (2, True)])
def test_hidden_states_are_kept_only_where_one_is_used(
    text_encoder: CLIPTextModel, clip_skip: int | None, asked: bool
) -> None:
    given: list[dict[str, Any]] = []
    text_encoder.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    CaptionEncoder(TextOptions(clip_skip=clip_skip))(text_encoder, some_ids(1, 1, 77), None)
    assert [bool(kwargs.get("output_hidden_states")) for kwargs in given] == [asked]


def test_later_tokens_do_not_reach_back(text_encoder: CLIPTextModel) -> None:
    input_ids = some_ids(1, 1, 77)
    changed = input_ids.clone()
    changed[..., 40:] = 5
    first, second = PLAIN(text_encoder, input_ids, None), PLAIN(text_encoder, changed, None)
    assert torch.allclose(first[:, :40], second[:, :40], atol=1e-6)
    assert not torch.allclose(first[:, 40:], second[:, 40:])


@pytest.mark.parametrize(("count", "rows"), [(1, 77), (2, 152), (3, 227)])
def test_plain_chunks_are_joined_without_their_inner_ends(text_encoder: CLIPTextModel, count: int, rows: int) -> None:
    input_ids = some_ids(2, count, 77)
    options = TextOptions(max_token_length=75 * count)
    states = CaptionEncoder(options)(text_encoder, input_ids, None)
    alone = [text_encoder(input_ids[:, i]).last_hidden_state for i in range(count)]
    assert states.shape == (2, rows, 32)
    assert torch.allclose(states[:, 0], alone[0][:, 0], atol=1e-6)
    assert torch.allclose(states[:, -1], alone[-1][:, 76], atol=1e-6)
    for i, chunk in enumerate(alone):
        assert torch.allclose(states[:, 1 + 75 * i : 76 + 75 * i], chunk[:, 1:76], atol=1e-6)


def test_webui_chunks_are_joined_whole(text_encoder: CLIPTextModel) -> None:
    input_ids, weights = some_ids(2, 3, 77), some_weights(2, 3, 77)
    encoder = CaptionEncoder(TextOptions(max_token_length=225, prompt_splitting="webui", weighted_captions=True))
    alone = [text_encoder(input_ids[:, i]).last_hidden_state * weights[:, i, :, None] for i in range(3)]
    assert torch.allclose(encoder(text_encoder, input_ids, weights), torch.cat(alone, dim=1), atol=1e-6)


def test_unpadded_rows_keep_their_length(text_encoder: CLIPTextModel) -> None:
    input_ids = some_ids(2, 1, 9)
    states = CaptionEncoder(TextOptions(no_token_padding=True))(text_encoder, input_ids, None)
    assert torch.equal(states, text_encoder(input_ids[:, 0]).last_hidden_state)


def test_weights_multiply_their_rows(text_encoder: CLIPTextModel) -> None:
    input_ids, weights = some_ids(1, 2, 77), torch.ones(1, 2, 77)
    weights[0, 0, 3], weights[0, 1, 1], weights[0, 1, 75] = 1.5, -2.0, 0.0
    encoder = CaptionEncoder(TextOptions(max_token_length=150, weighted_captions=True))
    plain, weighted = encoder(text_encoder, input_ids, None), encoder(text_encoder, input_ids, weights)
    expected = plain.clone()
    expected[0, 3] *= 1.5
    expected[0, 76] *= -2.0
    expected[0, 150] = 0.0
    assert torch.equal(weighted, expected)


RESTORED = TextOptions(max_token_length=150, weighted_captions=True, restore_weighted_mean=True)


def test_the_mean_of_each_caption_is_restored(text_encoder: CLIPTextModel) -> None:
    input_ids, weights = some_ids(3, 2, 77), torch.ones(3, 2, 77)
    weights[0, :, 5:40], weights[1, 0, 5:40] = 1.4, 0.5
    options = TextOptions(max_token_length=150, weighted_captions=True)
    before = CaptionEncoder(options)(text_encoder, input_ids, None)
    unrestored = CaptionEncoder(options)(text_encoder, input_ids, weights)
    restored = CaptionEncoder(RESTORED)(text_encoder, input_ids, weights)
    assert torch.allclose(restored.mean(dim=(1, 2)), before.mean(dim=(1, 2)), atol=1e-6)
    assert not torch.allclose(unrestored.mean(dim=(1, 2))[:2], before.mean(dim=(1, 2))[:2], atol=1e-3)
    ratios = restored / unrestored
    assert torch.allclose(ratios, ratios[:, :1, :1].expand_as(ratios), rtol=1e-4)  # one factor for a whole caption
    assert torch.equal(restored[2], before[2])


def test_the_web_ui_restores_the_mean_of_each_chunk(text_encoder: CLIPTextModel) -> None:
    ids, weights = some_ids(2, 2, 77), some_weights(2, 2, 77)
    weights[:, 1] = 1.0  # nothing is weighted in the second chunk, so nothing changes there
    restored = CaptionEncoder(replace(RESTORED, prompt_splitting="webui"))(text_encoder, ids, weights)
    before = CaptionEncoder(TextOptions(max_token_length=150, prompt_splitting="webui"))(text_encoder, ids, None)
    assert torch.allclose(restored[:, 77:], before[:, 77:], atol=1e-6)
    assert torch.allclose(restored[:, :77].mean(dim=(1, 2)), before[:, :77].mean(dim=(1, 2)), atol=1e-6)
    assert not torch.allclose(restored[:, :77], before[:, :77], atol=1e-3)


def test_a_mean_of_nothing_is_left_alone(text_encoder: CLIPTextModel) -> None:
    text_encoder.final_layer_norm.weight.fill_(1)
    text_encoder.final_layer_norm.bias.zero_()  # now every row has the mean 0, but for rounding
    text_encoder.requires_grad_(True)
    input_ids, weights = some_ids(2, 2, 77), some_weights(2, 2, 77)
    weights[1] = 0
    restored = CaptionEncoder(RESTORED)(text_encoder, input_ids, weights)
    unrestored = CaptionEncoder(TextOptions(max_token_length=150))(text_encoder, input_ids, weights)
    assert torch.equal(restored, unrestored)
    restored.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in text_encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("clip_skip", (None, 2))
def test_the_number_format_of_the_encoder_is_kept(text_encoder: CLIPTextModel, clip_skip: int | None) -> None:
    encoder = CaptionEncoder(TextOptions(clip_skip=clip_skip))
    weights = torch.full((1, 1, 77), 1.25)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        text_encoder.to(dtype=dtype)
        assert encoder(text_encoder, some_ids(1, 1, 77), weights).dtype == dtype
        assert CaptionEncoder(RESTORED)(text_encoder, some_ids(1, 2, 77), weights.repeat(1, 2, 1)).dtype == dtype


@pytest.mark.parametrize("family", ("sd1", "sd2"))
@pytest.mark.parametrize("clip_skip", (None, 1, 2, 3, 24))
def test_unused_layers_are_those_that_get_no_gradient(encoders: Encoders, family: str, clip_skip: int | None) -> None:
    text_encoder = copy.deepcopy(encoders[family]).requires_grad_(True)
    unused = unused_layers(text_encoder, clip_skip)
    count = len(text_encoder.encoder.layers)
    assert len(unused) == min((clip_skip or 1) - 1, count)
    if clip_skip == 24 and family == "sd1":
        return  # beyond the embeddings; refused before a run begins
    states = CaptionEncoder(TextOptions(clip_skip=clip_skip))(text_encoder, some_ids(1, 1, 77), None)
    states.square().sum().backward()
    trained = [any(p.grad is not None for p in layer.parameters()) for layer in text_encoder.encoder.layers]
    assert [i for i in range(count) if not trained[i]] == list(unused)
    assert text_encoder.final_layer_norm.weight.grad is not None
    assert text_encoder.embeddings.token_embedding.weight.grad is not None


def test_known_unused_layers(encoders: Encoders) -> None:
    assert unused_layers(encoders["sd1"], 2) == (11,)
    assert unused_layers(encoders["sd1"], 3) == (10, 11)
    assert unused_layers(encoders["sd2"], 2) == (22,)
    assert unused_layers(encoders["sd1"], None) == unused_layers(encoders["sd1"], 1) == ()


def test_gradients_are_the_same_when_activations_are_computed_again(text_encoder: CLIPTextModel) -> None:
    text_encoder.requires_grad_(True)
    encoder = CaptionEncoder(TextOptions(clip_skip=2, max_token_length=150))

    def gradients() -> list[torch.Tensor]:
        text_encoder.zero_grad()
        encoder(text_encoder, some_ids(1, 2, 77), torch.full((1, 2, 77), 1.5))[..., :7].square().sum().backward()
        return [p.grad.clone() for p in text_encoder.parameters() if p.grad is not None]

    kept = gradients()
    text_encoder.activation_checkpointing_enable()
    text_encoder.train()
    again = gradients()
    assert len(kept) == len(again)
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    assert any(one.abs().max() > 1e-3 for one in kept)
