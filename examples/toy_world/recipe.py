"""What one run of build.py is asked for, and what tells its checkpoints from those of other runs."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

_DIGITS = 16  # of a digest
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


@dataclass(frozen=True)
class Build:
    """One run of build.py.

    Attributes:
        seed: same seed, same model.
        folder: where the checkpoints lie.
        divisor: the run takes this part of all steps and pictures; 1 for a model that draws.
    """

    seed: int
    folder: Path
    divisor: int = 1

    def part(self, count: int) -> int:
        """So many of `count` steps or pictures as this run takes, at least one."""
        return max(1, round(count / self.divisor))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global state inside, for layers and draws that know no other, and puts it back."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        yield


@cache
def code_digest(*names: str) -> str:
    """Stands for what modules of this folder compute: comments, docstrings and layout do not count.

    Read once in a process, which goes on with the code that it has whatever becomes of the files.

    Args:
        names: of the modules, without ending.
    """
    digest = hashlib.blake2b()
    for name in names:
        text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        digest.update(code_of(text).encode() + b"\0")
    return digest.hexdigest()[:_DIGITS]


def code_of(text: str) -> str:
    """A module's code in one layout, without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def weights_digest(*networks: nn.Module) -> str:
    """Stands for the weights of networks, in that order."""
    digest = hashlib.blake2b()
    for network in networks:
        for name, tensor in network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:_DIGITS]
