"""Every way to compute attention gives the same numbers and gradients, and the blocks need less memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from library.core.errors import Problems
from library.core.randomness import seeded_torch
from library.models.attention import (
    Blocks,
    BlockwiseProcessor,
    attend_in_blocks,
    check_attention,
    check_compiling,
    choose_attention,
    compile_unet,
)
from library.models.checkpointing import enable_gradient_checkpointing
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.options.memory import MemoryOptions

SMALL = Blocks(16, 24)
LENGTHS = [(130, 77), (61, 61), (16, 24), (1, 3), (17, 1)]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(queries: int, keys: int, dtype: torch.dtype = torch.float32, width: int = 20) -> list[Tensor]:
    """Query, key and value of two pictures with three heads; leaves that gradients reach."""
    shapes = [(2, 3, length, width) for length in (queries, keys, keys)]
    return [draws(*shape, seed=number).to(dtype).requires_grad_() for number, shape in enumerate(shapes)]


def with_gradients(result: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [result, *torch.autograd.grad(result, leaves, draws(*result.shape, seed=9).to(result.dtype))]


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition, in float64."""
    scores = scale * query.double() @ key.double().mT
    return scores.softmax(dim=-1) @ value.double()


# --- the function -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
def test_blocks_equal_the_definition_and_its_gradients(queries: int, keys: int) -> None:
    leaves = inputs(queries, keys)
    ours = with_gradients(attend_in_blocks(*leaves, 0.3, SMALL), leaves)
    exact = with_gradients(plain(*leaves, 0.3), leaves)
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_blocks_equal_torchs_own_in_every_precision(dtype: torch.dtype, tolerance: float, device: torch.device) -> None:
    for queries, keys in LENGTHS[:2]:
        leaves = [leaf.detach().to(device).requires_grad_() for leaf in inputs(queries, keys, dtype)]
        ours = with_gradients(attend_in_blocks(*leaves, 20**-0.5, SMALL), leaves)
        torchs = with_gradients(scaled_dot_product_attention(*leaves), leaves)
        for found, expected in zip(ours, torchs, strict=True):
            assert found.dtype == expected.dtype == dtype
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_large_scores_in_half_precision_stay_finite() -> None:
    """300 * 300 * 20 is beyond the largest number of fp16."""
    leaves = [(torch.full((1, 1, 5, 20), 300.0, dtype=torch.float16)).requires_grad_() for _ in range(3)]
    found = with_gradients(attend_in_blocks(*leaves, 20**-0.5, SMALL), leaves)
    assert all(bool(tensor.isfinite().all()) for tensor in found)
    assert found[0].unique().tolist() == [300.0]


def test_autocast_does_not_round_the_scores() -> None:
    leaves = inputs(61, 61)
    exact = attend_in_blocks(*leaves, 0.3, SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend_in_blocks(*leaves, 0.3, SMALL), exact)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def memory_of(attend: Any, length: int) -> tuple[int, int]:
    """Elements kept for the backward pass, and of the largest tensor made in either pass."""
    leaves = inputs(length, length)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with Largest() as largest:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            result = attend(*leaves, 0.3)
        torch.autograd.grad(result, leaves, torch.ones_like(result))
    return kept, largest.elements


def test_no_matrix_of_all_scores_is_made_or_kept() -> None:
    def blocks(*leaves: Any) -> Tensor:
        return attend_in_blocks(*leaves, SMALL)

    def softmax(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return (scale * query @ key.mT).softmax(dim=-1) @ value

    kept, largest = memory_of(blocks, 400)
    half_kept, half_largest = memory_of(blocks, 200)
    assert kept == 2 * half_kept and largest == 2 * half_largest, "linear in the length"
    plain_kept, plain_largest = memory_of(softmax, 400)
    assert kept < plain_kept / 6 and largest < plain_largest / 6
    assert plain_largest >= 2 * 3 * 400 * 400


# --- in the U-Net -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest) -> StableDiffusion:
    return make_tiny_model(request.param, seed=0)


@pytest.fixture
def unet(model: StableDiffusion) -> Iterator[UNet2DConditionModel]:
    yield model.unet.requires_grad_(True)
    model.unet.requires_grad_(False).disable_gradient_checkpointing()
    model.unet.eval().set_attn_processor(AttnProcessor2_0())


def learn(unet: UNet2DConditionModel) -> tuple[Tensor, dict[str, Tensor]]:
    """A prediction for latents of an odd shape, and the gradients of its mean square."""
    context = draws(2, 77, unet.config.cross_attention_dim, seed=2)
    predicted = unet(draws(2, 4, 9, 11, seed=1), torch.tensor([5, 800]), context).sample
    predicted.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}
    unet.zero_grad(set_to_none=True)
    return predicted.detach(), gradients


def assert_learns_alike(unet: UNet2DConditionModel, expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    predicted, gradients = learn(unet)
    torch.testing.assert_close(predicted, expected[0], atol=1e-5, rtol=1e-5)
    assert set(gradients) == set(expected[1])
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_the_unet_learns_alike_with_every_attention(unet: UNet2DConditionModel) -> None:
    unet.set_attn_processor(AttnProcessor())  # the textbook's, with the matrix of scores
    expected = learn(unet)
    for memory, kind in (
        (MemoryOptions(), AttnProcessor2_0),
        (MemoryOptions(sdpa=True), AttnProcessor2_0),
        (MemoryOptions(mem_eff_attn=True), BlockwiseProcessor),
    ):
        choose_attention(unet, memory)
        assert {type(processor) for processor in unet.attn_processors.values()} == {kind}
        assert_learns_alike(unet, expected)


def test_blocks_and_checkpointing_go_together(model: StableDiffusion, unet: UNet2DConditionModel) -> None:
    expected = learn(unet)
    choose_attention(unet, MemoryOptions(mem_eff_attn=True))
    enable_gradient_checkpointing(model, with_text_encoder=False)
    assert_learns_alike(unet, expected)


def test_a_model_that_asks_for_upcasting_is_served() -> None:
    with seeded_torch(0, "test"):
        attention = Attention(24, 16, heads=3, dim_head=8, upcast_attention=True).requires_grad_(False)
    states, context = draws(2, 35, 24), draws(2, 7, 16)
    expected = attention(states, context)
    attention.set_processor(BlockwiseProcessor())
    torch.testing.assert_close(attention(states, context), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="takes no mask"):
        attention(states, context, attention_mask=torch.ones(2, 1, 7))


@pytest.mark.parametrize("memory", [MemoryOptions(), MemoryOptions(mem_eff_attn=True)], ids=["sdpa", "blocks"])
def test_hooks_on_the_layers_of_attention_take_part(unet: UNet2DConditionModel, memory: MemoryOptions) -> None:
    """As hypernetworks hang on `to_k` and `to_v`, and LoRA on all four."""
    choose_attention(unet, memory)
    before = learn(unet)[0]
    layers = {name: m for name, m in unet.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))}
    met: set[str] = set()

    def doubled(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            met.add(name)
            return (args[0] * 2, *args[1:])

        return hook

    handles = [layer.register_forward_pre_hook(doubled(name)) for name, layer in layers.items()]
    after = learn(unet)[0]
    for handle in handles:
        handle.remove()
    assert met == set(layers) and len(layers) == 4 * 2 * 16
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(learn(unet)[0], before)


# --- what is checked before a model loads -----------------------------------------------------------------------------


def complaints(memory: MemoryOptions) -> list[str]:
    problems = Problems()
    check_attention(memory, problems)
    check_compiling(memory, problems)
    return [str(problem) for problem in problems]


def test_one_kind_is_fine_and_two_are_not() -> None:
    assert complaints(MemoryOptions()) == complaints(MemoryOptions(sdpa=True)) == []
    assert complaints(MemoryOptions(mem_eff_attn=True)) == []
    (told,) = complaints(MemoryOptions(mem_eff_attn=True, xformers=True, diffusers_xformers=True))
    assert told.startswith("--mem_eff_attn, --xformers: attention is computed in one way")


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without a card")
@pytest.mark.parametrize("name", ["xformers", "diffusers_xformers"])
def test_xformers_needs_a_card(name: str) -> None:
    (told,) = complaints(MemoryOptions(**{name: True}))
    assert told.startswith(f"--{name}: xformers computes on CUDA cards only") and "--mem_eff_attn" in told


def test_xformers_is_named_with_the_command_that_leaves_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("library.models.attention.find_spec", lambda name: None)
    (told,) = complaints(MemoryOptions(xformers=True))
    assert "the package xformers is not installed" in told and "pip install --no-deps xformers==0.0.35" in told


@pytest.mark.cuda
@pytest.mark.parametrize("mixed_precision", ["no", "fp16", "bf16"])
def test_xformers_learns_alike_on_a_card(mixed_precision: str) -> None:
    pytest.importorskip("xformers")
    problems = Problems()
    check_attention(MemoryOptions(xformers=True), problems, mixed_precision)
    if problems:
        assert "torch's own attention works in every precision" in str(next(iter(problems)))
        pytest.skip(str(next(iter(problems))))
    unet = make_tiny_model("sd1", seed=0).unet.to("cuda")
    states = [draws(*shape).to("cuda") for shape in ((2, 4, 9, 11), (2, 77, 32))]
    with torch.autocast("cuda", {"bf16": torch.bfloat16}.get(mixed_precision, torch.float16), mixed_precision != "no"):
        expected = unet(states[0], torch.tensor([5], device="cuda"), states[1]).sample
        choose_attention(unet, MemoryOptions(xformers=True))
        found = unet(states[0], torch.tensor([5], device="cuda"), states[1]).sample
    torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)


# --- compiling --------------------------------------------------------------------------------------------------------


def test_compiled_training_is_the_same_under_the_same_names() -> None:
    sizes = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8}
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    with seeded_torch(0, "test"):
        unet = UNet2DConditionModel(sample_size=8, attention_head_dim=2, mid_block_type=None, **sizes, **kinds)
    names, expected = list(unet.state_dict()), learn(unet)
    compile_unet(unet, MemoryOptions(dynamo_backend="eager"))
    assert unet._compiled_call_impl is None, "nobody asked for it"
    compile_unet(unet, MemoryOptions(torch_compile=True, dynamo_backend="eager"))
    assert unet._compiled_call_impl is not None
    assert_learns_alike(unet, expected)
    assert list(unet.state_dict()) == names and type(unet) is UNet2DConditionModel


def test_compilers_are_known_by_name_before_a_model_loads() -> None:
    assert complaints(MemoryOptions(torch_compile=True)) == []
    (told,) = complaints(MemoryOptions(torch_compile=True, dynamo_backend="inducto"))
    assert told.startswith("--dynamo_backend: torch has no compiler") and "did you mean inductor?" in told
    (told,) = complaints(MemoryOptions(dynamo_backend="eager"))
    assert told.startswith("--dynamo_backend: nothing is compiled")
