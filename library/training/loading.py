"""Bringing a model to where it computes: part after part, and with `--lowram` process after process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import nn

from library.models.files.mapped import give_own_memory
from library.models.stable_diffusion import StableDiffusion

LoadedT = TypeVar("LoadedT")


class Processes(Protocol):
    """What an Accelerator knows of the processes of a run; the local index counts those of one machine from 0."""

    @property
    def num_processes(self) -> int: ...

    @property
    def local_process_index(self) -> int: ...

    def wait_for_everyone(self) -> None: ...


def place(models: StableDiffusion, device: torch.device, dtypes: Mapping[str, torch.dtype]) -> None:
    """Moves the networks to the device one tensor at a time, so that never two copies of a network are held.

    Args:
        dtypes: number format of "unet" and "text_encoder"; the VAE, which encodes exactly, keeps its own.
    """
    for name in ("unet", "text_encoder", "vae"):
        network = getattr(models, name)
        nn.Module.to(network, device, dtypes.get(name))  # the subclasses' own `to` does the same and logs about it
        give_own_memory(network)


def load_in_turn(processes: Processes, in_turn: bool, load: Callable[[], LoadedT]) -> LoadedT:
    """What `load` returns in each process: all at once, or with `--lowram` one after the other.

    In turn, main memory holds what one process of a machine needs while it loads and not what all of them do.

    Args:
        processes: those of the run.
        load: reads the model and moves it to the device.
    """
    if not in_turn:
        return load()
    loaded: list[LoadedT] = []
    for turn in range(processes.num_processes):  # over all machines, so that everybody waits as often
        if turn == processes.local_process_index:
            loaded.append(load())
        processes.wait_for_everyone()
    return loaded[0]
