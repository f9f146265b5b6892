"""U-Net tensors: single-file (LDM) names to Diffusers names and back. No tensor changes its shape.

The single file numbers its blocks flat (`input_blocks.0` … `11`, the first of a block's three being followed by two
layers and a downsampler); Diffusers numbers them as blocks of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from library.models.convert.names import inverted, rename, renamed
from library.models.topology import BLOCKS, LAYERS_PER_BLOCK

PREFIX = "model.diffusion_model."

_RESNET_PARTS = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_STEM = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)


def _down_modules() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(single-file, Diffusers) paths of the down half: its residual blocks, and everything else."""
    resnets, others = [], []
    for block in range(BLOCKS):
        first = block * (LAYERS_PER_BLOCK + 1) + 1
        is_last = block == BLOCKS - 1
        for layer in range(LAYERS_PER_BLOCK):
            resnets.append((f"input_blocks.{first + layer}.0", f"down_blocks.{block}.resnets.{layer}"))
            if not is_last:
                others.append((f"input_blocks.{first + layer}.1", f"down_blocks.{block}.attentions.{layer}"))
        if not is_last:
            others.append((f"input_blocks.{first + LAYERS_PER_BLOCK}.0.op", f"down_blocks.{block}.downsamplers.0.conv"))
    return resnets, others


def _up_modules() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The same for the up half, whose blocks have one layer more and no attention in the first."""
    resnets, others = [], []
    layers = LAYERS_PER_BLOCK + 1
    for block in range(BLOCKS):
        for layer in range(layers):
            index = block * layers + layer
            resnets.append((f"output_blocks.{index}.0", f"up_blocks.{block}.resnets.{layer}"))
            if block > 0:
                others.append((f"output_blocks.{index}.1", f"up_blocks.{block}.attentions.{layer}"))
        if block < BLOCKS - 1:
            place = 1 if block == 0 else 2  # the upsampler stands behind the attention, where there is one
            last = block * layers + layers - 1
            others.append((f"output_blocks.{last}.{place}.conv", f"up_blocks.{block}.upsamplers.0.conv"))
    return resnets, others


def _module_table() -> dict[str, str]:
    down_resnets, down_others = _down_modules()
    up_resnets, up_others = _up_modules()
    middle = [("middle_block.0", "mid_block.resnets.0"), ("middle_block.2", "mid_block.resnets.1")]
    table = dict([*_STEM, *down_others, *up_others])
    for old, new in [*down_resnets, *middle, *up_resnets]:
        table.update({f"{old}.{old_part}": f"{new}.{new_part}" for old_part, new_part in _RESNET_PARTS})
    return table


_TO_DIFFUSERS: Mapping[str, str] = MappingProxyType(_module_table())
_TO_SINGLE_FILE: Mapping[str, str] = MappingProxyType(inverted(_TO_DIFFUSERS))


def to_diffusers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What a single-file tensor is called in Diffusers; empty when it is no part of the U-Net.

    A name under the U-Net's prefix that the layout does not know is handed on as it is, to be found as unexpected.
    """
    if not name.startswith(PREFIX):
        return {}
    own = name.removeprefix(PREFIX)
    return {rename(own, _TO_DIFFUSERS) or own: tensor}


def to_single_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Single-file names for the Diffusers state dict of a U-Net. KeyError for a name outside the layout."""
    return {PREFIX + renamed(name, _TO_SINGLE_FILE): tensor for name, tensor in tensors.items()}
