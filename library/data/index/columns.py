"""Columns of numbers that all processes of a run see in one piece of memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.core.errors import UserError

_MEBIBYTE = 1 << 20


class SharedColumns:
    """Base of frozen dataclasses whose numpy arrays reach loader workers without a copy for each of them.

    Forked workers see the arrays as they are. For a worker started by spawn the object is pickled: that moves every
    array into shared memory, once for all workers, and sends handles. Arrays taken from the object before stay valid,
    as copies. Only fields that are arrays themselves are moved: an object in a field needs this base, too.

    Raises:
        UserError: when pickled, if the machine gives too little shared memory.
    """

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name, value in self.__dict__.items():
            if isinstance(value, np.ndarray):
                state[name] = _Sent(_in_shared_memory(value))
        for name, value in state.items():
            if isinstance(value, _Sent):
                object.__setattr__(self, name, value.tensor.numpy())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value.tensor.numpy() if isinstance(value, _Sent) else value)


class _Sent(NamedTuple):
    """A column on its way: torch sends a shared tensor as a handle."""

    tensor: Tensor


def _in_shared_memory(column: NDArray[Any]) -> Tensor:
    """The column as a tensor that lies there; the same tensor again for an array that came from one."""
    owner: Any = column.base
    if isinstance(owner, Tensor) and owner.is_shared():
        return owner
    try:
        return torch.tensor(column).share_memory_()
    except RuntimeError as error:
        what = f"no shared memory for {-(-column.nbytes // _MEBIBYTE)} MiB of the index: {error}"
        fix = "give the container more (docker run --shm-size 2g), or use --max_data_loader_n_workers 0"
        raise UserError.of(what, "loader workers", fix) from None
