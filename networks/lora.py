"""LoRA (Hu et al. 2021) for Stable Diffusion, behind the public network-module protocol.

Every targeted layer `x W` gains `multiplier * (alpha / rank) * up(down(x))`. Key names, shapes and initial values are
those that the Web UI, ComfyUI and Diffusers read: `lora_unet_…`/`lora_te_…` plus `.lora_down.weight`,
`.lora_up.weight`, `.alpha`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from library.core.errors import UserError
from library.core.tensor_files import with_hashes, write_safetensors
from library.models.files.weights import open_weights

UNET_PREFIX, TEXT_ENCODER_PREFIX = "lora_unet", "lora_te"
UNET_TARGETS = ("Transformer2DModel",)
TEXT_ENCODER_TARGETS = ("CLIPAttention", "CLIPMLP")
# Public files name the layers of the CLIP text model below `text_model`; in transformers 5 the model is flat.
TEXT_MODEL_ROOT = "text_model"
KNOWN_ARGUMENTS: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """Rank and alpha of one module."""

    rank: int
    alpha: float


@dataclass
class BatchSeed:
    """The dropout seed of the batch at hand, shared by all modules of a network."""

    value: int = 0


class LoraModule(nn.Module):
    """The low-rank change of one layer; attached to it by a hook, never a part of the base model."""

    alpha: torch.Tensor
    lora_down: nn.Linear | nn.Conv2d
    lora_up: nn.Linear | nn.Conv2d

    def __init__(self, name: str, layer: nn.Module, shape: Shape, dropout: float | None, batch_seed: BatchSeed) -> None:
        super().__init__()
        rank, alpha = shape.rank, shape.alpha
        self.name = name
        self.scale = alpha / rank
        self.multiplier = 1.0
        self.dropout = dropout
        self._batch_seed = batch_seed
        if isinstance(layer, nn.Conv2d):
            self.lora_down = nn.Conv2d(layer.in_channels, rank, 1, bias=False)
            self.lora_up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        elif isinstance(layer, nn.Linear):
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            raise TypeError(f"{name}: a LoRA needs a linear layer or a 1x1 convolution, not {type(layer).__name__}")
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
        if self.dropout and self.training:
            hidden = hidden * self._dropout_mask(hidden)
        return self.lora_up(hidden) * (self.multiplier * self.scale)

    def merge(self, down: torch.Tensor, up: torch.Tensor, alpha: float, dtype: torch.dtype | None) -> None:
        """Adds the change of the given weights to the base layer itself, computed in float32."""
        weight = self._layer[0].weight
        change = up.flatten(1).float() @ down.flatten(1).float() * (self.multiplier * alpha / down.shape[0])
        merged = weight.data.float() + change.view(weight.shape).to(weight.device)
        weight.data = merged.to(dtype or weight.dtype)

    def _add_change(self, _layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + self(args[0]).to(output.dtype)

    def _dropout_mask(self, hidden: torch.Tensor) -> torch.Tensor:
        """Keeps or drops each inner value. The draw depends on the batch and the module's name alone, so that the
        second forward pass of gradient checkpointing, any process and a resumed run see the same mask."""
        generator = torch.Generator(hidden.device).manual_seed(self._batch_seed.value ^ _stable_number(self.name))
        keep = 1.0 - (self.dropout or 0.0)
        drawn = torch.rand(hidden.shape, generator=generator, device=hidden.device)
        return (drawn < keep).to(hidden.dtype) / keep


def _stable_number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


class LoraNetwork(nn.Module):
    """All LoRA modules of a text encoder and a U-Net."""

    def __init__(
        self,
        text_encoder: nn.Module | None,
        unet: nn.Module | None,
        shape: Shape | Mapping[str, Shape],
        multiplier: float = 1.0,
        dropout: float | None = None,
    ) -> None:
        """
        Args:
            text_encoder, unet: the models to extend; nothing happens to them before `apply_to`.
            shape: one shape for every target, or the shapes by module name (targets without one get no module).
            multiplier: strength of the whole network.
            dropout: share of inner values dropped in training.
        """
        super().__init__()
        self._batch_seed = BatchSeed()
        self.text_encoder_loras = nn.ModuleDict(self._make_modules(text_encoder_targets(text_encoder), shape, dropout))
        self.unet_loras = nn.ModuleDict(self._make_modules(unet_targets(unet), shape, dropout))
        self.set_multiplier(multiplier)

    def _make_modules(
        self, targets: Mapping[str, nn.Module], shape: Shape | Mapping[str, Shape], dropout: float | None
    ) -> dict[str, nn.Module]:
        shapes = dict.fromkeys(targets, shape) if isinstance(shape, Shape) else shape
        return {
            name: LoraModule(name, layer, shapes[name], dropout, self._batch_seed)
            for name, layer in targets.items()
            if name in shapes
        }

    def loras(self) -> Iterator[LoraModule]:
        """Every LoRA module, text encoder first."""
        for group in (self.text_encoder_loras, self.unet_loras):
            for module in group.values():
                if isinstance(module, LoraModule):
                    yield module

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool = True, apply_unet: bool = True) -> None:
        """Attaches the parts that are wanted and forgets the others. The models are those given to `create_network`."""
        if not apply_text_encoder:
            self.text_encoder_loras = nn.ModuleDict()
        if not apply_unet:
            self.unet_loras = nn.ModuleDict()
        for module in self.loras():
            module.attach()

    def detach(self) -> None:
        """Leaves the models as they were."""
        for module in self.loras():
            module.detach()

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole network; 0 equals the base model."""
        for module in self.loras():
            module.multiplier = multiplier

    def on_batch_start(self, seed: int) -> None:
        """Fixes the dropout of the coming batch; `seed` below 2**63."""
        self._batch_seed.value = seed

    def prepare_optimizer_params(
        self, text_encoder_lr: float | None, unet_lr: float | None, learning_rate: float
    ) -> list[dict[str, Any]]:
        """Optimizer groups: one for the text encoder, one for the U-Net, each with its rate and name."""
        self.requires_grad_(True)
        groups = (
            ("text_encoder", self.text_encoder_loras, text_encoder_lr),
            ("unet", self.unet_loras, unet_lr),
        )
        return [
            {"params": list(part.parameters()), "lr": learning_rate if rate is None else rate, "name": name}
            for name, part, rate in groups
            if len(part) > 0
        ]

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        """All LoRA weights train."""
        self.requires_grad_(True)

    def get_trainable_params(self) -> list[nn.Parameter]:
        """Every weight of the network."""
        return list(self.parameters())

    def file_tensors(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The tensors as they stand in a file, by public key."""
        return {
            f"{module.name}.{key}": value.detach().to("cpu", dtype or value.dtype)
            for module in self.loras()
            for key, value in module.state_dict().items()
        }

    def save_weights(self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Writes the network as .safetensors, whole or not at all."""
        write_safetensors(Path(file), self.file_tensors(dtype), with_hashes(metadata or {}))

    def load_weights(self, file: str | Path) -> None:
        """Takes the weights of a file made for the same targets and ranks.

        Raises:
            UserError: when a module of the file has no place here, one here is missing in the file, or a shape differs.
        """
        self.load_tensors(read_network_file(Path(file)), str(file))

    def load_tensors(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """As `load_weights`, from tensors by public key."""
        own = {f"{module.name}.{key}": value for module in self.loras() for key, value in module.state_dict().items()}
        given = {key: value for key, value in tensors.items() if not key.endswith(".alpha") or key in own}
        missing = [key for key in own if key not in given and not key.endswith(".alpha")]
        _report_unmatched(missing, [key for key in given if key not in own], where)
        for module in self.loras():
            alpha = given.get(f"{module.name}.alpha")
            rank = given[f"{module.name}.lora_down.weight"].shape[0]
            module.scale = (float(alpha) if alpha is not None else rank) / rank
            module.alpha.fill_(module.scale * rank)
        with torch.no_grad():
            for key, value in own.items():
                if key.endswith(".alpha"):
                    continue
                if given[key].numel() != value.numel() or given[key].shape[0] != value.shape[0]:
                    raise UserError.of(
                        f"{key} is {list(given[key].shape)} in the file, {list(value.shape)} is needed",
                        where,
                        "give --network_dim the rank of the file, or use the base model it was made for",
                    )
                value.copy_(given[key].view(value.shape))  # 1x1 convolutions and linear layers differ by [.., 1, 1]

    def is_mergeable(self) -> bool:
        """LoRA is a plain sum, so yes."""
        return True

    def merge_to(
        self,
        text_encoder: Any,
        unet: Any,
        weights_sd: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        """Adds the change of `weights_sd` to the models given to `create_network`, at the network's multiplier."""
        for module in self.loras():
            down = weights_sd.get(f"{module.name}.lora_down.weight")
            if down is not None:
                alpha = weights_sd.get(f"{module.name}.alpha")
                up = weights_sd[f"{module.name}.lora_up.weight"]
                module.merge(down, up, float(down.shape[0] if alpha is None else alpha), dtype)


def check_options(network_dim: int, network_args: Mapping[str, str], weights: Path | None) -> None:
    """Looks at the options before any model is loaded; the host calls it where a module has it.

    Args:
        network_dim: the rank asked for.
        network_args: the words of `--network_args`.
        weights: file to go on from.

    Raises:
        UserError: for an argument that does not exist, or a file that is no LoRA of this rank.
    """
    for name in network_args:
        known = f"networks.lora knows {', '.join(KNOWN_ARGUMENTS) or 'no further arguments'}"
        raise UserError.of(f"{name} is not an argument of networks.lora", "--network_args", known)
    if weights is None:
        return
    ranks = {value.shape[0] for key, value in read_network_file(weights).items() if key.endswith(".lora_down.weight")}
    if not ranks:
        raise UserError.of("holds no LoRA weights", f"--network_weights {weights}", "name a LoRA file")
    if ranks != {network_dim}:
        found = " and ".join(str(rank) for rank in sorted(ranks))
        raise UserError.of(
            f"the file has rank {found}, --network_dim asks for {network_dim}",
            f"--network_weights {weights}",
            f"give --network_dim {found}" if len(ranks) == 1 else "a file of mixed ranks cannot be gone on from yet",
        )


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: Any,
    unet: Any,
    neuron_dropout: float | None = None,
    **network_args: str,
) -> LoraNetwork:
    """A fresh network (protocol). dim defaults to 4, alpha to 1; alpha 0 means alpha = dim.

    Raises:
        UserError: for arguments in `--network_args` that do not exist.
    """
    rank = 4 if network_dim is None else network_dim
    check_options(rank, network_args, None)
    alpha = 1.0 if network_alpha is None else network_alpha
    return LoraNetwork(_single(text_encoder), unet, Shape(rank, alpha or float(rank)), multiplier, neuron_dropout)


def create_network_from_weights(
    multiplier: float,
    file: str | Path,
    vae: Any,
    text_encoder: Any,
    unet: Any,
    weights_sd: Mapping[str, torch.Tensor] | None = None,
    for_inference: bool = False,
    **kwargs: Any,
) -> tuple[LoraNetwork, dict[str, torch.Tensor]]:
    """A network with the modules, ranks and alphas of a file, and the file's tensors (protocol)."""
    tensors = dict(weights_sd) if weights_sd is not None else read_network_file(Path(file))
    shapes: dict[str, Shape] = {}
    for key, value in tensors.items():
        name, _, kind = key.partition(".")
        if kind == "lora_down.weight":
            alpha = tensors.get(f"{name}.alpha")
            shapes[name] = Shape(value.shape[0], float(value.shape[0] if alpha is None else alpha))
    return LoraNetwork(_single(text_encoder), unet, shapes, multiplier), tensors


def read_network_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .ckpt or .pt network file.

    Raises:
        UserError: when it is damaged, or would run code.
    """
    file = open_weights(path)
    return {name: file.read(name) for name in file.shapes}


def unet_targets(unet: nn.Module | None) -> dict[str, nn.Module]:
    """Linear layers and 1x1 convolutions of the U-Net's transformers, by module name."""
    return _targets(unet, UNET_TARGETS, UNET_PREFIX, "")


def text_encoder_targets(text_encoder: nn.Module | None) -> dict[str, nn.Module]:
    """Linear layers of the text encoder's attention and MLP, by module name."""
    return _targets(text_encoder, TEXT_ENCODER_TARGETS, TEXT_ENCODER_PREFIX, TEXT_MODEL_ROOT)


def _targets(model: nn.Module | None, class_names: Sequence[str], prefix: str, root: str) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for path, part in model.named_modules() if model is not None else ():
        if type(part).__name__ not in class_names:
            continue
        rooted = path if not root or path.split(".")[0] == root else f"{root}.{path}"
        for inner, layer in part.named_modules():
            if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
                found[f"{prefix}.{rooted}.{inner}".replace(".", "_")] = layer
    return found


def _single(text_encoder: Any) -> nn.Module | None:
    if isinstance(text_encoder, (list, tuple)):
        (text_encoder,) = text_encoder  # SD1 and SD2 have one text encoder
    return text_encoder if isinstance(text_encoder, nn.Module) else None


def _report_unmatched(missing: Sequence[str], unexpected: Sequence[str], where: str) -> None:
    for names, what in (
        (missing, "are missing in the file"),
        (unexpected, "of the file have no place in this network"),
    ):
        if names:
            raise UserError.of(
                f"{len(names)} tensors {what}, for example {names[0]}",
                where,
                "use the base model, --network_dim and --network_train_… options it was made with",
            )
