"""The plan of an epoch: every picture as often as asked, one bucket a batch, and updates that are plain means."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.core.sizes import Size
from library.data.index.index import ImageIndex, Texts
from library.data.placement import Placements
from library.data.planner import BatchRequest, Planner, RequestStream
from tests.data.data_helpers import make_dataset, make_subset


def make_index(
    repeats: list[int],
    is_reg: list[bool] | None = None,
    bucket: list[int] | None = None,
    dataset: list[int] | None = None,
) -> tuple[ImageIndex, Placements]:
    """An index without files: the planner looks at numbers only."""
    count = len(repeats)
    dataset_of = np.array(dataset or [0] * count, dtype=np.int32)
    bucket_of = np.array(bucket or [0] * count, dtype=np.int32)
    reg = np.array(is_reg or [False] * count)
    owners = [
        int(dataset_of[bucket_of == b][0]) if (bucket_of == b).any() else 0 for b in range(int(bucket_of.max()) + 1)
    ]
    zeros = np.zeros(count, dtype=np.int32)
    subsets = [make_subset(Path("x")) for _ in range(int(dataset_of.max()) + 1)]
    index = ImageIndex(
        datasets=tuple(make_dataset(subset) for subset in subsets),
        width=zeros + 64,
        height=zeros + 64,
        has_alpha=zeros.astype(np.bool_),
        repeats=np.array(repeats, dtype=np.float64),
        loss_weight=np.ones(count, dtype=np.float32),
        subset=dataset_of,
        dataset=dataset_of,
        is_reg=reg,
        caption_source=zeros.astype(np.uint8),
        names=Texts([""] * count),
        captions=Texts([""] * count),
    )
    sizes = tuple(Size(64, 64 + 16 * number) for number in range(len(owners)))
    return index, Placements(sizes, tuple(owners), bucket_of, zeros, zeros, zeros, zeros)


def uses_of(plan: list[BatchRequest]) -> list[tuple[int, int]]:
    return [use for request in plan if request.loss_scale for use in zip(request.records, request.repeats, strict=True)]


WORLDS = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=25)


@given(WORLDS, st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_each_picture_is_used_exactly_as_often_as_it_repeats(
    world: list[tuple[int, int]], batch_size: int, accumulation: int, processes: int, epoch: int
) -> None:
    repeats, buckets = [r for r, _ in world], [b for _, b in world]
    index, placements = make_index(repeats, bucket=buckets)
    planner = Planner(index, placements, [batch_size], 1, accumulation, processes)
    plan = list(planner.epoch_plan(epoch))
    assert sorted(uses_of(plan)) == [(record, n) for record, count in enumerate(repeats) for n in range(count)]
    assert [request.position for request in plan] == list(range(len(plan)))
    assert sum(request.loss_scale > 0 for request in plan) == planner.batches_in_epoch(epoch)
    for request in plan:
        assert request.epoch == epoch and 1 <= len(request.records) <= batch_size
        assert len({buckets[record] for record in request.records}) == 1


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4))
def test_every_update_is_the_mean_over_its_real_batches(batches: int, accumulation: int, processes: int) -> None:
    """Does the trainer's arithmetic with a made-up gradient for each batch."""
    index, placements = make_index([1] * batches)
    planner = Planner(index, placements, [1], 3, accumulation, processes)
    plan = planner.epoch_plan(0)
    gradient = np.random.default_rng(0).normal(size=batches)
    order = [request.records[0] for request in plan][:batches]
    group_size = accumulation * processes
    expected = [np.mean(gradient[order[start : start + group_size]]) for start in range(0, batches, group_size)]
    sums, updates = np.zeros(processes), []
    for start in range(0, len(plan), processes):
        one_round = plan[start : start + processes]
        assert len(one_round) == processes  # no process waits for another in vain
        assert len({request.closes_update for request in one_round}) == 1
        for process, request in enumerate(one_round):
            sums[process] += gradient[request.records[0]] * request.loss_scale / accumulation
        if one_round[0].closes_update:
            updates.append(sums.mean())
            sums[:] = 0
    assert np.allclose(updates, expected)
    assert len(updates) == planner.updates_per_epoch == -(-batches // group_size)
    copies = [request for request in plan if request.loss_scale == 0]
    assert len(copies) < processes and all(copy.records == plan[batches - 1].records for copy in copies)


def test_batch_of_two_sees_the_same_pictures_as_two_batches_of_one() -> None:
    index, placements = make_index([3] * 5)
    pairs = [request.records for request in Planner(index, placements, [2], 5).epoch_plan(1)]
    singles = [request.records for request in Planner(index, placements, [1], 5, 2).epoch_plan(1)]
    accumulated = [sum(singles[start : start + 2], ()) for start in range(0, len(singles), 2)]
    assert pairs == accumulated


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_order_within_a_bucket_depends_on_seed_and_epoch_only(batch: int, accumulation: int, processes: int) -> None:
    buckets = [0, 1, 2] * 6
    index, placements = make_index([2] * 18, bucket=buckets)

    def orders(planner: Planner, epoch: int) -> list[list[tuple[int, int]]]:
        uses = uses_of(list(planner.epoch_plan(epoch)))
        return [[use for use in uses if buckets[use[0]] == bucket] for bucket in range(3)]

    reference = Planner(index, placements, [1], 7)
    assert orders(Planner(index, placements, [batch], 7, accumulation, processes), 2) == orders(reference, 2)
    assert orders(reference, 3) != orders(reference, 2) != orders(Planner(index, placements, [1], 8), 2)


def test_buckets_are_mixed() -> None:
    index, placements = make_index([1] * 60, bucket=[0] * 30 + [1] * 30)
    sides = [request.records[0] < 30 for request in Planner(index, placements, [1], 0).epoch_plan(0)]
    assert sum(a != b for a, b in pairwise(sides)) > 10


def test_each_dataset_has_its_own_batch_size() -> None:
    index, placements = make_index([1] * 10, bucket=[0] * 5 + [1] * 5, dataset=[0] * 5 + [1] * 5)
    plan = Planner(index, placements, [1, 4], 0).epoch_plan(0)
    assert sorted(len(r.records) for r in plan if r.records[0] >= 5) == [1, 4]
    assert [len(r.records) for r in plan if r.records[0] < 5] == [1] * 5


@pytest.mark.parametrize(("training", "reg"), [([4], [1] * 10), ([2, 3], [1, 1]), ([1] * 3, [2] * 4), ([3], [3, 1])])
def test_regularisation_is_balanced_and_rotates(training: list[int], reg: list[int]) -> None:
    index, placements = make_index(training + reg, is_reg=[False] * len(training) + [True] * len(reg))
    planner = Planner(index, placements, [2], 0)
    wanted, available = sum(training), sum(reg)
    assert planner.reg_uses_per_epoch(0) == (wanted, available)
    total: Counter[int] = Counter()
    for epoch in range(available):  # so many epochs use the list a whole number of times
        uses = uses_of(list(planner.epoch_plan(epoch)))
        assert len(uses) == len(set(uses)) == 2 * wanted
        total.update(record - len(training) for record, _ in uses if record >= len(training))
    assert total == {record: wanted * count for record, count in enumerate(reg)}


def test_first_turn_of_regularisation_shows_every_picture_before_any_twice() -> None:
    index, placements = make_index([4] + [5] * 4, is_reg=[False] + [True] * 4)
    uses = uses_of(list(Planner(index, placements, [1], 0).epoch_plan(0)))
    assert sorted(record for record, _ in uses if record) == [1, 2, 3, 4]


def stream_of(planner: Planner, process: int, updates: int, start: tuple[int, int] = (0, 0)) -> list[BatchRequest]:
    stream = RequestStream(planner, process, updates)
    stream.seek(*start)
    return list(stream)


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 12), st.data())
def test_stream_can_start_anywhere(
    count: int, accumulation: int, processes: int, total: int, data: st.DataObject
) -> None:
    index, placements = make_index([1] * count + [1] * 5, is_reg=[False] * count + [True] * 5)
    planner = Planner(index, placements, [2], 0, accumulation, processes)
    for process in range(processes):
        requests = stream_of(planner, process, total)
        assert sum(request.closes_update for request in requests) == total and requests[-1].closes_update
        assert all(request.position % processes == process for request in requests)
        ends = [number for number, request in enumerate(requests, 1) if request.closes_update]
        done = data.draw(st.integers(0, total - 1))
        first = requests[ends[done - 1]] if done else requests[0]
        group = first.position // (accumulation * processes)
        assert stream_of(planner, process, total, (first.epoch, group)) == requests[(ends[done - 1] if done else 0) :]
        assert stream_of(planner, process, total, planner.place_of(done)) == requests[(ends[done - 1] if done else 0) :]
        last = [number for number, request in enumerate(requests, 1) if request.closes_epoch]
        whole = [
            number for number in ends if number == len(requests) or requests[number].epoch > requests[number - 1].epoch
        ]
        assert set(last) <= set(whole) and set(whole[:-1]) <= set(last)  # the run may end within an epoch


@pytest.mark.parametrize("is_reg", [None, [False] * 2 + [True] * 5])  # the same in every epoch, and not
def test_the_place_of_every_update(is_reg: list[bool] | None) -> None:
    index, placements = make_index([1] * 7, is_reg)
    planner = Planner(index, placements, [2], 0)
    places = [(epoch, update) for epoch in range(4) for update in range(planner.updates_in_epoch(epoch))]
    assert [planner.place_of(updates) for updates in range(len(places))] == places


def test_seeking_the_end_of_an_epoch_begins_the_next() -> None:
    index, placements = make_index([1] * 6)
    planner = Planner(index, placements, [2], 0)
    assert stream_of(planner, 0, 5, (0, 3)) == stream_of(planner, 0, 5, (1, 0))
    assert stream_of(planner, 0, 3, (1, 0)) == []


def test_request_is_small_when_sent_to_a_worker() -> None:
    index, placements = make_index([1] * 8)
    assert len(pickle.dumps(Planner(index, placements, [4], 0).epoch_plan(0)[0])) < 300


def test_plan_of_a_million_pictures_takes_seconds() -> None:
    buckets = np.random.default_rng(0).integers(0, 40, 1_000_000)
    index, placements = make_index([1] * 1_000_000, bucket=buckets.tolist())
    start = time.perf_counter()
    planner = Planner(index, placements, [4], 0)
    assert len(list(islice(RequestStream(planner, 0, 10), 10))) == 10
    assert time.perf_counter() - start < 10
