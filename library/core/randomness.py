"""Every random number of a run, each from its own generator.

A draw is named by (seed, epoch, sample key, purpose) and depends on nothing else: not on the draws before it, the
loader worker, the process or the point where a run was resumed. The name is hashed (BLAKE2b, stable across processes
and platforms, unlike `hash`) into the 128-bit key of a Philox counter generator (Salmon et al., 2011).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

NO_EPOCH = -1  # for draws that stay the same in every epoch


def generator(seed: int, epoch: int, key: str, purpose: str) -> np.random.Generator:
    """The generator of one draw.

    Args:
        seed: the run's `--seed`.
        epoch: epoch number, or `NO_EPOCH` for a draw that does not change between epochs.
        key: which sample; any text that names it independently of where the files lie.
        purpose: what the numbers are for ("noise", "timestep", "order", …), so that purposes never share numbers.
    """
    name = "\0".join((str(seed), str(epoch), purpose, key)).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(name, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def derived_seed(seed: int, epoch: int, key: str, purpose: str) -> int:
    """A whole number below 2**63 that stands for one draw, for code that seeds its own generator."""
    return int(generator(seed, epoch, key, purpose).integers(2**63 - 1))


def seed_foreign_draws(seed: int) -> None:
    """Begins torch's global state anew: for foreign modules that draw from it whenever they are called.

    Nothing of ours draws from it, so nobody else notices.
    """
    import torch  # here, because options and other torch-free code import this module

    torch.manual_seed(seed)


@contextmanager
def seeded_torch(seed: int, purpose: str) -> Iterator[None]:
    """Runs code that can only draw from torch's global state (foreign network modules, layer constructors).

    The state is seeded by (seed, purpose) inside and put back afterwards, so nothing outside notices.
    """
    import torch  # here, because options and other torch-free code import this module

    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, NO_EPOCH, "", purpose))
        yield
