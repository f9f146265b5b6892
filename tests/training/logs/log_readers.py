"""Logs of runs read back: the JSONL, TensorBoard's events, wandb's own files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@contextmanager
def listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Our messages in caplog: our logger does not hand them on."""
    ours = logging.getLogger("sd_atelier")
    level, passes = ours.level, ours.propagate
    ours.addHandler(caplog.handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(caplog.handler)
        ours.setLevel(level)
        ours.propagate = passes


@contextmanager
def wandb_offline(own: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb asks nobody anything, and keeps what is no run's in a folder of its own."""
    import wandb

    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for place in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(own))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    wandb.teardown()
    logging.getLogger("wandb").filters.clear()


def assert_not_told(folder: Path, word: str) -> None:
    """A word stands in no file below a folder, and in no name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert word.encode() not in path.read_bytes(), path
        assert word not in path.name


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every TensorBoard scalar in a folder, by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_files(folder: Path) -> list[Path]:
    """The files in which wandb keeps its runs below a folder, oldest first; runs of this process have to be closed."""
    import wandb

    wandb.teardown()  # a process of its own writes them, and takes its time
    return sorted(folder.rglob("run-*.wandb"))


def wandb_records(file: Path) -> list[Any]:
    """All that wandb kept of a run, read with its own reader."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported
    from wandb.sdk.internal.datastore import DataStore

    store = DataStore()
    store.open_for_scan(str(file))
    records = []
    while (content := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(content)
        records.append(record)
    return records


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """The rows of a run in wandb, one a step."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(file)
        if record.HasField("history")
    ]
