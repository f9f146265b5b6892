"""An independent reader of hypernetwork files: what other programs would make of them. Shares no code with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FUNCTIONS: dict[str, Any] = {
    "linear": lambda x: x,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "swish": lambda x: x * functional.relu6(x + 3) / 6,  # the Web UI's swish is the "hard" one
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "leakyrelu": functional.leaky_relu,
}


class Reader:
    """An attention processor that applies a hypernetwork's file by hand: plain softmax attention, no hook."""

    def __init__(self, file: Path, strength: float = 1.0) -> None:
        self.content = torch.load(file, weights_only=True)
        self.strength = strength

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.to_q(hidden_states)
        k, v = attn.to_k(self.changed(context, 0)), attn.to_v(self.changed(context, 1))
        q, k, v = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * attn.scale).softmax(dim=-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(-2))

    def changed(self, x: Tensor, which: int) -> Tensor:
        if x.shape[-1] not in self.content:
            return x
        states = self.content[x.shape[-1]][which]
        numbers = sorted({int(name.split(".")[1]) for name in states})
        linear = [n for n in numbers if states[f"linear.{n}.weight"].dim() == 2]
        hidden = x
        for n in numbers:
            weight, bias = states[f"linear.{n}.weight"].float(), states[f"linear.{n}.bias"].float()
            if n not in linear:
                hidden = functional.layer_norm(hidden, bias.shape, weight, bias)
                continue
            hidden = hidden @ weight.T + bias
            if n != linear[-1] or self.content["activate_output"]:
                hidden = FUNCTIONS[self.content["activation_func"]](hidden)
        return x + self.strength * hidden
