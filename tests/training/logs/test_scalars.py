"""The log of a run: every update in order, averages, going on after a resume, and no needless wait for the device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from library.core.nested import put_together, take_apart
from library.training.logs.row_file import RowFile
from library.training.logs.scalars import ScalarLog
from library.training.logs.tracker import Tracker
from tests.training.logs.log_readers import listening, read_rows

RATES = {"lr/textencoder": 1e-5, "lr/unet": 1e-4}
DRAINS = [*range(1, 11), 20, 30]  # the updates up to 35 at which waiting numbers are read
TAGS = ["loss/current", "loss/average", "lr/textencoder", "lr/unet", "grad_norm", "speed", "memory/peak_mib"]
CHANGING = ("speed", "memory/peak_mib")  # from run to run


def make_log(
    path: Path | None,
    updates_per_epoch: int = 4,
    trackers: Sequence[Tracker] = (),
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    overwrite: bool = False,
) -> ScalarLog:
    rows = RowFile(path, overwrite) if path is not None else None
    return ScalarLog(rows, trackers, updates_per_epoch, reduce or unreduced, peak_memory=lambda: 12.34)


def unreduced(values: torch.Tensor) -> torch.Tensor:
    return values


def loss_of(step: int) -> float:
    return 1 / step


def record(log: ScalarLog, step: int, device: str = "cpu", epoch: int = 1) -> bool:
    loss, grad_norm = torch.tensor(loss_of(step), device=device), torch.tensor(float(step), device=device)
    return log.record(step, epoch, loss, {**RATES, "grad_norm": grad_norm})


def steady(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What does not change from run to run."""
    return [{tag: value for tag, value in row.items() if tag not in CHANGING} for row in rows]


class Noting:
    """A tracker that keeps what it is given, in order."""

    name = "noting"

    def __init__(self) -> None:
        self.given: list[tuple[int, str, Any]] = []
        self.state: tuple[Mapping[str, Any], int] | None = None

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.given += [(step, tag, value) for tag, value in values.items()]

    def picture(self, step: int, tag: str, pixels: NDArray[np.uint8]) -> None:
        self.given.append((step, tag, pixels.shape))

    def flush(self) -> None:
        self.given.append((0, "flush", None))

    def close(self) -> None:
        self.given.append((0, "close", None))

    def told(self) -> str:
        return f"{self.name}: here"

    def state_dict(self) -> dict[str, Any]:
        return {"entries": len(self.given)}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        self.state = (state, step)


class Failing(Noting):
    """One that stops working with update 3."""

    name = "failing"

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        super().numbers(step, values)
        if step == 3:
            raise ConnectionError("gone\nfor ever")


def test_every_update_is_a_row_in_order_with_the_mean_of_the_last_epoch_length(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.jsonl"
    log = make_log(path)
    for step in range(1, 26):
        record(log, step)
    log.drain()  # five updates wait for the drain at step 30
    log.close()
    rows = read_rows(path)
    assert [row["step"] for row in rows] == list(range(1, 26))
    for row in rows:
        step = row["step"]
        assert list(row) == ["step", "epoch", *TAGS]
        assert row["loss/current"] == pytest.approx(loss_of(step), rel=1e-6)
        window = [loss_of(number) for number in range(max(1, step - 3), step + 1)]
        assert row["loss/average"] == pytest.approx(sum(window) / len(window), rel=1e-6)
        assert (row["grad_norm"], row["lr/textencoder"], row["lr/unet"], row["epoch"]) == (step, 1e-5, 1e-4, 1)
        assert row["speed"] > 0
        assert row["memory/peak_mib"] == 12.3
    assert log.first_loss == rows[0]["loss/current"]
    assert log.average_loss == rows[-1]["loss/average"]


def test_the_epoch_average_covers_each_epoch_by_itself_and_follows_its_last_update(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = make_log(path, updates_per_epoch=12)
    for epoch, steps in ((1, range(1, 13)), (2, range(13, 16))):
        for step in steps:
            record(log, step, epoch=epoch)
        log.end_epoch(steps[-1], epoch)  # in the middle between two drains
    log.end_epoch(15, 2)  # nothing new: no second row
    log.close()
    rows = read_rows(path)
    assert [row["step"] for row in rows] == [*range(1, 13), 12, 13, 14, 15, 15]
    averages = [row for row in rows if "loss/epoch_average" in row]
    for row, steps in zip(averages, (range(1, 13), range(13, 16)), strict=True):
        mean = sum(map(loss_of, steps)) / len(steps)
        expected = {"step": steps[-1], "epoch": 1 if steps[0] == 1 else 2, "loss/epoch_average": pytest.approx(mean)}
        assert row == expected
        assert rows[rows.index(row) - 1]["step"] == steps[-1]


def test_nothing_is_read_between_drains(tmp_path: Path) -> None:
    """Tensors of the meta device have no values: whoever reads one fails."""
    log = make_log(tmp_path / "log.jsonl")
    assert [step for step in range(1, 36) if record(log, step)] == DRAINS
    log.drain()
    for step in range(36, 40):
        assert not record(log, step, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        record(log, 40, device="meta")


def test_rows_are_on_disk_after_each_drain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = make_log(path)
    record(log, 1)
    assert len(read_rows(path)) == 1
    log.close()


def test_all_processes_reduce_at_the_same_updates_and_the_mean_is_written(tmp_path: Path) -> None:
    """The process that writes and one that does not, with a reduce that notes what it was given."""

    def noting(shapes: list[tuple[int, ...]]) -> Callable[[torch.Tensor], torch.Tensor]:
        def reduce(values: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(values.shape))
            return values / 2

        return reduce

    main_shapes, other_shapes = list[tuple[int, ...]](), list[tuple[int, ...]]()
    main = make_log(tmp_path / "log.jsonl", reduce=noting(main_shapes))
    other = make_log(None, reduce=noting(other_shapes))
    for log in (main, other):
        for step in range(1, 36):
            record(log, step)
            if step % 4 == 0:
                log.end_epoch(step, step // 4)
        log.drain()
        log.close()
    assert main_shapes == other_shapes
    assert sum(waiting for (waiting,) in main_shapes) == 35
    losses = [row["loss/current"] for row in read_rows(tmp_path / "log.jsonl") if "loss/current" in row]
    assert losses == pytest.approx([loss_of(step) / 2 for step in range(1, 36)])


def run_updates(log: ScalarLog, first: int, last: int, epoch_length: int = 4) -> None:
    """Updates with all that a run writes between them, from first to last."""
    for step in range(first, last + 1):
        epoch = (step - 1) // epoch_length + 1
        record(log, step, epoch=epoch)
        if step % epoch_length == 0:
            log.end_epoch(step, epoch)
        if step % 5 == 0:
            log.write(step, epoch, {"loss/validation": step / 7})


def test_trackers_get_the_rows_with_the_epoch_and_pictures_in_their_place(tmp_path: Path) -> None:
    tracker = Noting()
    log = make_log(tmp_path / "log.jsonl", trackers=[tracker])
    pixels = np.zeros((4, 6, 3), np.uint8)
    log.picture(0, 1, "sample/01", pixels)  # before the first update
    run_updates(log, 1, 13)
    log.picture(13, 4, "sample/01", pixels)  # updates 11 to 13 wait for the drain at 20
    run_updates(log, 14, 20)
    log.close()
    steps = [step for step, _, _ in tracker.given[:-1]]
    assert steps == sorted(steps), "wandb takes no step back"
    assert tracker.given[-1] == (0, "close", None)
    pictures = [(place, entry[0]) for place, entry in enumerate(tracker.given) if entry[2] == (4, 6, 3)]
    assert [step for _, step in pictures] == [0, 13]
    assert tracker.given[pictures[1][0] - 1][0] == 13
    for row in read_rows(tmp_path / "log.jsonl"):
        for tag, value in row.items():
            if tag not in ("step", "epoch"):
                assert (row["step"], tag, value) in tracker.given
    epochs = [(step, value) for step, tag, value in tracker.given if tag == "epoch"]
    assert epochs == [(step, (step - 1) // 4 + 1) for step in range(1, 21)], "once for each update"


def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing, noting = Failing(), Noting()
    with listening(caplog):
        log = make_log(tmp_path / "log.jsonl", trackers=[failing, noting])
        run_updates(log, 1, 6)
        log.close()
    told = [entry.getMessage() for entry in caplog.records]
    assert len(told) == 1
    assert told[0].startswith("failing cannot be logged to any more") and told[0].endswith(": gone")
    assert {step for step, _, _ in failing.given} == {1, 2, 3}
    assert {step for step, _, _ in noting.given} == {0, 1, 2, 3, 4, 5, 6}
    assert [row["step"] for row in read_rows(tmp_path / "log.jsonl")] == [1, 2, 3, 4, 4, 5, 5, 6]
    lost = "failing: not logged to the end, gone"
    assert log.told() == [f"log: {tmp_path / 'log.jsonl'}", "noting: here", lost]


def whole_run(path: Path, last: int = 30) -> list[dict[str, Any]]:
    log = make_log(path)
    run_updates(log, 1, last)
    log.close()
    return read_rows(path)


def saved_at(path: Path, step: int, killed_at: int) -> dict[str, Any]:
    """The state of a run at an update, as a file gives it back; the run goes on and is killed later."""
    log = make_log(path)
    run_updates(log, 1, step)
    plain, tensors = take_apart(log.state_dict())
    state = put_together(json.loads(json.dumps(plain)), tensors)
    run_updates(log, step + 1, killed_at)
    log.drain()
    assert isinstance(state, dict)
    return state


@pytest.mark.parametrize("step", [1, 3, 8, 13, 20, 29])
def test_a_resumed_log_is_that_of_a_run_never_stopped(tmp_path: Path, step: int) -> None:
    path = tmp_path / "log.jsonl"
    expected = whole_run(tmp_path / "whole.jsonl")
    state = saved_at(path, step, killed_at=step + 6)
    path.write_bytes(path.read_bytes() + b'{"step": 17, "ep')  # the kill tore a row
    log = make_log(path)
    log.load_state_dict(state)
    assert log.first_loss == loss_of(1)
    second = min(step + 5, 29)
    run_updates(log, step + 1, second)
    again = log.state_dict()
    run_updates(log, second + 1, 30)
    log = make_log(path)
    log.load_state_dict(again)
    run_updates(log, second + 1, 30)
    log.close()
    assert steady(read_rows(path)) == steady(expected)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.jsonl", "whole.jsonl"], "nothing was set aside"


def test_equal_runs_have_equal_states(tmp_path: Path) -> None:
    states = []
    for number in range(2):
        log = make_log(tmp_path / f"{number}.jsonl")
        run_updates(log, 1, 13)
        states.append(log.state_dict())
        time.sleep(0.01)  # another speed, and another length of the file
        log.close()
    assert torch.equal(states[0].pop("recent"), states[1].pop("recent"))
    assert states[0] == states[1]


def test_the_row_after_a_resume_does_not_count_the_pause(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    state = saved_at(path, 5, killed_at=5)
    log = make_log(path)
    time.sleep(0.5)  # loading
    log.load_state_dict(state)
    run_updates(log, 6, 6)
    log.close()
    assert read_rows(path)[-1]["speed"] > 10


def test_pauses_between_updates_do_not_count(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl", trackers=[Noting()])
    pixels = np.zeros((4, 6, 3), np.uint8)
    run_updates(log, 1, 12)
    with log.pause():
        time.sleep(0.3)  # a validation
        log.write(12, 3, {"loss/validation": 1.0})
        time.sleep(0.3)
    run_updates(log, 13, 13)
    with log.pause():
        time.sleep(0.3)
        log.picture(13, 4, "sample/01", pixels)  # while update 13 waits
        time.sleep(0.3)  # a save
    run_updates(log, 14, 20)
    log.close()
    assert min(row["speed"] for row in read_rows(tmp_path / "log.jsonl") if "speed" in row) > 20


def test_the_time_of_updates_counts(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log.jsonl")
    run_updates(log, 1, 12)
    with log.pause():
        time.sleep(0.1)
    time.sleep(0.5)
    record(log, 13)
    log.drain()
    log.close()
    assert read_rows(tmp_path / "log.jsonl")[-1]["speed"] < 2 / 0.5


def test_the_log_of_an_earlier_run_is_kept_beside_or_overwritten_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    contents = []
    for last in (3, 4, 5):
        whole_run(path, last)
        contents.append(path.read_bytes())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.1.jsonl", "log.2.jsonl", "log.jsonl"]
    assert [(tmp_path / f"log.{number}.jsonl").read_bytes() for number in (1, 2)] == contents[:2]
    log = make_log(path, overwrite=True)
    run_updates(log, 1, 2)
    log.close()
    assert len(read_rows(path)) == 2
    assert len(list(tmp_path.iterdir())) == 3


def test_a_run_without_updates_leaves_the_log_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    whole_run(path, 3)
    before = path.read_bytes()
    make_log(path).close()
    state = saved_at(tmp_path / "other.jsonl", 2, 2)
    log = make_log(path)
    log.load_state_dict(state)
    log.close()
    assert path.read_bytes() == before
    assert not (tmp_path / "log.1.jsonl").exists()


@pytest.mark.parametrize("there", ["another run", "too short", "nothing"])
def test_a_resumed_run_that_does_not_find_its_rows_loses_nobodys(
    tmp_path: Path, there: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    state = saved_at(path, 8, killed_at=12)
    lines = path.read_bytes().splitlines(keepends=True)
    other = [line.replace(b'"step": 2', b'"step": 77') for line in lines]
    content = {"another run": b"".join(other), "too short": b"".join(lines[:5]), "nothing": None}[there]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with listening(caplog):
        log = make_log(path)
        log.load_state_dict(state)
        run_updates(log, 9, 10)
        log.close()
    assert [row["step"] for row in read_rows(path)] == [9, 10, 10]
    aside = tmp_path / "log.1.jsonl"
    assert (aside.read_bytes() if aside.exists() else None) == content
    assert "does not hold the first 11 rows" in caplog.text  # eight updates, two epochs, a validation
    assert ("kept as" in caplog.text) == (content is not None)
