"""VAE tensors: single-file (LDM) names to Diffusers names and back.

The single file keeps the attention's projections as 1x1 convolutions `(C, C, 1, 1)`; Diffusers has linear layers
`(C, C)`. It also counts the decoder's blocks from the picture inwards, Diffusers from the latents outwards. Converters
have written single files with Diffusers' names for the projections, in either form: all are read. Names are the
business of this module; forms are fitted by whoever fills a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor

from library.models.convert.names import inverted, rename, renamed
from library.models.topology import BLOCKS, LAYERS_PER_BLOCK

PREFIX = "first_stage_model."
_NOT_WEIGHTS = ("loss.", "model_ema.")  # what training left in older files

_ATTENTION_PARTS = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
# names that Diffusers itself used before its attention classes were merged; folders of that time still have them
_FORMER_PARTS = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def _module_table() -> dict[str, str]:
    table = {}
    for half in ("encoder", "decoder"):
        table[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        table[f"{half}.mid.block_1"] = f"{half}.mid_block.resnets.0"
        table[f"{half}.mid.block_2"] = f"{half}.mid_block.resnets.1"
        for old, new in _ATTENTION_PARTS:
            table[f"{half}.mid.attn_1.{old}"] = f"{half}.mid_block.attentions.0.{new}"
        for end in ("conv_in", "conv_out"):
            table[f"{half}.{end}"] = f"{half}.{end}"
    for block in range(BLOCKS):
        down, up = f"encoder.down.{block}", f"decoder.up.{BLOCKS - 1 - block}"
        new_down, new_up = f"encoder.down_blocks.{block}", f"decoder.up_blocks.{block}"
        table[f"{down}.downsample.conv"] = f"{new_down}.downsamplers.0.conv"
        table[f"{up}.upsample.conv"] = f"{new_up}.upsamplers.0.conv"
        for old, new, layers in ((down, new_down, LAYERS_PER_BLOCK), (up, new_up, LAYERS_PER_BLOCK + 1)):
            for layer in range(layers):
                table[f"{old}.block.{layer}"] = f"{new}.resnets.{layer}"
                table[f"{old}.block.{layer}.nin_shortcut"] = f"{new}.resnets.{layer}.conv_shortcut"
    table["quant_conv"] = "quant_conv"
    table["post_quant_conv"] = "post_quant_conv"
    return table


_TO_DIFFUSERS: Mapping[str, str] = MappingProxyType(_module_table())
_TO_SINGLE_FILE: Mapping[str, str] = MappingProxyType(inverted(_TO_DIFFUSERS))


def _present_table() -> dict[str, str]:
    """Names of the attention's parts that are not today's, at the places of both layouts."""
    single_file_parts = (*_FORMER_PARTS, *((part, part) for part in _PROJECTIONS), ("group_norm", "group_norm"))
    table = {}
    for half in ("encoder", "decoder"):
        attention = f"{half}.mid_block.attentions.0"
        table.update({f"{attention}.{former}": f"{attention}.{present}" for former, present in _FORMER_PARTS})
        table.update({f"{half}.mid.attn_1.{old}": f"{attention}.{present}" for old, present in single_file_parts})
    return table


_TO_PRESENT: Mapping[str, str] = MappingProxyType({**_TO_DIFFUSERS, **_present_table()})


def to_diffusers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The Diffusers name of a single-file tensor; empty when it is no part of the VAE.

    A name under the VAE's prefix that the layout does not know is handed on as it is, to be found as unexpected.
    """
    return from_any(name.removeprefix(PREFIX), tensor) if name.startswith(PREFIX) else {}


def from_any(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Today's Diffusers name of a tensor that is called as in a single file, without its prefix, or as in a folder.

    Folders of any age are understood. Empty for what training left beside the weights; unknown names are handed on.
    """
    if name.startswith(_NOT_WEIGHTS):
        return {}
    return {rename(name, _TO_PRESENT) or name: tensor}


def to_single_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Single-file names and forms for the Diffusers state dict of a VAE. KeyError for a name outside the layout."""
    return {
        PREFIX + renamed(name, _TO_SINGLE_FILE): tensor[:, :, None, None] if _is_projection(name) else tensor
        for name, tensor in tensors.items()
    }


def _is_projection(name: str) -> bool:
    return ".attentions." in name and name.removesuffix(".weight").endswith(_PROJECTIONS)
