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

from library.core.errors import Problems, UserError
from library.core.pickle_writer import write_pickled
from library.core.tensor_files import with_hashes, write_safetensors
from library.models.files.weights import open_weights
from networks.lora_arguments import (
    BLOCKS,
    SHAPE_NAMES,
    TEXT_ENCODER_NAMES,
    UNET_NAMES,
    WHERE,
    LoraArguments,
    parse_arguments,
)
from networks.lora_files import ALPHA, DOWN, UP, check_file, modules_in, read_network_file, shapes_in
from networks.lora_modules import BatchSeed, LoraModule, Target
from networks.lora_targets import (
    TEXT_ENCODER_PREFIX,
    UNET_PREFIX,
    all_layers,
    block_of,
    block_weight,
    planned_text_encoder,
    planned_unet,
)


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

    def file_tensors(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """The tensors as they stand in a file, by public key."""
        return {
            f"{module.name}.{key}": value.detach().to("cpu", dtype or value.dtype)
            for module in self.loras()
            for key, value in module.state_dict().items()
        }

    def save_weights(self, file: str | Path, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Writes the network, whole or not at all: as .safetensors with the metadata, otherwise (.ckpt, .pt) in the
        form of `torch.save`, a bare dict of tensors, which has no place for them."""
        path, tensors = Path(file), self.file_tensors(dtype)
        if path.suffix == ".safetensors":
            write_safetensors(path, tensors, with_hashes(metadata or {}))
        else:
            write_pickled(path, tensors, None)

    def load_weights(self, file: str | Path) -> None:
        """Takes the weights of a file made for the same targets and ranks.

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
        for module in self.loras():
            shape = shapes[module.name]
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


def check_options(network_dim: int | None, network_args: Mapping[str, str], weights: Path | None) -> None:
    """Looks at the options before any model is loaded; the host calls it where a module has it.

    Args:
        network_dim: the rank asked for; None where every rank comes from the file.
        network_args: the words of `--network_args`.
        weights: file to go on from.

    Raises:
        UserError: for arguments that do not exist, make no sense or contradict each other, or a file that is no LoRA
            of these ranks.
    """
    problems = Problems()
    arguments = problems.attempt(lambda: parse_arguments(network_dim, None, None, network_args))
    if weights is not None and network_dim is None:
        for name in SHAPE_NAMES:
            if name in network_args:
                problems.add(f"{name}: the file says it", WHERE, f"remove {name}, or --dim_from_weights")
        problems.attempt(lambda: modules_in(open_weights(weights).shapes, f"--network_weights {weights}"))
    elif weights is not None and arguments is not None:
        is_plain = not any(name in network_args for name in SHAPE_NAMES)
        problems.attempt(lambda: check_file(weights, arguments, is_plain))
    problems.raise_if_any()


def check_parts(network_args: Mapping[str, str], trains_text_encoder: bool, trains_unet: bool) -> None:
    """Whether the arguments speak of parts that train; the host calls it where a module has it.

    Raises:
        UserError: naming those that would do nothing.
    """
    problems = Problems()
    parts = (("text encoder", trains_text_encoder, TEXT_ENCODER_NAMES), ("U-Net", trains_unet, UNET_NAMES))
    for part, trains, names in parts:
        for name in names:
            if name in network_args and not trains:
                problems.add(f"{name}: the {part} does not train", WHERE, f"remove {name}, or let the {part} train")
    problems.raise_if_any()


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
