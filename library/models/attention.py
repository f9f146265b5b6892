"""What computes the U-Net: its attention, one of our own among others that needs little memory, and torch.compile.

torch's `scaled_dot_product_attention` is the default. It has fast kernels for float32, fp16 and bf16 alike and keeps no
matrix of scores where one of them fits. `--mem_eff_attn` computes in blocks and forgets the scores, wherever it runs:
Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory"; Dao et al. 2022, "FlashAttention".

Every way calls the modules `to_q`, `to_k`, `to_v` and `to_out` of a layer, so what networks and hypernetworks hang on
them takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from library.core.device import dtype_of
from library.core.errors import Problems, UserError, suggest_name
from library.core.optional import import_optional
from library.options.memory import DEFAULT_BACKEND, MemoryOptions

if TYPE_CHECKING:  # the checks of a run should not wait for diffusers
    from diffusers.models import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]

# without its dependencies, or pip may replace torch by another build
XFORMERS_COMMAND = "pip install --no-deps xformers==0.0.35"
_HEAD_WIDTHS = (40, 64, 80, 160)  # of the published SD1 and SD2 models
_CAPTION_TOKENS = 77
_XFORMERS_FLAGS = ("xformers", "diffusers_xformers")


class Blocks(NamedTuple):
    """How many queries and keys are compared at a time. Scores of a block take 4 bytes each, for every head."""

    queries: int = 512
    keys: int = 1024


def check_attention(memory: MemoryOptions, problems: Problems, mixed_precision: str = "no") -> None:
    """Whether the attention asked for is one, and can run here.

    Args:
        mixed_precision: what the U-Net will compute in: "no", "fp16" or "bf16".
    """
    asked = [name for name in ("sdpa", "mem_eff_attn") if getattr(memory, name)]
    asked_xformers = [name for name in _XFORMERS_FLAGS if getattr(memory, name)]
    asked += asked_xformers[:1]  # both of them mean the same
    if len(asked) > 1:
        flags = ", ".join(f"--{name}" for name in asked)
        problems.add("attention is computed in one way", flags, "keep one of them, or none: --sdpa is the default")
    elif asked_xformers:
        flag = f"--{asked_xformers[0]}"
        problems.attempt(lambda: _check_xformers(flag, mixed_precision))


def choose_attention(unet: UNet2DConditionModel, memory: MemoryOptions) -> None:
    """Makes every attention layer of the U-Net compute in the way asked for; torch's own where none is."""
    from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor

    if memory.mem_eff_attn:
        processor: Any = BlockwiseProcessor()
    elif memory.xformers or memory.diffusers_xformers:
        processor = XFormersAttnProcessor()
    else:
        processor = AttnProcessor2_0()
    unet.set_attn_processor(processor)


def check_compiling(memory: MemoryOptions, problems: Problems) -> None:
    """Whether there is such a compiler, and something to compile."""
    if not memory.torch_compile:
        if memory.dynamo_backend != DEFAULT_BACKEND:
            problems.add("nothing is compiled", "--dynamo_backend", "give --torch_compile as well, or remove it")
        return
    known = torch.compiler.list_backends(exclude_tags=())
    if memory.dynamo_backend not in known:
        fix = suggest_name(memory.dynamo_backend, known, f"known here: {', '.join(known)}")
        problems.add(f"torch has no compiler of the name {memory.dynamo_backend!r}", "--dynamo_backend", fix)


def compile_unet(unet: UNet2DConditionModel, memory: MemoryOptions) -> None:
    """Compiles the U-Net where `--torch_compile` asks for it; its class and the names of its weights stay.

    The work is done at the first step, so whatever is attached to the network before that is compiled with it.
    """
    if memory.torch_compile:
        unet.compile(backend=memory.dynamo_backend)


class BlockwiseProcessor:
    """Diffusers' protocol of an attention processor, computed by `attend_in_blocks`.

    For the layers that SD1 and SD2 have: self and cross attention over (B, L, C) without masks or norms of their own.
    """

    def __init__(self, attend: Attend | None = None) -> None:
        self._attend = attend_in_blocks if attend is None else attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """States (B, L, C) after attention to themselves, or to the context (B, M, D).

        Raises:
            ValueError: there is a mask; nothing here makes one.
        """
        if attention_mask is not None:
            raise ValueError("attention in blocks takes no mask")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, L, width)
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        attended = self._attend(query, key, value, attn.scale).transpose(1, 2).flatten(2)
        for layer in attn.to_out:  # the projection, and a dropout of 0
            attended = layer(attended)
        return attended / attn.rescale_output_factor


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Blocks | None = None) -> Tensor:
    """softmax(scale * query keyᵀ) value, without ever holding the scores of more than one block.

    Scores and sums are float32 whatever the inputs are, so half precision neither overflows nor loses small weights.

    Args:
        query: (B, heads, L, width).
        key, value: (B, heads, M, width).
        blocks: sizes of the blocks.

    Returns:
        (B, heads, L, width) in the number format of `query`. The gradient is exact and computes the scores again.
    """
    return cast("Tensor", _BlockAttention.apply(query, key, value, scale, blocks or Blocks()))


class _BlockAttention(Function):
    """Keeps the inputs, the result and one number a query (the logarithm of its sum of weights) for the backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, blocks: Blocks) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):  # it would round the scores
            result = torch.empty_like(query)
            log_sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
            for rows in _slices(query.shape[-2], blocks.queries):
                attended, log_sum = _attend_rows(query[..., rows, :], key, value, scale, blocks.keys)
                result[..., rows, :] = attended.to(result.dtype)
                log_sums[..., rows] = log_sum
        ctx.save_for_backward(query, key, value, result, log_sums)
        ctx.scale, ctx.blocks = scale, blocks
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, result, log_sums = ctx.saved_tensors
        scale, blocks = ctx.scale, ctx.blocks
        with torch.autocast(query.device.type, enabled=False):
            for_query = torch.empty_like(query)
            for_key = torch.zeros_like(key, dtype=torch.float32)
            for_value = torch.zeros_like(value, dtype=torch.float32)
            for rows in _slices(query.shape[-2], blocks.queries):
                q, g = query[..., rows, :].float(), gradient[..., rows, :].float()
                # what the softmax takes off every weight's gradient: their mean, weighted (FlashAttention, section B.4)
                mean = (g * result[..., rows, :].float()).sum(dim=-1, keepdim=True)
                for_rows = torch.zeros_like(q)
                for columns in _slices(key.shape[-2], blocks.keys):
                    k, v = key[..., columns, :].float(), value[..., columns, :].float()
                    weights = torch.exp(scale * (q @ k.mT) - log_sums[..., rows, None])
                    for_value[..., columns, :] += weights.mT @ g
                    for_scores = weights * (g @ v.mT - mean) * scale
                    for_rows += for_scores @ k
                    for_key[..., columns, :] += for_scores.mT @ q
                for_query[..., rows, :] = for_rows.to(for_query.dtype)
        return for_query, for_key.to(key.dtype), for_value.to(value.dtype), None, None


def _attend_rows(query: Tensor, key: Tensor, value: Tensor, scale: float, keys: int) -> tuple[Tensor, Tensor]:
    """Attention of some queries (…, R, width) to all keys in float32, and the logarithms (…, R) of the sums of weights.

    Weights are relative to the largest score met so far; when a block has a larger one, what was summed is scaled down.
    """
    query = query.float()
    largest = torch.full(query.shape[:-1], -torch.inf, device=query.device).unsqueeze(-1)
    total = torch.zeros_like(largest)
    result = torch.zeros_like(query)
    for columns in _slices(key.shape[-2], keys):
        scores = scale * (query @ key[..., columns, :].float().mT)
        larger = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        weights, shrink = torch.exp(scores - larger), torch.exp(largest - larger)
        total = total * shrink + weights.sum(dim=-1, keepdim=True)
        result = result * shrink + weights @ value[..., columns, :].float()
        largest = larger
    return result / total, (largest + total.log()).squeeze(-1)


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _check_xformers(flag: str, mixed_precision: str) -> None:
    """Whether xformers can be imported, and train in the precision asked for on this card."""
    if not torch.cuda.is_available():
        what = "xformers computes on CUDA cards only, and none can be used here"
        raise UserError.of(what, flag, "remove it, or give --mem_eff_attn; torch's own attention is the default")
    if find_spec("xformers") is None:
        raise UserError.of("the package xformers is not installed", flag, f"{XFORMERS_COMMAND}; or remove {flag}")
    ops = import_optional("xformers.ops", "xformers", flag)
    for width in _HEAD_WIDTHS:  # cards differ in the widths and formats they have kernels for, backward most of all
        query, key = (
            torch.zeros(1, length, 1, width, device="cuda", dtype=dtype_of(mixed_precision), requires_grad=True)
            for length in (width, _CAPTION_TOKENS)
        )
        try:
            torch.autograd.grad(ops.memory_efficient_attention(query, key, key).sum(), (query, key))
        except (NotImplementedError, RuntimeError, ValueError) as error:
            what = f"xformers cannot train heads of {width} in {dtype_of(mixed_precision)} on this card"
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            fix = "remove it: torch's own attention works in every precision"
            raise UserError.of(f"{what} ({reason})", flag, fix) from None
