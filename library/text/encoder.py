"""Token ids to the text states that condition the U-Net."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPTextModel

from library.options.text import WEBUI_SPLITTING, TextOptions

_NO_MEAN = 1e-4  # a mean below this share of the mean size is rounding, and no scale can restore it


class CaptionEncoder:
    """From the rows of `CaptionTokenizer` to text states, as the options say.

    Rows are joined as the public training tools do: begin of the first, 75 states of each, end of the last. With the
    Web UI's splitting they are joined whole, as the Web UI does. clip_skip k takes the k-th layer's output from the end
    through the final layer norm; layers are counted as they are in memory: all 12 of SD1, the 23 used ones of SD2's 24.
    """

    def __init__(self, options: TextOptions) -> None:
        self._clip_skip = options.clip_skip or 1
        self._joins_whole = options.prompt_splitting == WEBUI_SPLITTING
        self._restores_mean = options.restore_weighted_mean

    def __call__(self, text_encoder: CLIPTextModel, input_ids: Tensor, token_weights: Tensor | None) -> Tensor:
        """`encoder_hidden_states`, (B, R, D) in the number format the encoder computes in.

        Args:
            text_encoder: gradients flow into it where its parameters want them.
            input_ids: (B, n, L) int64, n chunks of L ids.
            token_weights: (B, n, L), what each token's state is multiplied by; None for captions without weights.

        Returns:
            R = L for one chunk, 152 or 227 for two or three joined ones, 77 n for whole ones; D = 768 (SD1) or 1024
            (SD2) in the published models.
        """
        captions, chunks, length = input_ids.shape
        states = self._layer(text_encoder, input_ids.reshape(captions * chunks, length))
        states = states.reshape(captions, chunks, length, -1)
        if token_weights is None:
            return self._join(states)
        weights = token_weights.to(states).unsqueeze(-1)
        if self._joins_whole:  # the Web UI weighs chunk by chunk, which matters for the means
            return self._join(self._weigh(states, weights))
        return self._weigh(self._join(states), self._join(weights))

    def _weigh(self, states: Tensor, weights: Tensor) -> Tensor:
        """States (…, R, D) times weights (…, R, 1), with the mean of before where that is asked for."""
        weighted = states * weights
        return weighted * _mean_ratio(states, weighted) if self._restores_mean else weighted

    def _layer(self, text_encoder: CLIPTextModel, input_ids: Tensor) -> Tensor:
        """Normed states (N, L, D) of the chosen layer."""
        if self._clip_skip == 1:
            return text_encoder(input_ids=input_ids).last_hidden_state
        hidden = text_encoder(input_ids=input_ids, output_hidden_states=True).hidden_states
        return text_encoder.final_layer_norm(hidden[-self._clip_skip])

    def _join(self, chunks: Tensor) -> Tensor:
        """The chunks of each caption (B, n, L, D) behind one another: (B, R, D)."""
        if self._joins_whole or chunks.shape[1] == 1:
            return chunks.flatten(1, 2)
        return torch.cat([chunks[:, 0, :1], chunks[:, :, 1:-1].flatten(1, 2), chunks[:, -1, -1:]], dim=1)


def unused_layers(text_encoder: CLIPTextModel, clip_skip: int | None) -> tuple[int, ...]:
    """Indices of the encoder's layers behind the chosen one: no result depends on them, so they cannot be trained."""
    count = len(text_encoder.encoder.layers)
    return tuple(range(max(0, count + 1 - (clip_skip or 1)), count))


def _mean_ratio(before: Tensor, after: Tensor) -> Tensor:
    """What the states `after` (…, R, D) are multiplied by to have the mean of `before`: (…, 1, 1).

    1 where `after` has no mean to speak of, for the quotient would be noise, or infinite.
    """
    old, new = before.float().mean(dim=(-2, -1), keepdim=True), after.float().mean(dim=(-2, -1), keepdim=True)
    usable = new.abs() > _NO_MEAN * after.detach().float().abs().mean(dim=(-2, -1), keepdim=True)
    one = torch.ones_like(new)
    return (torch.where(usable, old, one) / torch.where(usable, new, one)).to(after.dtype)
