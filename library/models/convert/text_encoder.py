"""Text encoder tensors: single-file names to those of the flat Transformers `CLIPTextModel` and back.

SD1 files hold the Transformers names behind a prefix. SD2 files hold OpenCLIP's, whose attention keeps query, key and
value in one tensor `(3 * hidden, hidden)`, and which have one layer more than is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from library.core.tensor_files import Deferred, Writable
from library.models.convert.names import inverted, rename
from library.models.topology import FAMILIES

CLIP_PREFIX = "cond_stage_model.transformer."
OPENCLIP_PREFIX = "cond_stage_model.model."
FOLDER_PREFIX = "text_model."  # in Diffusers folders, in SD1 single files and in LoRA names, but not in memory

_OPENCLIP_LAYERS = "transformer.resblocks"
_UNUSED_LAYER = FAMILIES["sd2"].text_layers
_OPENCLIP_UNUSED = ("text_projection", "logit_scale", "attn_mask", f"{_OPENCLIP_LAYERS}.{_UNUSED_LAYER}.")
_OPENCLIP_EMBEDDINGS = (
    ("token_embedding.weight", "embeddings.token_embedding.weight"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final", "final_layer_norm"),
)
_OPENCLIP_LAYER_PARTS = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_FUSED = ("q_proj", "k_proj", "v_proj")
_CLIP_UNUSED = ("embeddings.position_ids", "text_projection.weight", "logit_scale")
# OpenCLIP starts its temperature at 1 / 0.07 and clips it at 100; trained models sit at the clip
_LOGIT_SCALE = math.log(100)


def _openclip_table() -> dict[str, str]:
    table = dict(_OPENCLIP_EMBEDDINGS)
    for layer in range(FAMILIES["sd2"].text_layers):
        for old, new in _OPENCLIP_LAYER_PARTS:
            table[f"{_OPENCLIP_LAYERS}.{layer}.{old}"] = f"encoder.layers.{layer}.{new}"
    return table


_FROM_OPENCLIP: Mapping[str, str] = MappingProxyType(_openclip_table())
_TO_OPENCLIP: Mapping[str, str] = MappingProxyType(inverted(_FROM_OPENCLIP))


def to_transformers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What a single-file tensor is in the flat `CLIPTextModel`: nothing, one tensor, or three.

    Both families are told apart by their prefix. The parts of a fused tensor keep its memory, each under a storage of
    its own. Unknown names under the prefix are handed on as they are, to be found as unexpected.
    """
    if name.startswith(CLIP_PREFIX):
        return from_folder(name.removeprefix(CLIP_PREFIX), tensor)
    if not name.startswith(OPENCLIP_PREFIX):
        return {}
    own = name.removeprefix(OPENCLIP_PREFIX)
    if own.startswith(_OPENCLIP_UNUSED):
        return {}
    for kind in ("weight", "bias"):
        if own.startswith(_OPENCLIP_LAYERS) and own.endswith(f".attn.in_proj_{kind}") and len(tensor.shape) > 0:
            layer = own.split(".")[2]
            parts = tensor.chunk(len(_FUSED))
            return {
                f"encoder.layers.{layer}.self_attn.{name}.{kind}": _with_own_storage(part)
                for name, part in zip(_FUSED, parts, strict=False)  # too few parts are found as missing tensors
            }
    return {rename(own, _FROM_OPENCLIP) or own: tensor}


def from_folder(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The flat name of a tensor from a text encoder folder, written with or without the `text_model.` prefix.

    Empty for what the network has no use for.
    """
    own = name.removeprefix(FOLDER_PREFIX)
    return {} if own in _CLIP_UNUSED else {own: tensor}


def _with_own_storage(part: Tensor) -> Tensor:
    """The same memory as a tensor that looks independent.

    Nothing is copied, and the parts of a whole do not overlap. But programs that save models take tensors of one
    storage for copies of each other and drop all but one.
    """
    if part.device.type != "cpu" or not part.numel():
        return part
    return torch.frombuffer(part.contiguous().view(torch.uint8).numpy(), dtype=part.dtype).reshape(part.shape)


def to_folder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the prefixed names that every version of Transformers reads from a folder."""
    return {FOLDER_PREFIX + name: tensor for name, tensor in tensors.items()}


def to_single_file(tensors: Mapping[str, Tensor], family: str) -> dict[str, Writable]:
    """Single-file names and forms for the state dict of a flat `CLIPTextModel`.

    For "sd2" the unused last layer, the text projection and the temperature are made up: readers demand that they are
    there, and none uses them for pictures. The made-up layer passes its input through unchanged. Fused attention is put
    together when it is written.
    """
    if family == "sd1":
        return {CLIP_PREFIX + name: tensor for name, tensor in to_folder(tensors).items()}
    converted: dict[str, Writable] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[-2]
        if part in _FUSED:
            continue
        renamed = rename(name, _TO_OPENCLIP)
        if renamed is None:
            raise KeyError(name)
        converted[OPENCLIP_PREFIX + renamed] = tensor
    converted.update(_fused_attention(tensors))
    converted.update(_unused_openclip_parts(tensors))
    return converted


def _fused_attention(tensors: Mapping[str, Tensor]) -> dict[str, Writable]:
    fused: dict[str, Writable] = {}
    # a dict, not a set: the order of the tensors is part of a .ckpt file's bytes
    layers = dict.fromkeys(name.split(".")[2] for name in tensors if name.startswith("encoder.layers."))
    for layer in layers:
        for kind in ("weight", "bias"):
            parts = [tensors[f"encoder.layers.{layer}.self_attn.{part}.{kind}"] for part in _FUSED]
            fused[f"{OPENCLIP_PREFIX}{_OPENCLIP_LAYERS}.{layer}.attn.in_proj_{kind}"] = _joined(parts)
    return fused


def _joined(parts: list[Tensor]) -> Deferred:
    """The parts as one tensor along the first axis."""
    rows = sum(part.shape[0] for part in parts)
    return Deferred(parts[0].dtype, (rows, *parts[0].shape[1:]), partial(torch.cat, parts))


def _unused_openclip_parts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    intermediate, hidden = tensors["encoder.layers.0.mlp.fc1.weight"].shape
    like = tensors["final_layer_norm.weight"]
    layer = f"{OPENCLIP_PREFIX}{_OPENCLIP_LAYERS}.{_UNUSED_LAYER}."
    ones, zeros = like.new_ones, like.new_zeros
    return {
        f"{OPENCLIP_PREFIX}text_projection": torch.eye(hidden, dtype=like.dtype, device=like.device),
        f"{OPENCLIP_PREFIX}logit_scale": like.new_tensor(_LOGIT_SCALE),
        f"{layer}ln_1.weight": ones(hidden),
        f"{layer}ln_1.bias": zeros(hidden),
        f"{layer}ln_2.weight": ones(hidden),
        f"{layer}ln_2.bias": zeros(hidden),
        f"{layer}attn.in_proj_weight": zeros(3 * hidden, hidden),
        f"{layer}attn.in_proj_bias": zeros(3 * hidden),
        f"{layer}attn.out_proj.weight": zeros(hidden, hidden),
        f"{layer}attn.out_proj.bias": zeros(hidden),
        f"{layer}mlp.c_fc.weight": zeros(intermediate, hidden),
        f"{layer}mlp.c_fc.bias": zeros(intermediate),
        f"{layer}mlp.c_proj.weight": zeros(hidden, intermediate),
        f"{layer}mlp.c_proj.bias": zeros(hidden),
    }
