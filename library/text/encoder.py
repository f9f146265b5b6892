"""Token ids to the text states that condition the U-Net."""

from __future__ import annotations

from torch import Tensor
from transformers import CLIPTextModel


def encode_tokens(text_encoder: CLIPTextModel, input_ids: Tensor) -> Tensor:
    """Text states of one chunk of tokens.

    This is the last layer's output after the final layer norm, for both families: SD1 uses the last of its 12 layers;
    SD2 the penultimate of OpenCLIP's 24, of which only the 23 used ones are in memory.

    Args:
        text_encoder: gradients flow into it where its parameters want them.
        input_ids: `(B, 77)` int64.

    Returns:
        `encoder_hidden_states`, `(B, 77, D)` with D = 768 (SD1) or 1024 (SD2) in the published models.
    """
    return text_encoder(input_ids=input_ids).last_hidden_state
