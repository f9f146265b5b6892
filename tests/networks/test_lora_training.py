"""What acts on a LoRA while it trains: dropouts and the limit of norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from networks.dropout import BatchSeed
from networks.lora_modules import Dropouts, LoraModule, Shape, Target
from tests.networks.lora_helpers import make, predict, randomise


@pytest.fixture
def model() -> StableDiffusion:
    return make_tiny_model("sd1", seed=0)


def module_on(layer: nn.Module, dropouts: Dropouts, seed: int = 1, name: str = "x") -> LoraModule:
    """A module with random matrices whose inner values are all shown: `lora_up` passes them on."""
    module = LoraModule(name, Target(layer, Shape(8, 8.0)), dropouts, BatchSeed(seed))
    with torch.no_grad():
        module.lora_up.weight.copy_(torch.eye(8).view_as(module.lora_up.weight))
    return module


@torch.no_grad()
@pytest.mark.parametrize("convolution", [False, True])
def test_rank_dropout_drops_whole_channels_of_each_sample_and_scales_the_rest(convolution: bool) -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1) if convolution else nn.Linear(4, 8)
    x = torch.randn((6, 4, 5, 5) if convolution else (6, 5, 4), generator=torch.Generator().manual_seed(0))
    module = module_on(layer, Dropouts(rank=0.5))
    ratio = module(x) / module.eval()(x)
    channels_last = ratio.movedim(1, -1).flatten(1, -2) if convolution else ratio
    assert torch.allclose(channels_last, channels_last[:, :1].expand_as(channels_last), atol=1e-4)
    factors = channels_last[:, 0].round(decimals=3)  # (6, 8): one for each sample and channel
    assert set(factors.abs().flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(factors[0], factors[1])


@torch.no_grad()
def test_module_dropout_drops_a_module_for_a_batch_as_often_as_asked() -> None:
    layer, x = nn.Linear(4, 8), torch.ones(2, 4)
    module = module_on(layer, Dropouts(module=0.25))
    whole = module.eval()(x)
    module.train()
    dropped = 0
    for seed in range(400):
        module._batch_seed.value = seed
        out = module(x)
        assert torch.equal(out, whole) or not out.any()
        dropped += not out.any()
    assert 70 <= dropped <= 130
    others = [module_on(layer, Dropouts(module=0.5), name=f"m{i}")(x).any().item() for i in range(40)]
    assert len(set(others)) == 2, "modules are drawn each for itself"


def test_dropouts_depend_on_the_batch_and_survive_checkpointing(model: StableDiffusion) -> None:
    network = make(model, conv_dim="2", rank_dropout="0.3", module_dropout="0.3", neuron_dropout=0.1)
    randomise(network, 0.2)
    network.train()

    def gradients(seed: int) -> torch.Tensor:
        network.zero_grad()
        network.on_batch_start(seed)
        predict(model).square().mean().backward()
        found = [p.grad for p in network.parameters()]
        assert all(grad is not None for grad in found), "processes that average gradients wait for all of them"
        return torch.cat([grad.flatten() for grad in found if grad is not None])

    first = gradients(1)
    assert torch.equal(gradients(1), first) and not torch.equal(gradients(2), first)
    model.unet.train()
    model.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(1), first, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_norms_are_limited_and_told(model: StableDiffusion) -> None:
    network = make(model, rank=3, alpha=2, conv_dim="2", conv_alpha="1")
    randomise(network, 0.15)

    def changes() -> dict[str, torch.Tensor]:
        return {
            module.name: module.lora_up.weight.flatten(1) @ module.lora_down.weight.flatten(1) * module.scale
            for module in network.loras()
        }

    before = changes()
    norms = {name: float(change.norm()) for name, change in before.items()}
    limit = sorted(norms.values())[len(norms) // 2]
    scaled, mean, largest = network.apply_max_norm_regularization(limit, torch.device("cpu"))
    after = changes()
    assert int(scaled) == sum(norm > limit for norm in norms.values()) > 0
    assert float(largest) == pytest.approx(limit, rel=1e-4)
    assert float(mean) == pytest.approx(sum(min(norm, limit) for norm in norms.values()) / len(norms), rel=1e-4)
    for name, change in after.items():
        torch.testing.assert_close(change, before[name] * min(1.0, limit / norms[name]), atol=1e-5, rtol=1e-4)
    # both matrices carry their share
    again, _, _ = network.apply_max_norm_regularization(limit * 1.001, torch.device("cpu"))
    assert int(again) == 0
