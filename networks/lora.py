"""LoRA (Hu et al. 2021) for Stable Diffusion, behind the public network-module protocol.

Every targeted layer `x W` gains `multiplier * (alpha / rank) * up(down(x))`. Key names, shapes and initial values are
those that the Web UI, ComfyUI and Diffusers read: `lora_unet_…`/`lora_te_…` plus `.lora_down.weight`,
`.lora_up.weight`, `.alpha`. With 3x3 convolutions the same network is known as LoCon or LoRA-C3Lier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from library.core.errors import UserError
from library.core.pickle_writer import write_pickled
from library.core.tensor_files import with_hashes, write_safetensors
from library.models.precision import in_precision
from networks.dropout import BatchSeed
from networks.lora_arguments import BLOCKS, LoraArguments, parse_arguments
from networks.lora_checks import check_family, check_options, check_parts
from networks.lora_files import ALPHA, DOWN, UP, read_network_file, shapes_in, written_alphas
from networks.lora_modules import LoraModule, Target
from networks.lora_targets import (
    TEXT_ENCODER_PREFIX,
    UNET_PREFIX,
    all_layers,
    block_of,
    block_weight,
    is_wide,
    planned_text_encoder,
    planned_unet,
)

__all__ = [
    "LoraNetwork",
    "check_family",
    "check_options",
    "check_parts",
    "create_network",
    "create_network_from_weights",
]


class LoraNetwork(nn.Module):
    """All LoRA modules of a text encoder and a U-Net."""

    def __init__(
        self,
        text_encoder: Mapping[str, Target],
        unet: Mapping[str, Target],
        arguments: LoraArguments,
        multiplier: float = 1.0,
    ) -> None:
        """
        Args:
            text_encoder, unet: the layers to extend by module name; nothing happens to them before `apply_to`.
            arguments: dropouts and rates; the shapes are those of the targets.
            multiplier: strength of the whole network.
        """
        super().__init__()
        self._arguments = arguments
        self._batch_seed = BatchSeed()
        self.text_encoder_loras = nn.ModuleDict(self._make_modules(text_encoder))
        self.unet_loras = nn.ModuleDict(self._make_modules(unet))
        self.set_multiplier(multiplier)

    def _make_modules(self, targets: Mapping[str, Target]) -> dict[str, nn.Module]:
        dropouts = self._arguments.dropouts
        return {name: LoraModule(name, target, dropouts, self._batch_seed) for name, target in targets.items()}

    def loras(self) -> Iterator[LoraModule]:
        """Every LoRA module, text encoder first."""
        for group in (self.text_encoder_loras, self.unet_loras):
            yield from _modules(group)

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
        """Fixes the dropouts of the coming batch; `seed` below 2**63."""
        self._batch_seed.value = seed

    def prepare_optimizer_params(
        self, text_encoder_lr: float | None, unet_lr: float | None, learning_rate: float
    ) -> list[dict[str, Any]]:
        """Optimizer groups with rate and name: "text_encoder" and "unet", or one for each block that has a weight of
        its own ("unet IN04"). Where up weights have their own rate they are groups of their own ("unet plus").
        Blocks of weight 0, which only a network made from a file can have, are frozen."""
        self.requires_grad_(True)
        text_rate = learning_rate if text_encoder_lr is None else text_encoder_lr
        unet_rate = learning_rate if unet_lr is None else unet_lr
        groups = self._groups("text_encoder", "text_encoder", list(_modules(self.text_encoder_loras)), text_rate)
        for name, weight, modules in self._weighted_blocks():
            if weight > 0:
                groups += self._groups("unet", name, modules, unet_rate * weight)
            else:
                nn.ModuleList(modules).requires_grad_(False)
        return groups

    def _weighted_blocks(self) -> list[tuple[str, float, list[LoraModule]]]:
        """Name, weight and modules of the parts of the U-Net that have a rate of their own."""
        weights, modules = self._arguments.weights, list(_modules(self.unet_loras))
        if weights is None:
            return [("unet", 1.0, modules)]
        blocks: dict[int | None, list[LoraModule]] = {}
        for module in modules:
            blocks.setdefault(block_of(module.name), []).append(module)
        return [
            ("unet" if block is None else f"unet {BLOCKS[block]}", block_weight(found[0].name, weights), found)
            for block, found in blocks.items()
        ]

    def _groups(self, part: str, name: str, modules: Sequence[LoraModule], rate: float) -> list[dict[str, Any]]:
        ratio = self._arguments.ratios.get(part)
        downs, ups = [m.lora_down.weight for m in modules], [m.lora_up.weight for m in modules]
        if not modules:
            return []
        if ratio is None:
            pairs = [weight for pair in zip(downs, ups, strict=True) for weight in pair]
            return [{"params": pairs, "lr": rate, "name": name}]
        return [
            {"params": downs, "lr": rate, "name": name},
            {"params": ups, "lr": rate * ratio, "name": f"{name} plus"},
        ]

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        """All LoRA weights train."""
        self.requires_grad_(True)

    def get_trainable_params(self) -> list[nn.Parameter]:
        """Every weight of the network."""
        return list(self.parameters())

    def apply_max_norm_regularization(
        self, max_norm: float, device: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scales down the modules whose change has a Frobenius norm above `max_norm`. Returns, as scalars on the
        device: how many were scaled, and the mean and the largest norm afterwards."""
        limited = [module.limit_norm(max_norm) for module in self.loras()]
        scaled = torch.stack([is_scaled for is_scaled, _ in limited]).sum()
        norms = torch.stack([norm for _, norm in limited])
        return scaled, norms.mean(), norms.max()

    def file_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors as they stand in a file, by public key, on the CPU.

        Where a module is told with another alpha than its own (`written_alphas`), its up weights are scaled for it; the
        change is the same but for rounding in the last bit, and exactly the same where the factor is a power of 2.
        """
        written = self._written_alphas()
        tensors: dict[str, torch.Tensor] = {}
        for module in self.loras():
            alpha = written[module.name]
            own = {key: value.detach().cpu() for key, value in module.state_dict().items()}
            if alpha != float(own[ALPHA]):
                own[UP] = (own[UP].float() * (float(own[ALPHA]) / alpha)).to(own[UP].dtype)
                own[ALPHA] = torch.full_like(own[ALPHA], alpha)
            tensors.update({f"{module.name}.{key}": value for key, value in own.items()})
        return tensors

    def _written_alphas(self) -> dict[str, float]:
        """The alpha that a file tells of each module."""
        written: dict[str, float] = {}
        for group in (self.text_encoder_loras, self.unet_loras):
            alphas = {module.name: float(module.alpha) for module in _modules(group)}
            wide = {module.name for module in _modules(group) if is_wide(module.lora_down)}
            written.update(written_alphas(alphas, wide))
        return written

    def save_weights(self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Writes the network, whole or not at all: as .safetensors with the metadata, otherwise (.ckpt, .pt) in the
        form of `torch.save`, a bare dict of tensors, which has no place for them.

        Raises:
            UserError: a number does not fit into `dtype`; nothing was written.
        """
        path = Path(file)
        tensors = {key: in_precision(key, value, dtype, path) for key, value in self.file_tensors().items()}
        if path.suffix == ".safetensors":
            write_safetensors(path, tensors, with_hashes(metadata or {}))
        else:
            write_pickled(path, tensors, None)

    def load_weights(self, file: str | Path) -> None:
        """Takes the weights of a file made for the same targets and ranks, and its alphas. A network whose alphas
        differ keeps its own, with up weights scaled for them: a file does not tell them all.

        Raises:
            UserError: when a module of the file has no place here, one here is missing in the file, or a shape differs.
        """
        self.load_tensors(read_network_file(Path(file)), str(file))

    def load_tensors(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """As `load_weights`, from tensors by public key."""
        own = {f"{module.name}.{key}": value for module in self.loras() for key, value in module.state_dict().items()}
        given = {key: value for key, value in tensors.items() if not key.endswith(f".{ALPHA}") or key in own}
        missing = [key for key in own if key not in given and not key.endswith(f".{ALPHA}")]
        _report_unmatched(missing, [key for key in given if key not in own], where)
        shapes = shapes_in(given, where)
        self.check_fit(given, where)
        with torch.no_grad():
            for key, value in own.items():
                if not key.endswith(f".{ALPHA}"):
                    value.copy_(given[key].view(value.shape))  # 1x1 convolutions and linear layers differ by [.., 1, 1]
        keeps_alphas = any(alpha != float(own[f"{name}.{ALPHA}"]) for name, alpha in self._written_alphas().items())
        for module in self.loras():
            shape = shapes[module.name]
            if keeps_alphas:
                module.lora_up.weight.data.mul_(shape.alpha / float(module.alpha))
            else:
                module.scale = shape.alpha / shape.rank
                module.alpha.fill_(shape.alpha)

    def check_fit(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        """Whether the tensors have the sizes of this network's; those of modules that it does not have are no matter.

        Raises:
            UserError: naming the first that has not.
        """
        for module in self.loras():
            for key, value in ((DOWN, module.lora_down.weight), (UP, module.lora_up.weight)):
                given = tensors[f"{module.name}.{key}"]
                if given.numel() != value.numel() or given.shape[0] != value.shape[0]:
                    raise UserError.of(
                        f"{module.name}.{key} is {list(given.shape)} in the file, {list(value.shape)} is needed",
                        where,
                        "give --network_dim the rank of the file, or use the base model it was made for",
                    )

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
        shapes = shapes_in(weights_sd, "weights_sd")
        for module in self.loras():
            if module.name in shapes:
                down, up = (weights_sd[f"{module.name}.{key}"] for key in (DOWN, UP))
                module.merge(down, up, shapes[module.name].alpha, dtype)


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
        UserError: for arguments in `--network_args` that do not exist or make no sense.
    """
    arguments = parse_arguments(network_dim, network_alpha, neuron_dropout, network_args)
    text_targets = planned_text_encoder(_single(text_encoder), arguments)
    return LoraNetwork(text_targets, planned_unet(_single(unet), arguments), arguments, multiplier)


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
    """A network with the modules, ranks and alphas of a file, and the file's tensors (protocol).

    Args:
        kwargs: `neuron_dropout`, and those of `--network_args` that say no shapes.

    Raises:
        UserError: the file holds no LoRA, or one for another model.
    """
    tensors = dict(weights_sd) if weights_sd is not None else read_network_file(Path(file))
    dropout = kwargs.pop("neuron_dropout", None)
    arguments = parse_arguments(None, None, dropout, kwargs)
    where = str(file) if file else "weights_sd"
    shapes = shapes_in(tensors, where)
    models = {TEXT_ENCODER_PREFIX: _single(text_encoder), UNET_PREFIX: _single(unet)}
    layers = {prefix: all_layers(model, prefix) for prefix, model in models.items()}
    absent = [f"{prefix}_" for prefix, model in models.items() if model is None]
    strange = [
        name for name in shapes if not any(name in of for of in layers.values()) and not name.startswith(tuple(absent))
    ]
    if strange:
        what = f"{len(strange)} of its {len(shapes)} modules fit no layer of the model, for example {strange[0]}"
        raise UserError.of(what, where, "use a file that was trained with a model of this kind")
    text_targets, unet_targets = (
        {name: Target(layer, shapes[name]) for name, layer in found.items() if name in shapes}
        for found in layers.values()
    )
    network = LoraNetwork(text_targets, unet_targets, arguments, multiplier)
    network.check_fit(tensors, where)
    return network, tensors


def _modules(group: nn.ModuleDict) -> Iterator[LoraModule]:
    for module in group.values():
        if isinstance(module, LoraModule):
            yield module


def _single(model: Any) -> nn.Module | None:
    if isinstance(model, (list, tuple)):
        (model,) = model  # SD1 and SD2 have one text encoder
    return model if isinstance(model, nn.Module) else None


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
