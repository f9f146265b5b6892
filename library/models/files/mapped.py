"""Tensors of a `.safetensors` file without reading it first: its memory is the file's own pages, brought in by use.

The mapping is private, copy on write: what is written to a tensor stays in this process, the file never changes. The
pages belong to the system's file cache, so that reading costs no second copy. While such tensors live the file may be
deleted or replaced by another of its name (as our own writers do), but nobody may cut it off or write over it in place.

A tensor stands in memory where it stands in the file, so CPU kernels that work differently at other addresses give
results that differ in the last bits from those of the same weights elsewhere; the same file gives the same results.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from library.models.files.weights import SafetensorsFile, WeightsFile


@dataclass(frozen=True)
class MappedFile:
    """A `.safetensors` file whose tensors are handed out as parts of its mapping."""

    file: SafetensorsFile
    memory: mmap.mmap

    @property
    def path(self) -> Path:
        return self.file.path

    def read(self, name: str) -> Tensor:
        """The tensor in the file's own dtype, under a storage of its own that may be written to.

        Of its own, because those who write or compare models take tensors of one storage for one tensor.
        """
        start = self.file.data_start + self.file.entries[name]["data_offsets"][0]
        shape, dtype = self.file.shapes[name], self.file.dtypes[name]
        if 0 in shape or start % dtype.itemsize:
            return self.file.read(name)  # nothing to map, or at a place where no number may stand
        return torch.frombuffer(self.memory, dtype=dtype, count=math.prod(shape), offset=start).reshape(shape)


def mapped(file: WeightsFile) -> WeightsFile | MappedFile:
    """The file mapped where that is possible and does no harm, else the file itself, which reads into new memory."""
    # Windows lets nobody replace a mapped file, so a model could not be saved under the name it was loaded from
    if not isinstance(file, SafetensorsFile) or os.name == "nt":
        return file
    try:
        with file.path.open("rb") as handle:
            return MappedFile(file, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError:  # not every file system can map
        return file


def give_own_memory(network: nn.Module) -> None:
    """Copies what the network has in CPU memory, one tensor at a time: from then on it does not depend on any file.

    Copies are also aligned alike. Mapped tensors lie where the file has them, and the CPU's vector code rounds by
    alignment: the same weights out of another form of file would give other last bits.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
