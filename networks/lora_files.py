"""LoRA files: reading them, and what can be known of them before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from library.core.errors import UserError
from library.models.files.weights import open_weights
from networks.lora_modules import Shape

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


def written_alphas(alphas: Mapping[str, float], wide: Collection[str]) -> dict[str, float]:
    """The alpha that a file tells of each module of one part (text encoder or U-Net).

    Diffusers takes the alpha that most modules of a part have for all layers of attention. So linear layers are written
    with that one, and the rest of their own goes into the up weights. 3x3 convolutions keep theirs, which it knows.

    Args:
        alphas: of the modules, by name.
        wide: names of those for 3x3 convolutions.
    """
    counts, of_wide = Counter(alphas.values()), {alphas[name] for name in wide}
    # where two are as frequent, that of the convolutions: with the linear layers it becomes the more frequent one
    common = max(counts, key=lambda alpha: (counts[alpha], alpha in of_wide), default=1.0)
    return {name: alpha if name in wide else common for name, alpha in alphas.items()}


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
