"""Texts in two arrays, and columns that processes share."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from library.core.errors import UserError
from library.data.index.columns import SharedColumns
from library.data.index.texts import Texts, TextsBuilder

ANY_TEXT = st.text() | st.binary().map(lambda name: name.decode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Table(SharedColumns):
    """What a user of the base looks like."""

    numbers: NDArray[Any]
    flags: NDArray[np.bool_]
    name: str


def double_all(table: Table, names: Texts, answers: Any) -> None:
    """What a worker sees, and that it sees the memory of the main process."""
    seen = (table.numbers.tolist(), table.flags.tolist(), table.name, list(names))
    table.numbers[:] *= 2
    answers.put(seen)


def test_texts_hold_any_text() -> None:
    texts = ["", "a", "犬と空", "caf\udce9.png", ""]
    stored = Texts(texts)
    assert len(stored) == 5 and [stored[number] for number in range(5)] == texts == list(stored)
    assert len(Texts([])) == 0 and list(Texts([])) == []
    with pytest.raises(IndexError):
        stored[5]


@given(st.lists(ANY_TEXT, max_size=20))
def test_what_goes_in_comes_out(texts: list[str]) -> None:
    builder = TextsBuilder()
    for text in texts:
        builder.add(text)
    stored = builder.build()
    assert list(stored) == texts == [stored[number] for number in range(len(texts))]
    assert list(Texts.from_columns(stored.ends, stored.bytes)) == texts


def test_all_are_walked_through_also_where_there_are_many() -> None:
    texts = [f"text {number}" for number in range(10_000)]
    assert list(Texts(texts)) == texts


@pytest.mark.parametrize(
    ("ends", "data"),
    [
        (np.array([], dtype=np.int64), b""),
        (np.array([1, 2]), b"ab"),
        (np.array([0, 3]), b"ab"),
        (np.array([0, 1]), b"ab"),
        (np.array([0, 2, 1, 2]), b"ab"),
        (np.array([0, 2], dtype=np.float64), b"ab"),
        (np.array([[0, 2]]), b"ab"),
    ],
)
def test_columns_that_do_not_fit_are_refused(ends: NDArray[Any], data: bytes) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Texts.from_columns(ends, np.frombuffer(data, dtype=np.uint8))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_share_the_memory_of_the_main_process(method: str) -> None:
    table = Table(np.arange(1000, dtype=np.int32), np.array([True, False]), "a name")
    names = Texts(["a", "犬"])
    kept = table.numbers
    context = torch.multiprocessing.get_context(method)
    for factor in (1, 2) if method == "spawn" else (1, 1):
        answers = context.SimpleQueue()
        worker = context.Process(target=double_all, args=(table, names, answers))
        worker.start()
        assert answers.get() == ((np.arange(1000) * factor).tolist(), [True, False], "a name", ["a", "犬"])
        worker.join()
    # a spawned worker writes into the columns of the main process, so they were not copied; a forked one has pages of
    # its own from the moment it writes, which loader workers never do
    assert table.numbers[3] == (12 if method == "spawn" else 3)
    assert kept[3] == 3 and isinstance(table.numbers, np.ndarray)


def test_a_pickle_is_small_and_columns_move_once() -> None:
    from multiprocessing.reduction import ForkingPickler

    table = Table(np.zeros(1_000_000), np.zeros(1_000_000, dtype=np.bool_), "")
    sizes, places = [], []
    for _ in range(2):
        sizes.append(len(bytes(ForkingPickler.dumps(table))))
        places.append(table.numbers.ctypes.data)
    assert max(sizes) < 2000
    assert places[0] == places[1]


@pytest.mark.parametrize("column", [np.arange(10)[::2], np.zeros(0, dtype=np.int64), np.zeros((2, 3), dtype=np.uint8)])
def test_columns_of_any_shape_survive_pickling(column: NDArray[Any]) -> None:
    column.flags.writeable = False
    copy = pickle.loads(pickle.dumps(Table(column, np.array([True]), "x")))
    assert np.array_equal(copy.numbers, column) and copy.numbers.dtype == column.dtype
    again = pickle.loads(pickle.dumps(copy))
    assert np.array_equal(again.numbers, column) and again.name == "x"


def test_too_little_shared_memory_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(UserError, match=r"no shared memory for 8 MiB.*No space left.*\n.*--shm-size"):
        pickle.dumps(Table(np.zeros(1 << 20), np.array([True]), ""))
