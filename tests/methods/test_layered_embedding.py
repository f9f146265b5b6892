"""Extended Textual Inversion: vectors for each layer of the U-Net, against a reader that shares no code with ours."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from torch import Tensor

from library.methods.embedding import LayeredCaptions, LayeredEmbedding, StartVectors, start_vectors
from library.models.checkpointing import enable_gradient_checkpointing
from library.models.convert import unet as unet_names
from library.models.embedding_files import LAYERS
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.options.text import TextOptions
from library.text.aliases import Alias
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer

COUNT = 2  # vectors of the word, in each layer
WORD = Alias("zumira", COUNT)
WITH, WITHOUT = "a photo of zumira on a sofa", "a plain cat"
# written out from the paper's code: blocks of the original U-Net by their numbers
NAMES = {
    **{f"IN{n:02}": f"input_blocks.{n}.1" for n in (1, 2, 4, 5, 7, 8)},
    "MID": "middle_block.1",
    **{f"OUT{n:02}": f"output_blocks.{n}.1" for n in range(3, 12)},
}


@cache
def made_once(kind: str) -> StableDiffusion:
    return make_tiny_model(kind, seed=0)


def fresh(kind: str) -> StableDiffusion:
    """A model that a test may change."""
    made = made_once(kind)
    return replace(made, unet=deepcopy(made.unet), text_encoder=deepcopy(made.text_encoder))


def random_vectors(width: int = 32) -> Tensor:
    return torch.randn(16 * COUNT, width, generator=torch.Generator().manual_seed(4))


def attached(model: StableDiffusion) -> LayeredEmbedding:
    method = LayeredEmbedding(random_vectors(model.text_encoder.config.hidden_size), 0.1)
    method.attach(model)
    return method


def tokens(model: StableDiffusion, captions: list[str], options: TextOptions) -> Tensor:
    return CaptionTokenizer(model.family, options, WORD)(captions)[0]


def encode(model: StableDiffusion, captions: list[str], options: TextOptions = TextOptions()) -> Tensor:  # noqa: B008
    layered = LayeredCaptions(CaptionEncoder(options), COUNT)
    return layered(model.text_encoder, tokens(model, captions, options), None)


def predict(model: StableDiffusion, states: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(len(states), 4, 8, 8, generator=generator).to(states)
    return model.unet(latents, torch.full((len(states),), 300), states).sample


def test_the_layers_are_those_of_the_original_unet() -> None:
    assert list(LAYERS) == list(NAMES)
    for name, place in NAMES.items():
        (found,) = unet_names.to_diffusers(f"model.diffusion_model.{place}.norm.weight", torch.ones(1))
        assert found == f"{LAYERS[name]}.norm.weight"
    unet = made_once("sd1").unet
    transformers = [name for name, part in unet.named_modules() if type(part).__name__ == "Transformer2DModel"]
    assert sorted(transformers) == sorted(LAYERS.values())


class OwnStates:
    """An attention processor that brings its layer's text states with it."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self.usual = AttnProcessor()

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **more: Any) -> Tensor:
        return self.usual(attn, hidden_states, self.states, **more)


@torch.no_grad()
def read_by_hand(kind: str, vectors: dict[str, Tensor], captions: list[str], options: TextOptions) -> Tensor:
    """The U-Net's answer where each layer is given the prompts with its own vectors, encoded on their own."""
    model = doubled(kind)
    old = model.text_encoder.embeddings.token_embedding
    ids, plain = tokens(model, captions, options), CaptionEncoder(options)
    processors = dict(model.unet.attn_processors)
    for name, place in NAMES.items():
        extended = torch.nn.Embedding.from_pretrained(torch.cat([old.weight, vectors[name]]))
        model.text_encoder.embeddings.token_embedding = extended
        states = plain(model.text_encoder, ids, None)
        (path,) = unet_names.to_diffusers(f"model.diffusion_model.{place}.norm.weight", torch.ones(1))
        processors[path.replace("norm.weight", "transformer_blocks.0.attn2.processor")] = OwnStates(states)
    model.unet.set_attn_processor(processors)
    return predict(model, torch.zeros(len(captions), 77, old.embedding_dim, dtype=torch.float64))


def doubled(kind: str) -> StableDiffusion:
    """In float64, in which a single layer's share of the answer is far above rounding."""
    model = fresh(kind)
    for part in (model.unet, model.text_encoder):
        torch.nn.Module.to(part, torch.float64)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sd1", TextOptions(clip_skip=2, max_token_length=150)),
        ("sd2", TextOptions()),
    ],
)
def test_another_reader_gets_the_same_from_the_file(tmp_path: Path, kind: str, options: TextOptions) -> None:
    model = doubled(kind)
    attached(model).save(tmp_path / "zu.safetensors", torch.float32, {})
    captions = [WITHOUT, WITH]
    if options.max_token_length > 75:
        captions[1] = f"{WITHOUT}, " * 18 + WITH  # the word stands in the second piece
    ours = predict(model, encode(model, captions, options))
    vectors = load_file(str(tmp_path / "zu.safetensors"))
    torch.testing.assert_close(ours, read_by_hand(kind, vectors, captions, options), atol=1e-10, rtol=0)


@torch.no_grad()
def test_the_other_reader_would_see_exchanged_layers(tmp_path: Path) -> None:
    model = doubled("sd1")
    attached(model).save(tmp_path / "zu.safetensors", torch.float32, {})
    ours, vectors = predict(model, encode(model, [WITH])), load_file(str(tmp_path / "zu.safetensors"))
    for one, other in (("IN01", "IN02"), ("MID", "OUT03")):
        exchanged = {**vectors, one: vectors[other], other: vectors[one]}
        theirs = read_by_hand("sd1", exchanged, [WITH], TextOptions())
        assert float((ours - theirs).abs().max()) > 1e-8


@torch.no_grad()
def test_each_layer_has_its_own_vectors() -> None:
    model = fresh("sd1")
    method = attached(model)
    before = encode(model, [WITH])
    rows, answer = before.shape[1] // 16, predict(model, before)
    for number in (0, 15):
        changed = fresh("sd1")
        other = LayeredEmbedding(random_vectors().clone(), 0.1)
        other.attach(changed)
        other.param_groups()[0]["params"][0][number * COUNT + 1] += 5.0
        states = encode(changed, [WITH])
        differs = (states != before).flatten(2).any(dim=2)[0].unflatten(0, (16, rows)).any(dim=1)
        assert differs.tolist() == [place == number for place in range(16)]
        assert not torch.equal(predict(changed, states), answer)
    method.detach()
    assert torch.equal(predict(model, before[:, :rows]), predict(fresh("sd1"), before[:, :rows]))


@torch.no_grad()
def test_captions_without_the_word_are_encoded_once_and_as_ever() -> None:
    model = fresh("sd1")
    attached(model)
    calls: list[int] = []

    def counted(text_encoder: Any, ids: Tensor, weights: Tensor | None) -> Tensor:
        calls.append(len(ids))
        return CaptionEncoder(TextOptions())(text_encoder, ids, weights)

    ids = tokens(model, [WITHOUT, WITH, "", WITH], TextOptions())
    states = LayeredCaptions(counted, COUNT)(model.text_encoder, ids, None)
    assert sum(calls) == 1 + 16 + 1 + 16 and max(calls) <= 16
    plain = CaptionEncoder(TextOptions())(fresh("sd1").text_encoder, ids[[0, 2]], None)
    for own, expected in zip(states[[0, 2]], plain, strict=True):
        assert torch.equal(own, expected.repeat(16, 1))
    # a caption's states do not depend on its company
    alone = LayeredCaptions(counted, COUNT)(model.text_encoder, ids[1:2], None)
    assert torch.equal(states[1], alone[0]) and torch.equal(states[3], alone[0])


@torch.no_grad()
def test_weights_of_tokens_go_with_their_captions() -> None:
    model = fresh("sd1")
    attached(model)
    ids = tokens(model, [WITHOUT, WITH], TextOptions())
    weights = torch.ones(ids.shape)
    weights[0, 0, 2], weights[1, 0, 3] = 2.0, 0.5
    layered = LayeredCaptions(CaptionEncoder(TextOptions(restore_weighted_mean=False)), COUNT)
    states = layered(model.text_encoder, ids, weights).unflatten(1, (16, 77))
    plain = layered(model.text_encoder, ids, None).unflatten(1, (16, 77))
    torch.testing.assert_close(states, plain * weights[:, :, :, None])


def gradient(model: StableDiffusion, method: LayeredEmbedding, captions: list[str]) -> Tensor:
    (group,) = method.param_groups()
    (vectors,) = group["params"]
    vectors.grad = None
    predict(model, encode(model, captions)).square().mean().backward()
    return vectors.grad


def test_gradients_reach_all_vectors_and_checkpointing_changes_nothing() -> None:
    model = fresh("sd1")
    method = attached(model)
    plain = gradient(model, method, [WITH, WITHOUT])
    assert plain.shape == (32, 32) and bool((plain != 0).any(dim=1).all())
    assert not gradient(model, method, [WITHOUT, ""]).any()  # but there is one: engines wait for it
    enable_gradient_checkpointing(model, with_text_encoder=True)
    torch.testing.assert_close(gradient(model, method, [WITH, WITHOUT]), plain, atol=1e-7, rtol=1e-3)


def test_nothing_but_the_new_vectors_moves() -> None:
    model = fresh("sd1")
    method = attached(model)
    before = {name: value.clone() for name, value in model.text_encoder.state_dict().items()}
    unet_before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    optimizer = torch.optim.AdamW(method.param_groups(), weight_decay=0.5)
    gradient(model, method, [WITH])
    optimizer.step()
    moved = [name for name, value in model.text_encoder.state_dict().items() if not torch.equal(value, before[name])]
    assert moved == ["embeddings.token_embedding.new.weight"]
    assert all(torch.equal(value, unet_before[name]) for name, value in model.unet.state_dict().items())
    trained = {
        id(p) for part in (model.unet, model.text_encoder, model.vae) for p in part.parameters() if p.requires_grad
    }
    assert trained == {id(p) for group in method.param_groups() for p in group["params"]}


@torch.no_grad()
def test_other_kinds_of_attention_take_the_same_states() -> None:
    model = fresh("sd1")
    attached(model)
    states = encode(model, [WITH])
    usual = predict(model, states)
    model.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(predict(model, states), usual, atol=1e-4, rtol=1e-3)


def test_states_of_one_layer_are_not_taken_for_those_of_all() -> None:
    model = fresh("sd1")
    attached(model)
    with pytest.raises(ValueError, match="77 text states are not those of 16 layers"):
        predict(model, torch.zeros(1, 77, 32))


def test_all_layers_start_alike() -> None:
    table = made_once("sd1").text_encoder.embeddings.token_embedding.weight
    of_word = start_vectors(StartVectors(3, None, (320, 2368), 16), table, 0)
    assert torch.equal(of_word, table[[320, 2368, 320]].repeat(16, 1))
    average = start_vectors(StartVectors(2, layers=16), table, 7)
    assert torch.equal(average, start_vectors(StartVectors(2), table, 7).repeat(16, 1))
    own = random_vectors()
    assert torch.equal(start_vectors(StartVectors(COUNT, own, (), 16), table, 0), own)
