"""The log of a run: every update in order, averages, TensorBoard, and no needless wait for the device."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from library.training.scalars import ScalarLog
from tests.training.runs import run_here

RATES = {"lr/textencoder": 1e-5, "lr/unet": 1e-4}
DRAINS = [*range(1, 11), 20, 30]  # the updates up to 35 at which waiting numbers are read
TAGS = ["loss/current", "loss/average", "lr/textencoder", "lr/unet", "grad_norm", "speed"]


def unreduced(values: torch.Tensor) -> torch.Tensor:
    return values


def loss_of(step: int) -> float:
    return 1 / step


def record(log: ScalarLog, step: int, device: str = "cpu", epoch: int = 1) -> bool:
    loss, grad_norm = torch.tensor(loss_of(step), device=device), torch.tensor(float(step), device=device)
    return log.record(step, epoch, loss, {**RATES, "grad_norm": grad_norm})


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every TensorBoard scalar, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def close_to(events: list[tuple[int, float]]) -> Any:
    """The same steps and values; TensorBoard keeps float32."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in events]


def test_every_update_is_a_row_in_order_with_the_mean_of_the_last_epoch_length(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "log.jsonl"
    log = ScalarLog(path, None, updates_per_epoch=4, reduce=unreduced)
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
    assert log.first_loss == rows[0]["loss/current"]
    assert log.average_loss == rows[-1]["loss/average"]


def test_the_epoch_average_covers_each_epoch_by_itself_and_follows_its_last_update(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = ScalarLog(path, None, updates_per_epoch=12, reduce=unreduced)
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
    log = ScalarLog(tmp_path / "log.jsonl", None, updates_per_epoch=4, reduce=unreduced)
    assert [step for step in range(1, 36) if record(log, step)] == DRAINS
    log.drain()
    for step in range(36, 40):
        assert not record(log, step, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        record(log, 40, device="meta")


def test_rows_are_on_disk_after_each_drain(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = ScalarLog(path, None, updates_per_epoch=4, reduce=unreduced)
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
    main = ScalarLog(tmp_path / "log.jsonl", None, 4, noting(main_shapes))
    other = ScalarLog(None, None, 4, noting(other_shapes))
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


def test_tensorboard_shows_what_the_jsonl_log_says(tmp_path: Path) -> None:
    log = ScalarLog(tmp_path / "log.jsonl", tmp_path / "events", updates_per_epoch=6, reduce=unreduced)
    for step in range(1, 13):
        record(log, step, epoch=(step - 1) // 6 + 1)
        if step % 6 == 0:
            log.end_epoch(step, step // 6)
    log.close()
    rows, events = read_rows(tmp_path / "log.jsonl"), read_events(tmp_path / "events")
    assert set(events) == {*TAGS, "loss/epoch_average"}
    for tag, found in events.items():
        assert found == close_to([(row["step"], row[tag]) for row in rows if tag in row])
    assert [step for step, _ in events["loss/epoch_average"]] == [6, 12]
    assert events["lr/textencoder"] == close_to([(step, 1e-5) for step in range(1, 13)])


def test_a_run_logs_into_a_folder_named_by_prefix_and_time(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures" / "1_cat"
    folder.mkdir(parents=True)
    for name in ("cat.jpg", "coffee.jpg"):
        (folder / name).write_bytes((photos / name).read_bytes())
    logs = tmp_path / "logs"
    data = ["--train_data_dir", str(folder.parent), "--resolution", "64", "--max_train_epochs", "2"]
    words = ["--logging_dir", str(logs), "--log_prefix", "cats-", "--unet_lr", "5e-4"]
    run_here(tiny_models["sd1"], data, tmp_path / "out", *words)
    (run_folder,) = logs.iterdir()
    assert re.fullmatch(r"cats-20\d{12}", run_folder.name)
    assert [entry.name for entry in run_folder.iterdir()] == ["network_train"]
    events = read_events(run_folder / "network_train")
    rows = read_rows(tmp_path / "out" / "last-log.jsonl")
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (2, 1), (3, 2), (4, 2), (4, 2)]
    assert set(events) == {*TAGS, "loss/epoch_average"}
    for tag, found in events.items():
        assert found == close_to([(row["step"], row[tag]) for row in rows if tag in row])
    assert events["lr/unet"] == close_to([(step, 5e-4) for step in range(1, 5)])
    assert events["lr/textencoder"] == close_to([(step, 1e-3) for step in range(1, 5)])
