"""How long a run is: updates and epochs from pictures, repeats, batch, accumulation and processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.index.index import ImageIndex
from library.data.placement import place_all
from library.data.planner import Planner, RequestStream
from library.training.progress import Moment, Moments, Progress, RunPlan, plan_run
from library.training.progress import plan as plan_of_numbers
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture

PICTURES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten square pictures."""
    folder = tmp_path_factory.mktemp("squares")
    for number in range(PICTURES):
        save_picture(folder / f"{number}.png", (64, 64), seed=number)
    return folder


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Two training squares; three regularisation pictures, one of them wide, of which two take part in each epoch."""
    root = tmp_path_factory.mktemp("rotating")
    for number in range(2):
        save_picture(root / "train" / f"{number}.png", (64, 64), seed=number)
    for number, size in enumerate([(64, 64), (64, 64), (128, 32)]):
        save_picture(root / "reg" / f"{number}.png", size, seed=number)
    subsets = (make_subset(root / "train"), make_subset(root / "reg", is_reg=True))
    return index_of(make_dataset(*subsets))


def make_planner(index: ImageIndex, batch_size: int, accumulation: int = 1, processes: int = 1) -> Planner:
    return Planner(index, place_all(index), [batch_size], 7, accumulation, processes)


def squares(folder: Path, num_repeats: int) -> ImageIndex:
    return index_of(make_dataset(make_subset(folder, num_repeats=num_repeats), bucketing=None))


def updates_really_made(planner: Planner, plan: RunPlan) -> list[int]:
    """The updates each process makes, and after them the epochs it begins."""
    streams = [list(RequestStream(planner, number, plan.total_updates)) for number in range(plan.processes)]
    made = {sum(request.closes_update for request in stream) for stream in streams}
    begun = {max(request.epoch for request in stream) + 1 for stream in streams}
    return [*made, *begun]


@pytest.mark.parametrize(
    ("repeats", "batch", "accumulation", "processes", "steps", "epochs", "planned"),
    [  # planned: total updates, updates an epoch, batches an epoch, epochs
        (1, 1, 1, 1, 25, None, (25, 10, 10, 3)),
        (1, 1, 1, 1, 20, None, (20, 10, 10, 2)),  # ends with its second epoch, begins no third
        (1, 1, 1, 1, 1, None, (1, 10, 10, 1)),
        (1, 4, 1, 1, None, 3, (9, 3, 3, 3)),  # batches of 4, 4 and 2
        (1, 4, 2, 1, None, 3, (6, 2, 3, 3)),  # the last batch of an epoch makes an update alone
        (3, 4, 2, 2, None, 5, (10, 2, 8, 5)),  # 30 uses, 8 batches, 4 an update
        (3, 4, 2, 2, 5, None, (5, 2, 8, 3)),
        (1, 1, 1, 2, 11, None, (11, 5, 10, 3)),
        (1, 1, 3, 1, 9, None, (9, 4, 10, 3)),
        (1, 16, 4, 2, None, 2, (2, 1, 1, 2)),  # fewer pictures than a batch holds
        (1, 4, 1, 1, 100, 3, (9, 3, 3, 3)),  # both given: epochs win, whether they are fewer
        (1, 4, 1, 1, 2, 3, (9, 3, 3, 3)),  # or more
    ],
)
def test_length_of_a_run(
    folder: Path,
    repeats: int,
    batch: int,
    accumulation: int,
    processes: int,
    steps: int | None,
    epochs: int | None,
    planned: tuple[int, int, int, int],
) -> None:
    planner = make_planner(squares(folder, repeats), batch, accumulation, processes)
    plan = plan_run(planner, steps, epochs)
    assert (plan.total_updates, plan.updates_per_epoch, plan.batches_per_epoch, plan.epochs) == planned
    assert (plan.accumulation, plan.processes) == (accumulation, processes)
    assert updates_really_made(planner, plan) == [plan.total_updates, plan.epochs]
    assert plan_of_numbers([10], repeats, batch, accumulation, processes, steps, epochs) == plan


@given(
    images=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    numbers=st.tuples(*[st.integers(1, 4)] * 4),
    length=st.one_of(st.tuples(st.integers(1, 30), st.none()), st.tuples(st.none(), st.integers(1, 5))),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_plan_of_numbers_is_what_is_counted(
    images: list[int], numbers: tuple[int, int, int, int], length: tuple[int | None, int | None]
) -> None:
    """Counted batch by batch, as the loop does it."""
    repeats, batch_size, accumulation, processes = numbers
    plan = plan_of_numbers(images, repeats, batch_size, accumulation, processes, *length)
    batches = []
    for count in images:
        uses = list(range(count * repeats))
        batches += [uses[start : start + batch_size] for start in range(0, len(uses), batch_size)]
    updates, epochs = 0, 0
    while (updates < plan.total_updates) if length[0] else (epochs < (length[1] or 0)):
        left = list(batches)
        while left:
            left = left[accumulation * processes :]
            updates += 1
        epochs += 1
    assert plan.batches_per_epoch == len(batches)
    assert plan.epochs == epochs
    assert plan.total_updates == (length[0] or updates)


def test_epochs_of_different_length_are_added_up(rotating: ImageIndex) -> None:
    """The wide picture takes part in two epochs of three and needs a batch of its own each time."""
    planner = make_planner(rotating, batch_size=2)
    lengths = [planner.updates_in_epoch(epoch) for epoch in range(3)]
    assert sorted(lengths) == [2, 3, 3]
    by_epochs = plan_run(planner, None, 6)
    assert (by_epochs.total_updates, by_epochs.epochs) == (16, 6)
    assert updates_really_made(planner, by_epochs) == [16, 6]
    for steps in range(1, 17):
        by_steps = plan_run(planner, steps, None)
        assert updates_really_made(planner, by_steps) == [steps, by_steps.epochs]
        ended = [epochs for epochs in range(1, 8) if sum(lengths[epoch % 3] for epoch in range(epochs)) <= steps]
        assert by_steps.whole_epochs == len(ended)
    assert by_epochs.whole_epochs == 6


def test_a_run_without_end_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="neither steps nor epochs"):
        plan_run(make_planner(squares(folder, 1), 1), None, None)


def test_a_run_begins_at_the_beginning() -> None:
    assert (Progress().step, Progress().epoch) == (0, 0)


@pytest.mark.parametrize(
    ("moments", "expected"),
    [
        (Moments(), []),
        (Moments(at_end=True), [10]),
        (Moments(every_steps=3), [3, 6, 9]),
        (Moments(every_epochs=1), [4, 8]),  # the last epoch is not whole
        (Moments(every_epochs=2), [8]),
        (Moments(every_steps=5, every_epochs=2, at_end=True), [5, 8, 10]),
    ],
)
def test_moments(moments: Moments, expected: list[int]) -> None:
    run = [Moment(0, 1), *(Moment(n, -(-n // 4), n % 4 == 0, n == 10) for n in range(1, 11))]
    assert [moment.step for moment in run if moments.due(moment)] == expected
