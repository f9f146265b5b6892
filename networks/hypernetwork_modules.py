"""One module of a hypernetwork: a small MLP whose output is added to what keys or values are made of."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from library.core.errors import UserError
from networks.dropout import BatchSeed, mask
from networks.hypernetwork_structure import ACTIVATIONS, ARGUMENTS, Structure

_STD = 0.01  # of the initialisation `Normal`, and of every layer norm's weight, as in the Web UI


class SeededDropout(nn.Module):
    """Dropout whose draw the caller names, so that a second forward pass (checkpointing) draws the same."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x of any shape, with a share of its values 0 and the others scaled up."""
        return x * mask(x, x.shape, self.share, generator)


class HypernetworkModule(nn.Module):
    """`x + multiplier * MLP(x)`.

    The layers of the MLP are numbered as in the Web UI's files (`linear.N`): for each step of the structure a linear
    layer, then where they exist activation, layer norm, dropout.
    """

    def __init__(self, width: int, structure: Structure, batch_seed: BatchSeed) -> None:
        """
        Raises:
            UserError: a layer would have no width at all.
        """
        super().__init__()
        self.multiplier = 1.0
        self._structure = structure
        self._batch_seed = batch_seed
        self.linear = nn.Sequential(*_layers(width, structure))

    def initialise(self) -> None:
        """Draws the weights as the Web UI does, from torch's global state."""
        kind = self._structure.weight_initialization
        for layer in self.linear:
            if not isinstance(layer, nn.Linear | nn.LayerNorm):
                continue
            nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.LayerNorm) or kind == "Normal":
                nn.init.normal_(layer.weight, std=_STD)
            elif kind == "XavierUniform":
                nn.init.xavier_uniform_(layer.weight)
            elif kind == "XavierNormal":
                nn.init.xavier_normal_(layer.weight)
            elif kind == "KaimingUniform":
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor, place: str) -> Tensor:
        """x (…, width) to the same shape and number format.

        Args:
            place: which layer of the U-Net asks; each has dropout draws of its own.
        """
        hidden = x
        if not torch.is_autocast_enabled(x.device.type):  # autocast finds the common dtype itself, without a copy
            hidden = x.to(next(self.parameters()).dtype)
        for number, layer in enumerate(self.linear):
            if isinstance(layer, SeededDropout):
                hidden = layer(hidden, self._generator(place, number, hidden.device)) if self.training else hidden
            else:
                hidden = layer(hidden)
        return x + (hidden * self.multiplier).to(x.dtype)

    def _generator(self, place: str, number: int, device: torch.device) -> torch.Generator:
        return self._batch_seed.generator(f"{place}.{number}", "hypernetwork dropout", device)


class HypernetworkPair(nn.Module):
    """The two modules of one width: for what keys are made of, and for what values are made of."""

    def __init__(self, width: int, structure: Structure, batch_seed: BatchSeed) -> None:
        super().__init__()
        self.keys = HypernetworkModule(width, structure, batch_seed)
        self.values = HypernetworkModule(width, structure, batch_seed)

    @property
    def modules_in_order(self) -> tuple[HypernetworkModule, HypernetworkModule]:
        """Keys and values, as they stand in a file."""
        return self.keys, self.values


def _layers(width: int, structure: Structure) -> list[nn.Module]:
    widths = [int(width * multiple) for multiple in structure.layer_structure]
    if min(widths) < 1:
        what = f"a layer of {width} times {min(structure.layer_structure):g} has no width"
        raise UserError.of(what, ARGUMENTS, "give larger multiples in layer_structure")
    layers: list[nn.Module] = []
    for number, (before, behind) in enumerate(pairwise(widths), 1):
        layers.append(nn.Linear(before, behind))
        is_last = number == len(widths) - 1
        if structure.activation_func != "linear" and (not is_last or structure.activate_output):
            layers.append(ACTIVATIONS[structure.activation_func]())
        if structure.is_layer_norm:
            layers.append(nn.LayerNorm(behind))
        if structure.dropout_structure[number] > 0:
            layers.append(SeededDropout(structure.dropout_structure[number]))
    return layers
