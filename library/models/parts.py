"""The tensors of one network, as its files have them and as the network wants them.

What a file offers is planned from its header alone: names are converted with tensors that have no memory. Whether that
suits the network is judged on the plan; only then are weights read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from library.core.errors import Problem, UserError
from library.models.files.mapped import MappedFile, mapped
from library.models.files.weights import WeightsFile
from library.models.topology import Shape

Convert = Callable[[str, Tensor], dict[str, Tensor]]

_EXAMPLES = 3
_MATRIX = 2


@dataclass(frozen=True)
class Part:
    """What files hold for one network.

    Attributes:
        where: the place to name in a complaint.
        convert: from a file's name and tensor to the network's.
        used: each tensor that the network has a use for: its file and its name there.
        shapes, dtypes: after conversion, under the network's names.
        repeated: names that more than one tensor claims.
    """

    where: str
    convert: Convert
    used: tuple[tuple[WeightsFile | MappedFile, str], ...]
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, torch.dtype]
    repeated: tuple[str, ...]

    def read(self) -> dict[str, Tensor]:
        """The tensors under the network's names, in the files' number format."""
        tensors: dict[str, Tensor] = {}
        for file, name in self.used:
            tensors.update(self.convert(name, file.read(name)))
        return tensors


def plan_part(files: Sequence[WeightsFile], convert: Convert, where: str) -> Part:
    """What `files` (one, or the shards of one) hold for the network whose names `convert` gives; reads no weight."""
    used: list[tuple[WeightsFile | MappedFile, str]] = []
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, torch.dtype] = {}
    claims: Counter[str] = Counter()
    for file in files:
        source = mapped(file)
        for name, shape in file.shapes.items():
            converted = convert(name, torch.empty(shape, device="meta"))
            if converted:
                used.append((source, name))
                claims.update(converted.keys())
                shapes.update({new_name: tuple(tensor.shape) for new_name, tensor in converted.items()})
                dtypes.update(dict.fromkeys(converted, file.dtypes[name]))
    repeated = tuple(name for name, count in claims.items() if count > 1)
    return Part(where, convert, tuple(used), shapes, dtypes, repeated)


def check_part(part: Part, network: nn.Module) -> None:
    """Whether the part has what `network` needs, and nothing else.

    Raises:
        UserError: tensors are missing, unknown, of a wrong shape, there twice, or no floating-point numbers.
    """
    problems: list[Problem] = []
    expected = _shapes_of(network)
    missing = [name for name in expected if name not in part.shapes]
    unknown = [name for name in part.shapes if name not in expected]
    misshaped = [
        f"{name} {part.shapes[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in part.shapes and not fits(part.shapes[name], shape)
    ]
    kinds = (
        ("missing", missing),
        ("unknown", unknown),
        ("of a wrong shape", misshaped),
        ("there more than once", part.repeated),
    )
    faults = [f"{len(names)} {kind}: {', '.join(names[:_EXAMPLES])}" for kind, names in kinds if names]
    if faults:
        problems.extend(incomplete(part.where, "tensors " + "; ".join(faults)).problems)
    unfit = [f"{name} ({dtype})" for name, dtype in part.dtypes.items() if not dtype.is_floating_point]
    if unfit:
        what = f"{len(unfit)} tensors hold no floating-point numbers, first {unfit[0]}"
        problems.append(Problem(what, part.where, "give a model that is not quantised"))
    if problems:
        raise UserError(problems)


def fit(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Gives each tensor the form the network wants; nothing is copied.

    A linear layer `(out, in)` and a 1x1 convolution `(out, in, 1, 1)` are the same numbers; programs write either.
    """
    expected = _shapes_of(network)
    return {name: tensor.reshape(expected[name]) for name, tensor in tensors.items()}


def fits(shape: Shape, wanted: Shape) -> bool:
    """Whether a tensor can take the form that is wanted: it has it, or differs in the 1s that follow a matrix only."""
    if shape == wanted:
        return True
    kernels = {*shape[_MATRIX:], *wanted[_MATRIX:]}
    return len(wanted) >= _MATRIX and shape[:_MATRIX] == wanted[:_MATRIX] and kernels <= {1}


def incomplete(where: object, what: str) -> UserError:
    """The complaint about a file that does not hold what the network needs."""
    return UserError.of(f"the model is incomplete or of another kind: {what}", str(where), "give a complete model")


def _shapes_of(network: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
