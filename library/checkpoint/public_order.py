"""The order in which the public training tool counts weights: its optimizer states know them by number alone.

Source: the modules of kohya's sd-scripts (`library/original_unet.py`, `networks/lora.py`), which register their parts
in the order below. Diffusers has the same names, but another order within a transformer block. The text encoder is that
of Transformers in both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Parts by their names; of those that stand beside each other in one module, the first one is counted first.
_ORDER = (
    *("lora_te", "lora_unet"),
    # a U-Net; its middle is registered last
    *("conv_in", "time_embedding", "down_blocks", "up_blocks", "mid_block", "conv_norm_out", "conv_out"),
    *("linear_1", "linear_2"),
    *("attentions", "resnets", "downsamplers", "upsamplers", "conv"),
    *("norm", "proj_in", "transformer_blocks", "proj_out"),
    # a transformer block, and between its norms those of a residual block, which has norm1 and norm2 as well
    *("attn1", "ff", "attn2", "norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut", "norm3"),
    *("to_q", "to_k", "to_v", "to_out"),
    *("net", "proj"),
    # a text encoder
    *("text_model", "embeddings", "encoder", "final_layer_norm", "token_embedding", "position_embedding"),
    *("layers", "self_attn", "layer_norm1", "mlp", "layer_norm2"),
    *("k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"),
    *("lora_down", "lora_up", "weight", "bias"),
)
_RANK = {word: rank for rank, word in enumerate(_ORDER)}
# names of networks have "_" between the parts as well as within them: the longest part that fits is meant
_PART = re.compile(rf"({'|'.join(sorted(_ORDER, key=len, reverse=True))}|\d+)(?:[._]|$)")


def in_public_order(names: Sequence[str]) -> list[str] | None:
    """Names of weights of one model, or of a LoRA network, in the order in which the public tool counts them.

    None where one of them is not known: then the order is not, either.
    """
    places = {name: _place(name) for name in names}
    known = {name: place for name, place in places.items() if place is not None}
    return sorted(known, key=known.__getitem__) if len(known) == len(names) else None


def _place(name: str) -> tuple[int, ...] | None:
    place, end = list[int](), 0
    while end < len(name):
        found = _PART.match(name, end)
        if found is None:
            return None
        word, end = found.group(1), found.end()
        place.append(int(word) if word.isdigit() else _RANK[word])
    return tuple(place)
