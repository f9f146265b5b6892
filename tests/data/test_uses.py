"""Which pictures an epoch uses: repeats, fractions of them, and regularisation in balance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.errors import Problems
from library.data.index.index import ImageIndex
from library.data.planner import Planner, RequestStream
from library.data.uses import DatasetUses, check_uses
from tests.data.test_planner import make_index


def with_repeats(pictures: int, repeats: float, reg: int = 0) -> ImageIndex:
    """A folder of pictures, and one of regularisation pictures."""
    is_reg = [False] * pictures + [True] * reg
    index, _ = make_index([1] * (pictures + reg), is_reg)
    (dataset,) = index.datasets
    training = replace(dataset.subsets[0], num_repeats=repeats)
    folders = (training, replace(training, num_repeats=1.0, is_reg=True))
    return replace(
        index,
        datasets=(replace(dataset, subsets=folders),),
        repeats=np.where(is_reg, 1.0, repeats),
        subset=np.array(is_reg, dtype=np.int32),
    )


def test_a_quarter_an_epoch_and_all_over_four() -> None:
    uses = DatasetUses(with_repeats(10, 0.25), 0, seed=1)
    epochs = [uses.in_epoch(epoch).records.tolist() for epoch in range(8)]
    assert [len(epoch) for epoch in epochs] == [2, 3, 2, 3] * 2
    assert sorted(chain.from_iterable(epochs[:4])) == list(range(10))
    assert sorted(chain.from_iterable(epochs[4:])) == list(range(10))


@given(
    st.integers(1, 12),
    st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0, 1.5, 2.25, 3.0]),
    st.integers(0, 5),
    st.integers(0, 3),
)
def test_over_the_epochs_each_picture_is_used_as_often_as_it_repeats(
    pictures: int, repeats: float, reg: int, seed: int
) -> None:
    uses = DatasetUses(with_repeats(pictures, repeats, reg), 0, seed)
    epochs = 60  # a multiple of every denominator
    counts: Counter[int] = Counter()
    for epoch in range(epochs):
        found = uses.in_epoch(epoch)
        pairs = list(zip(found.records.tolist(), found.repeats.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)  # each use of an epoch has a number of its own
        training = [record for record, _ in pairs if record < pictures]
        per_picture = Counter(training)
        assert all(count in (int(repeats), int(repeats) + 1) for count in per_picture.values())
        assert len(training) == uses.training_uses_before(epoch + 1) - uses.training_uses_before(epoch)
        assert len(pairs) == len(training) * (2 if reg else 1)
        counts.update(record for record, _ in pairs)
    assert all(counts[record] == round(epochs * repeats) for record in range(pictures))
    if reg:
        shares = [counts[record] for record in range(pictures, pictures + reg)]
        assert max(shares) - min(shares) <= 1


def test_repeats_written_roughly_are_meant_exactly() -> None:
    for repeats, uses in ((2.99999999, 12), (3.0, 12), (1 / 3, 4 / 3)):
        found = DatasetUses(with_repeats(4, repeats), 0, seed=0)
        assert found.training_uses_before(30) == round(30 * uses)


def test_an_epoch_uses_a_picture_at_least_and_not_too_many() -> None:
    def told(pictures: int, repeats: float) -> str:
        problems = Problems()
        check_uses(with_repeats(pictures, repeats), problems)
        return "; ".join(f"{problem.what} -> {problem.fix}" for problem in problems)

    assert "0.1 repeats of 4 pictures are less than one picture an epoch" in told(4, 0.1)
    assert "at least 0.25" in told(4, 0.1)
    assert told(4, 0.25) == told(4, 1.0) == told(10, 0.1) == ""
    assert "uses, more than" in told(1000, 1_000_000)


def test_batches_and_steps_count_what_epochs_really_hold() -> None:
    index = with_repeats(10, 0.25)
    _, placements = make_index([1] * 10)
    planner = Planner(index, placements, [1], seed=0)
    assert [planner.batches_in_epoch(epoch) for epoch in range(4)] == [2, 3, 2, 3]
    assert planner.updates_in_epochs(4) == 10
    requests = list(RequestStream(planner, 0, 10))
    assert [request.step for request in requests] == list(range(10))
    assert [request.epoch for request in requests] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_requests_know_their_update(accumulation: int, processes: int) -> None:
    index, placements = make_index([2] * 7, bucket=[0, 0, 0, 1, 1, 1, 2])
    planner = Planner(index, placements, [2], 5, accumulation, processes)
    total = planner.updates_in_epochs(3)
    for process in range(processes):
        stream = RequestStream(planner, process, total)
        step = 0
        for request in stream:
            assert request.step == step
            step += request.closes_update
        assert step == total
        stream.seek(1, 2)
        assert next(iter(stream)).step == planner.updates_in_epochs(1) + 2
