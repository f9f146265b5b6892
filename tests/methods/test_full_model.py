"""The whole-model method: rates of the parts, and the update at which the text encoder stops."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from transformers.optimization import Adafactor

from library.methods.full_model import FullModel, SavedForm
from library.methods.rates import PartRates
from library.models.checkpointing import enable_gradient_checkpointing
from library.models.extras import ModelExtras
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.text.encoder import unused_layers

RATES = PartRates(text_encoder=2e-3, unet=5e-3, asked=1e-3)
SAVED = SavedForm("safetensors", torch.float32, ModelExtras())
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, fused=True, weight_decay=0.1),
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1),
    "Adafactor": lambda groups: Adafactor(groups, relative_step=False, scale_parameter=False, weight_decay=0.1),
    "AdamW8bit": lambda groups: AdamW8bit(groups, weight_decay=0.1),
}


@pytest.fixture(scope="module")
def fresh() -> StableDiffusion:
    return make_tiny_model("sd1", seed=0)


@pytest.fixture
def model(fresh: StableDiffusion) -> StableDiffusion:
    """A copy to train; a copy is quicker than another draw."""
    return replace(fresh, unet=deepcopy(fresh.unet), text_encoder=deepcopy(fresh.text_encoder))


def learn(models: StableDiffusion, method: FullModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """An update as the objective and the trainer do it: a resting text encoder is outside the gradients."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step))
    with torch.set_grad_enabled(method.trains_text_encoder(step)):
        states = models.text_encoder(torch.arange(20 * step, 20 * step + 77)[None]).last_hidden_state
    loss = (models.unet(noise, torch.tensor([500]), states).sample - noise).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def weights_of(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def same(part: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in part.state_dict().items())


def test_each_part_has_its_own_rate(model: StableDiffusion) -> None:
    method = FullModel(RATES, True, (), SAVED)
    method.attach(model)
    groups = method.param_groups()
    assert [(group["name"], group["lr"]) for group in groups] == [("text_encoder", 2e-3), ("unet", 5e-3)]
    for group, part in zip(groups, (model.text_encoder, model.unet), strict=True):
        assert list(map(id, group["params"])) == list(map(id, part.parameters()))
        assert all(parameter.requires_grad for parameter in part.parameters())
    assert not any(parameter.requires_grad for parameter in model.vae.parameters())


def test_layers_behind_clip_skip_are_in_no_group(model: StableDiffusion) -> None:
    method = FullModel(RATES, True, unused_layers(model.text_encoder, 2), SAVED)
    method.attach(model)
    unused = {id(parameter) for parameter in model.text_encoder.encoder.layers[11].parameters()}
    assert unused.isdisjoint(id(parameter) for group in method.param_groups() for parameter in group["params"])


@pytest.mark.parametrize(
    ("trains", "stop", "expected"),
    [
        (True, None, [True] * 5),
        (True, 2, [True, True, False, False, False]),
        (True, 1, [True, False, False, False, False]),
        (True, 0, [False] * 5),
        (True, -1, [False] * 5),
        (False, None, [False] * 5),
        (False, 3, [False] * 5),
    ],
)
def test_it_trains_the_text_encoder_in_so_many_updates(
    model: StableDiffusion, trains: bool, stop: int | None, expected: list[bool]
) -> None:
    method = FullModel(RATES, trains, (), SAVED, stop)
    method.attach(model)
    assert [method.trains_text_encoder(step) for step in range(5)] == expected
    names = [group["name"] for group in method.param_groups()]
    assert names == (["text_encoder", "unet"] if expected[0] else ["unet"])
    assert all(parameter.requires_grad == expected[0] for parameter in model.text_encoder.parameters())


@pytest.mark.parametrize(("name", "checkpointing"), [*((name, False) for name in OPTIMIZERS), ("AdamW", True)])
def test_from_the_stop_on_no_bit_of_the_text_encoder_changes(
    model: StableDiffusion, name: str, checkpointing: bool
) -> None:
    """Weight decay and momentum notwithstanding."""
    method = FullModel(RATES, True, (), SAVED, stop_text_encoder_at=2)
    method.attach(model)
    if checkpointing:
        enable_gradient_checkpointing(model, with_text_encoder=method.trains_text_encoder(0))
    optimizer = OPTIMIZERS[name](method.param_groups())
    for step in range(4):
        text, unet = weights_of(model.text_encoder), weights_of(model.unet)
        learn(model, method, optimizer, step)
        assert same(model.text_encoder, text) == (step >= 2), step
        assert not same(model.unet, unet)


def test_a_text_encoder_that_never_trains_is_left_in_evaluation_mode(model: StableDiffusion) -> None:
    before = weights_of(model.text_encoder)
    method = FullModel(RATES, True, (), SAVED, stop_text_encoder_at=0)
    method.attach(model)
    optimizer = OPTIMIZERS["AdamW"](method.param_groups())
    learn(model, method, optimizer, 0)
    assert same(model.text_encoder, before) and not model.text_encoder.training
