"""Many short texts in two arrays, instead of a Python object for each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from library.data.index.columns import SharedColumns

_RUN = 4096  # texts decoded at once while all are walked through


class Texts(SharedColumns):
    """Texts by number. File names may be any bytes, so the halves of characters that stand for such bytes are kept."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        builder = TextsBuilder()
        builder.extend(texts)
        self.ends, self.bytes = builder.columns()

    @classmethod
    def from_columns(cls, ends: NDArray[np.int64], data: NDArray[np.uint8]) -> Texts:
        """From the columns `ends` (N + 1: 0, then where each text ends) and `bytes` of other texts.

        Raises:
            ValueError: when they do not fit each other.
        """
        is_plain = ends.ndim == data.ndim == 1 and ends.dtype == np.int64 and data.dtype == np.uint8
        if not is_plain or not len(ends) or ends[0] != 0 or ends[-1] != len(data) or np.any(ends[1:] < ends[:-1]):
            raise ValueError("the ends of the texts do not fit their bytes")
        texts = cls.__new__(cls)
        texts.ends, texts.bytes = ends, data
        return texts

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return _decode(self.bytes[self.ends[number] : self.ends[number + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _RUN):
            ends = self.ends[first : first + _RUN + 1].tolist()
            run = self.bytes[ends[0] : ends[-1]].tobytes()
            for start, end in pairwise(ends):
                yield _decode(run[start - ends[0] : end - ends[0]])


class TextsBuilder:
    """Takes texts one after the other, without keeping them as objects."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> None:
        self._bytes += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def extend(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.add(text)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """`ends` and `bytes` of what was added, in the builder's own memory: nothing can be added any more."""
        return np.frombuffer(self._ends, dtype=np.int64), np.frombuffer(self._bytes, dtype=np.uint8)

    def build(self) -> Texts:
        """The texts; nothing can be added any more."""
        return Texts.from_columns(*self.columns())


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
