"""The layers that train fast on a CPU compute what PyTorch's and Diffusers' own do, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from examples.toy_world.cpu_layers import FastGroupNorm, PlainAttention, use_fast_norms, use_plain_attention
from examples.toy_world.train_text_encoder import HIDDEN
from examples.toy_world.train_unet import WIDTHS as UNET_WIDTHS
from examples.toy_world.train_vae import WIDTHS as VAE_WIDTHS
from library.models.topology import NORM_GROUPS, unet_config, vae_config

# channels of every group norm of the two networks; the wide ones stand behind joined skips
CHANNELS = (32, 64, 96, 128, 160, 192)
FLOAT32 = 3e-6  # of the largest value, from what float64 gives; measured 7e-7 for PyTorch's own and 1e-6 for ours
BFLOAT16 = 2e-2


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value expected."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def results(layer: Callable[..., Tensor], parameters: Sequence[Tensor], *inputs: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of inputs and parameters for a random direction."""
    inputs = tuple(values.detach().clone(memory_format=torch.preserve_format).requires_grad_() for values in inputs)
    out = layer(*inputs)
    direction = draw(*out.shape, seed=99).to(out.dtype)
    return [out, *torch.autograd.grad(out, [*inputs, *parameters], direction)]


def norms(channels: int, epsilon: float) -> tuple[nn.GroupNorm, nn.GroupNorm]:
    """PyTorch's and ours with the same parameters, which are not those of the beginning."""
    plain = nn.GroupNorm(NORM_GROUPS, channels, eps=epsilon)
    with torch.no_grad():
        plain.weight.copy_(1 + 0.3 * draw(channels, seed=1))
        plain.bias.copy_(0.5 * draw(channels, seed=2))
    fast = deepcopy(plain)
    use_fast_norms(fast)
    assert type(fast) is FastGroupNorm and type(plain) is nn.GroupNorm
    return plain, fast


def shapes(channels: int) -> list[tuple[int, ...]]:
    """Pictures of 64x64 and 128x64 inside the VAE and the U-Net, one cell, and rows as the VAE's attention has them."""
    return [(3, channels, 8, 8), (2, channels, 16, 8), (2, channels, 64, 64), (5, channels, 1, 1), (2, channels, 96)]


@pytest.mark.parametrize("epsilon", (1e-5, 1e-6))
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("channels", CHANNELS)
def test_the_norm_is_exact(channels: int, channels_last: bool, epsilon: float) -> None:
    plain, fast = norms(channels, epsilon)
    exact = deepcopy(plain).double()
    for shape in shapes(channels):
        # far from zero, as layers see it
        values = 2 * draw(*shape, seed=3) + draw(shape[1], seed=4).view(-1, *[1] * (len(shape) - 2))
        if channels_last and len(shape) == 4:
            values = values.contiguous(memory_format=torch.channels_last)
        expected = results(exact, list(exact.parameters()), values.double())
        for layer in (plain, fast):
            found = results(layer, list(layer.parameters()), values)
            if channels_last and len(shape) == 4:
                assert found[0].is_contiguous(memory_format=torch.channels_last)
            if shape[2:] == (1, 1) and channels < 4 * NORM_GROUPS:
                # of one to three values, nearly all of the gradient cancels, in PyTorch's norm as well
                assert worst(found[0], expected[0]) < 1e-3
                assert all(bool(values.isfinite().all()) for values in found)
                continue
            assert all(worst(*pair) < FLOAT32 for pair in zip(found, expected, strict=True)), shape


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_norm_under_autocast(channels: int) -> None:
    """Values in bfloat16 keep their form; results are those of float32, but for rounding."""
    plain, fast = norms(channels, 1e-5)
    for shape in shapes(channels)[:3]:
        values = (2 * draw(*shape, seed=3) + 0.5).bfloat16()
        expected = results(plain, list(plain.parameters()), values.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = results(fast, list(fast.parameters()), values)
        assert found[0].dtype == found[1].dtype == torch.bfloat16
        assert found[2].dtype == found[3].dtype == torch.float32  # of the parameters
        assert all(worst(*pair) < BFLOAT16 for pair in zip(found, expected, strict=True)), shape


def test_the_gradient_of_the_norm_is_that_of_its_values() -> None:
    """Against differences of values: no other implementation is asked."""
    _, fast = norms(64, 1e-5)
    values = draw(2, 64, 3, 2, seed=5)
    direction, step = draw(2, 64, 3, 2, seed=6), 1e-2
    values.requires_grad_()
    weights = draw(2, 64, 3, 2, seed=7)
    (gradient,) = torch.autograd.grad((fast(values) * weights).sum(), [values])
    with torch.no_grad():
        ahead, behind = ((fast(values + sign * step * direction) * weights).double().sum() for sign in (1, -1))
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("context", (None, HIDDEN), ids=("self", "cross"))
@pytest.mark.parametrize("width", sorted({*UNET_WIDTHS}))
def test_attention_is_that_of_diffusers(width: int, context: int | None) -> None:
    own = Attention(width, cross_attention_dim=context, heads=8, dim_head=width // 8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    own.set_processor(AttnProcessor2_0())
    plain = deepcopy(own)
    plain.set_processor(PlainAttention())
    for cells in (4, 64, 128):
        inputs = [draw(3, cells, width, seed=2), *([] if context is None else [draw(3, 77, context, seed=3)])]
        expected = results(own, list(own.parameters()), *inputs)
        found = results(plain, list(plain.parameters()), *inputs)
        assert all(worst(*pair) < 2e-5 for pair in zip(found, expected, strict=True)), cells
        with torch.autocast("cpu", torch.bfloat16):
            found = results(plain, list(plain.parameters()), *inputs)
        assert all(worst(*pair) < 2 * BFLOAT16 for pair in zip(found, expected, strict=True)), cells


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """All parameters have one; together they differ by a thousandth of their length at most."""
    assert set(found) == set(expected)
    apart = sum(float((found[name] - expected[name]).pow(2).sum()) for name in expected) ** 0.5
    assert apart < 1e-3 * sum(float(grad.pow(2).sum()) for grad in expected.values()) ** 0.5


def test_the_whole_unet_learns_the_same() -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        own = UNet2DConditionModel(**unet_config("sd1", UNET_WIDTHS, HIDDEN))
    fast = deepcopy(own).to(memory_format=torch.channels_last)
    use_fast_norms(fast)
    use_plain_attention(fast)
    assert not [name for name, module in fast.named_modules() if type(module) is nn.GroupNorm]
    assert {type(module) for module in fast.attn_processors.values()} == {PlainAttention}
    assert list(fast.state_dict()) == list(own.state_dict())
    widths = {module.num_channels for module in fast.modules() if isinstance(module, nn.GroupNorm)}
    assert widths <= {*CHANNELS}  # so that the tests above miss none
    latents, states = draw(2, 4, 8, 12, seed=2), draw(2, 77, HIDDEN, seed=3)
    told = [net(latents, torch.tensor([3, 700]), states).sample for net in (own, fast)]
    assert worst(told[1], told[0]) < 1e-4
    found, expected = (gradients(net, out.pow(2).mean()) for net, out in zip((fast, own), told[::-1], strict=True))
    same_gradients(found, expected)


def test_the_whole_vae_learns_the_same() -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        own = AutoencoderKL(**vae_config("sd1", VAE_WIDTHS))
    fast = deepcopy(own).to(memory_format=torch.channels_last)
    use_fast_norms(fast)
    assert not [name for name, module in fast.named_modules() if type(module) is nn.GroupNorm]
    assert {module.num_channels for module in fast.modules() if isinstance(module, nn.GroupNorm)} <= {*CHANNELS}
    pictures = draw(1, 3, 48, 32, seed=2).clamp(-1, 1)
    there = [net.decode(net.encode(pictures).latent_dist.mode()).sample for net in (own, fast)]
    assert worst(there[1], there[0]) < 1e-4
    found, expected = (gradients(net, out.pow(2).mean()) for net, out in zip((fast, own), there[::-1], strict=True))
    same_gradients(found, expected)


def test_groups_are_exchanged_in_place_and_once() -> None:
    network = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Sequential(nn.GroupNorm(4, 4)))
    weights = [parameter.data_ptr() for parameter in network.parameters()]
    for _ in range(2):
        use_fast_norms(network)
    assert [parameter.data_ptr() for parameter in network.parameters()] == weights
    assert sum(isinstance(module, FastGroupNorm) for module in network.modules()) == 2
