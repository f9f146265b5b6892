"""LoRA files: reading them, and what can be known of them before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from library.core.errors import UserError
from library.models.files.weights import open_weights
from networks.lora_arguments import LoraArguments
from networks.lora_modules import Shape
from networks.lora_targets import TEXT_ENCODER_PREFIX, unet_shape

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
_KINDS = frozenset((DOWN, UP, ALPHA))


@dataclass(frozen=True)
class FileModule:
    """What a file says of one module: its rank, and whether its layer is a convolution beyond 1x1."""

    rank: int
    wide: bool


def read_network_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors, .ckpt or .pt network file.

    Raises:
        UserError: when it is damaged, or would run code.
    """
    file = open_weights(path)
    return {name: file.read(name) for name in file.shapes}


def shapes_in(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, Shape]:
    """Rank and alpha of every module of a file, by name; an alpha that is absent or 0 means alpha = rank.

    Raises:
        UserError: these are no LoRA weights, or the two matrices of a module do not fit together.
    """
    modules = modules_in({key: tuple(value.shape) for key, value in tensors.items()}, where)
    alphas = {name: float(tensors.get(f"{name}.{ALPHA}", 0.0)) for name in modules}
    return {name: Shape(module.rank, alphas[name] or float(module.rank)) for name, module in modules.items()}


def modules_in(shapes: Mapping[str, Sequence[int]], where: str) -> dict[str, FileModule]:
    """The modules of a file by name, from the shapes of its tensors.

    Raises:
        UserError: these are no LoRA weights, or the two matrices of a module do not fit together.
    """
    downs = {key.removesuffix(f".{DOWN}"): shape for key, shape in shapes.items() if key.endswith(f".{DOWN}")}
    others = [key for key in shapes if key.partition(".")[2] not in _KINDS]
    if not downs or others:
        what = "holds no LoRA weights" if not downs else f"holds weights of another kind, for example {others[0]}"
        fix = "name a LoRA file; LoHa, LoKr and the like are read with --network_module lycoris.kohya"
        raise UserError.of(what, where, fix)
    ups = {key.removesuffix(f".{UP}"): shape for key, shape in shapes.items() if key.endswith(f".{UP}")}
    broken = sorted(set(ups) ^ set(downs)) or [name for name, up in ups.items() if up[1:2] != downs[name][:1]]
    if broken:
        raise UserError.of(
            f"the two matrices of {broken[0]} do not fit together", where, "take another copy of the file"
        )
    return {name: FileModule(shape[0], len(shape) == 4 and tuple(shape[2:]) != (1, 1)) for name, shape in downs.items()}


def check_file(path: Path, arguments: LoraArguments, plain: bool) -> None:
    """Whether a file can be gone on from with the shapes that are asked for.

    Args:
        plain: the shapes are said by `--network_dim` alone.

    Raises:
        UserError: it is no LoRA file, or has other shapes.
    """
    where = f"--network_weights {path}"
    modules = modules_in(open_weights(path).shapes, where)
    _check_convolutions(modules, arguments, where)
    ranks = sorted({module.rank for module in modules.values()})
    if plain and ranks != [arguments.rank]:
        found = " and ".join(map(str, ranks))
        what = f"the file has rank {found}, --network_dim asks for {arguments.rank}"
        one = f"give --network_dim {found}"
        fix = one if len(ranks) == 1 else "give --dim_from_weights, which takes every rank from the file"
        raise UserError.of(what, where, fix)
    for name, module in modules.items():
        asked = _asked_rank(name, module, arguments)
        if asked != module.rank:
            what = f"{name} has rank {module.rank}, the options ask for {asked or 'no such module'}"
            raise UserError.of(what, where, "give --dim_from_weights, and no dims in --network_args")


def _asked_rank(name: str, module: FileModule, arguments: LoraArguments) -> int:
    """The rank that the options give to a module of this name; 0 if they make none."""
    if name.startswith(f"{TEXT_ENCODER_PREFIX}_"):
        return arguments.rank
    shape = unet_shape(name, module.wide, arguments)
    return 0 if shape is None else shape.rank


def _check_convolutions(modules: Mapping[str, FileModule], arguments: LoraArguments, where: str) -> None:
    wide = [module.rank for module in modules.values() if module.wide]
    if wide and arguments.convolutions is None:
        fix = f"give --dim_from_weights, or --network_args conv_dim={wide[0]}"
        raise UserError.of("the file has modules for 3x3 convolutions, and none are asked for", where, fix)
    if not wide and arguments.convolutions is not None:
        fix = "give --dim_from_weights, or remove the conv_… arguments from --network_args"
        raise UserError.of("the file has no modules for 3x3 convolutions, and these are asked for", where, fix)
