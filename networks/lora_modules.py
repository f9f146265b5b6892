"""The low-rank change of one layer, as a module that is attached to the layer from outside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import torch
from torch import nn

from networks.dropout import BatchSeed, mask


@dataclass(frozen=True)
class Shape:
    """Rank and alpha of one module."""

    rank: int
    alpha: float


class Target(NamedTuple):
    """A layer that is extended, and the shape of its module."""

    layer: nn.Module
    shape: Shape


@dataclass(frozen=True)
class Dropouts:
    """Shares that are dropped in training, each from 0 to below 1.

    Attributes:
        neuron: of the inner values; those that stay are scaled up.
        rank: of the inner channels, drawn for each sample; those that stay are scaled up.
        module: of the modules, for a whole batch; those that stay are not scaled.
    """

    neuron: float = 0.0
    rank: float = 0.0
    module: float = 0.0


class LoraModule(nn.Module):
    """The low-rank change of one layer; attached to it by a hook, never a part of the base model.

    Of a convolution it has the kernel, stride and padding in `lora_down`; `lora_up` is a 1x1 convolution.
    """

    alpha: torch.Tensor
    lora_down: nn.Linear | nn.Conv2d
    lora_up: nn.Linear | nn.Conv2d

    def __init__(self, name: str, target: Target, dropouts: Dropouts, batch_seed: BatchSeed) -> None:
        super().__init__()
        layer, (rank, alpha) = target.layer, (target.shape.rank, target.shape.alpha)
        self.name = name
        self.scale = alpha / rank
        self.multiplier = 1.0
        self.dropouts = dropouts
        self._batch_seed = batch_seed
        if is_plain_convolution(layer):
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
            self.lora_down = nn.Conv2d(layer.in_channels, rank, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
            self.lora_up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        elif isinstance(layer, nn.Linear):
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            raise TypeError(f"{name}: a LoRA needs a linear layer or a plain convolution, not {type(layer).__name__}")
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self._layer = (layer,)  # in a tuple, so that the base layer is no child of this module
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def attach(self) -> None:
        """Adds this module's change to the output of its layer from now on."""
        if self._hook is None:
            self._hook = self._layer[0].register_forward_hook(self._add_change)

    def detach(self) -> None:
        """Leaves the layer as it was."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The change alone: x (…, in) or (B, in, H, W) to the layer's output shape."""
        if not torch.is_autocast_enabled(x.device.type):  # autocast finds the common dtype itself, without a copy
            x = x.to(self.lora_down.weight.dtype)
        hidden = self.lora_down(x)
        if self.training:
            hidden = self._dropped(hidden)
        return self.lora_up(hidden) * (self.multiplier * self.scale)

    def merge(self, down: torch.Tensor, up: torch.Tensor, alpha: float, dtype: torch.dtype | None) -> None:
        """Adds the change of the given weights to the base layer itself, computed in float32.

        Args:
            down: (rank, in) or (rank, in, kh, kw).
            up: (out, rank) or (out, rank, 1, 1).
            dtype: of the layer afterwards; None keeps its own.
        """
        weight = self._layer[0].weight
        change = up.flatten(1).float() @ down.flatten(1).float() * (self.multiplier * alpha / down.shape[0])
        merged = weight.data.float() + change.view(weight.shape).to(weight.device)
        weight.data = merged.to(dtype or weight.dtype)

    @torch.no_grad()
    def limit_norm(self, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales both matrices by the same factor, where needed, so that the Frobenius norm of the change at strength 1
        is at most `limit`. Returns whether it was needed and the norm afterwards, both as scalars on the device.

        The norm comes from two small matrices of rank x rank: |U D|^2 = sum of (U^T U) * (D D^T).
        """
        down, up = self.lora_down.weight.flatten(1).float(), self.lora_up.weight.flatten(1).float()
        squared = ((up.T @ up) * (down @ down.T)).sum().clamp_min(0)  # rounding may leave it just below 0
        norm = squared.sqrt() * abs(self.scale)
        is_above = norm > limit
        factor = torch.where(is_above, limit / norm, torch.ones_like(norm))
        for weight in (self.lora_down.weight, self.lora_up.weight):
            weight.mul_(factor.sqrt().to(weight.dtype))
        return is_above, norm * factor

    def _add_change(self, _layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + self(args[0]).to(output.dtype)

    def _dropped(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the dropouts leave of the inner values: (B, …, rank), or (B, rank, H, W) of a convolution."""
        dropouts = self.dropouts
        if dropouts.neuron:
            hidden = hidden * mask(hidden, hidden.shape, dropouts.neuron, self._generator("neuron", hidden.device))
        if dropouts.rank:
            channel = 1 if isinstance(self.lora_down, nn.Conv2d) else hidden.dim() - 1
            shape = [size if axis in (0, channel) else 1 for axis, size in enumerate(hidden.shape)]
            hidden = hidden * mask(hidden, shape, dropouts.rank, self._generator("rank", hidden.device))
        if dropouts.module:
            drawn = torch.rand((), generator=self._generator("module", "cpu"))  # where its answer is needed
            if float(drawn) < dropouts.module:
                hidden = hidden * 0.0  # not skipped: every weight needs a gradient when processes average theirs
        return hidden

    def _generator(self, kind: str, device: torch.device | str) -> torch.Generator:
        return self._batch_seed.generator(self.name, f"lora {kind} dropout", device)


def is_plain_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a 2-D convolution that a pair of convolutions can change: not grouped, not dilated."""
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and set(layer.dilation) == {1}
