"""TensorBoard and wandb: the rows, pictures and options of a run, after a resume too; no secrets, no folders."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.training.checks.preflight import check_network_run
from library.training.logs.scalars import ScalarLog
from library.training.logs.tensorboard import TensorBoardTracker
from library.training.logs.trackers import tracker_config
from library.training.logs.wandb import WandbTracker
from tests.data.data_helpers import save_picture
from tests.training.logs.log_readers import (
    assert_not_told,
    listening,
    wandb_files,
    wandb_history,
    wandb_offline,
    wandb_records,
)

NOBODY = "http://127.0.0.1:9"  # a port where nobody answers
KEY = "0123456789abcdef" * 3
CONFIG = {"seed": 7, "unet_lr": 1e-4, "optimizer_type": "AdamW", "flip_aug": True}


def pixels_of(value: int) -> NDArray[np.uint8]:
    return np.full((4, 6, 3), value, np.uint8)


def tensorboard(root: Path, prefix: str = "cats-", project: str = "network_train", **given: Any) -> TensorBoardTracker:
    return TensorBoardTracker(root, prefix, project, CONFIG, given)


def events(root: Path) -> EventAccumulator:
    """What TensorBoard reads of the only run below a folder."""
    (stamped,) = root.iterdir()
    (project,) = stamped.iterdir()
    found = EventAccumulator(str(project), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    return found


def scalars(root: Path, tag: str) -> list[tuple[int, Any]]:
    return [(event.step, event.value) for event in events(root).Scalars(tag)]


def test_tensorboard_has_numbers_pictures_and_options_below_prefix_and_time(tmp_path: Path) -> None:
    before = datetime.now().replace(microsecond=0)
    tracker = tensorboard(tmp_path)
    assert list(tmp_path.iterdir()) == [], "opened by what it is given first"
    tracker.numbers(1, {"loss/current": 0.5, "lr/unet": 1e-4, "epoch": 1})
    tracker.picture(1, "sample/01", pixels_of(200))
    tracker.numbers(2, {"loss/current": float("nan")})
    tracker.close()
    (stamped,) = tmp_path.iterdir()
    assert re.fullmatch(r"cats-20\d{12}", stamped.name)
    assert before <= datetime.strptime(stamped.name, "cats-%Y%m%d%H%M%S") <= datetime.now()
    assert [entry.name for entry in stamped.iterdir()] == ["network_train"]
    assert scalars(tmp_path, "lr/unet") == [(1, pytest.approx(1e-4))]
    assert [step for step, _ in scalars(tmp_path, "loss/current")] == [1, 2]
    found = events(tmp_path)
    (picture,) = found.Images("sample/01")
    assert (picture.step, picture.width, picture.height) == (1, 6, 4)
    hparams = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"unet_lr" in hparams and b"AdamW" in hparams


def test_a_resumed_run_goes_on_in_its_folder_and_what_was_logged_after_the_state_goes(tmp_path: Path) -> None:
    tracker = tensorboard(tmp_path)
    for step in range(1, 8):
        tracker.numbers(step, {"loss/current": step / 10})
        tracker.picture(step, "sample/01", pixels_of(step))
        if step == 4:
            state = tracker.state_dict()
    tracker.close()
    for first in (5, 6):  # resumed twice
        tracker = tensorboard(tmp_path)
        tracker.load_state_dict(state, first - 1)
        for step in range(first, 8):
            tracker.numbers(step, {"loss/current": step / 100})
            tracker.picture(step, "sample/01", pixels_of(step))
        assert tracker.state_dict() == state
        tracker.close()
    expected = [(step, step / 10 if step < 5 else step / 100) for step in range(1, 8)]
    assert scalars(tmp_path, "loss/current") == [(step, pytest.approx(value)) for step, value in expected]
    assert [picture.step for picture in events(tmp_path).Images("sample/01")] == list(range(1, 8))


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for value in (1.0, 2.0):
        tracker = tensorboard(tmp_path, prefix="")
        tracker.numbers(1, {"loss/current": value})
        tracker.close()
    stamp = datetime.fromtimestamp(1700000000).strftime("%Y%m%d%H%M%S")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [stamp, f"{stamp}-2"]


@pytest.mark.parametrize(
    "folder", ["cats-20260101000000", "../elsewhere/cats-x", "cats-/../../x", "..", "cats-\\..\\x", "dogs-1", ""]
)
def test_a_folder_that_is_not_there_or_no_name_is_not_gone_on_with(tmp_path: Path, folder: str) -> None:
    (tmp_path / "elsewhere/cats-x/network_train").mkdir(parents=True)
    (tmp_path / "x/network_train").mkdir(parents=True)
    (tmp_path / "logs/dogs-1/network_train").mkdir(parents=True)
    tracker = tensorboard(tmp_path / "logs")
    tracker.load_state_dict({"folder": folder}, 4)
    tracker.numbers(5, {"loss/current": 1.0})
    tracker.close()
    made = [path for path in tmp_path.rglob("events*")]
    assert len(made) == 1
    assert re.fullmatch(r"logs/cats-20\d{12}/network_train", made[0].parent.relative_to(tmp_path).as_posix())
    assert not made[0].parent.parent.name.endswith("20260101000000")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_folder_or_file_that_is_removed_is_told_and_no_curves_are_promised(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = tensorboard(tmp_path / "logs")
    log = ScalarLog(None, [tracker], 2, reduce=lambda values: values, peak_memory=lambda: None)
    with listening(caplog):
        for step in range(1, 4):
            log.record(step, 1, torch.tensor(0.5), {})
        assert tracker.told() == f"curves: tensorboard --logdir={tmp_path / 'logs'}, then http://localhost:6006/"
        tracker.flush()
        shutil.rmtree(tmp_path / "logs") if what == "folder" else next(tmp_path.rglob("events*")).unlink()
        for step in range(4, 6):
            log.record(step, 1, torch.tensor(0.5), {})
        log.close()
    (line,) = log.told()
    assert line == f"tensorboard: not logged to the end, its file below {tmp_path / 'logs'} was removed"
    assert caplog.text.count("tensorboard cannot be logged to any more") == 1
    assert not list(tmp_path.rglob("events*"))
    assert "Traceback" not in capsys.readouterr().err


def test_no_curves_are_told_where_nothing_was_logged(tmp_path: Path) -> None:
    tracker = tensorboard(tmp_path)
    tracker.close()
    assert tracker.told() == ""


def test_texts_are_told_whole_and_places_by_their_names(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    folder = tmp_path / "home-of-hilde" / "pictures"
    save_picture(folder / "a.png")
    (folder / "a.txt").write_text("a dog", encoding="utf-8")
    model = shutil.copy(tiny_models["sd1"], tmp_path / "home-of-hilde" / "base.safetensors")
    texts = {"caption_prefix": "w/o face, ", "training_comment": "a\\b/c/", "lr_scheduler": "cosine"}
    words = [
        *("--pretrained_model_name_or_path", str(model), "--train_data_dir", str(folder), "--resolution", "64"),
        *("--max_train_steps", "3", "--output_dir", str(tmp_path / "out")),
        *("--optimizer_args", "weight_decay=0.5", "--caption_extension", ".txt"),
        *(word for name, text in texts.items() for word in (f"--{name}", text)),
    ]
    entry = SCRIPTS["train_network.py"]
    run = check_network_run(parse_options("train_network.py", entry.description, entry.groups, words))
    optimizer = replace(run.options.optimizer, optimizer_args=(f"file={folder / 'x.bin'}", "ratio=1/2"))
    keeping = replace(run.options.keeping, resume=str(folder / "at-state"))
    shown = tracker_config(replace(run, options=replace(run.options, optimizer=optimizer, keeping=keeping)))
    assert {name: shown[name] for name in texts} == texts
    places = ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "resume")
    assert [shown[name] for name in places] == ["base.safetensors", "pictures", "out", "at-state"]
    assert shown["optimizer_args"] == "file=x.bin, ratio=1/2"
    assert "home-of-hilde" not in str(shown)


def test_further_arguments_reach_the_writer(tmp_path: Path) -> None:
    tracker = tensorboard(tmp_path, filename_suffix=".mine")
    tracker.numbers(1, {"loss/current": 1.0})
    tracker.close()
    assert [path.suffix for path in tmp_path.rglob("events*")] == [".mine"]


# --- wandb ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with wandb_offline(tmp_path / "wandb_own", monkeypatch):
        yield


def wandb_tracker(folder: Path, key: str | None = None, **given: Any) -> WandbTracker:
    return WandbTracker(folder, "network_train", CONFIG, given, key)


def test_wandb_has_the_history_pictures_options_and_names(tmp_path: Path, offline: None) -> None:
    tracker = wandb_tracker(tmp_path / "logs", name="cats", tags=["a", "b"])
    assert not (tmp_path / "logs").exists()
    for step in (1, 2):
        tracker.numbers(step, {"loss/current": 1 / step, "epoch": 1.0})
        tracker.numbers(step, {"loss/epoch_average": 2.0})
    tracker.picture(2, "sample/01", pixels_of(9))
    tracker.close()
    (file,) = wandb_files(tmp_path / "logs")
    history = wandb_history(file)
    assert [row["_step"] for row in history] == [1, 2]
    assert [row["loss/current"] for row in history] == [1.0, 0.5]
    assert [row["loss/epoch_average"] for row in history] == [2.0, 2.0]
    assert [row["epoch"] for row in history] == [1.0, 1.0]
    assert history[1]["sample/01/width"] == 6
    assert len(list((tmp_path / "logs").rglob("*.png"))) == 1
    (run,) = [record.run for record in wandb_records(file) if record.HasField("run")]
    assert (run.project, run.display_name, list(run.tags)) == ("network_train", "cats", ["a", "b"])
    config = {item.key: item.value_json for item in run.config.update}
    assert {name: config[name] for name in CONFIG} == {
        "seed": "7", "unet_lr": "0.0001", "optimizer_type": '"AdamW"', "flip_aug": "true"
    }  # fmt: skip


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path: Path, offline: None) -> None:
    tracker = wandb_tracker(tmp_path)
    assert tracker.state_dict() == {}
    tracker.numbers(1, {"loss/current": 1.0})
    state = tracker.state_dict()
    tracker.close()
    resumed = wandb_tracker(tmp_path)
    resumed.load_state_dict(state, 1)
    resumed.numbers(2, {"loss/current": 0.5})
    assert resumed.state_dict() == state
    resumed.close()
    ids = {
        record.run.run_id for file in wandb_files(tmp_path) for record in wandb_records(file) if record.HasField("run")
    }
    assert ids == {state["id"]}


def test_a_wandb_that_cannot_be_reached_leaves_the_run_on_the_disk(
    tmp_path: Path, offline: None, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"base_url": NOBODY, "init_timeout": 1.0}
    with listening(caplog):
        tracker = wandb_tracker(tmp_path / "logs", KEY, mode="online", settings=settings)
        tracker.numbers(1, {"loss/current": 0.25})
        tracker.close()
    told = [record.getMessage() for record in caplog.records if record.name.startswith("sd_atelier")]
    assert [line.split(",")[0].split(";")[0] for line in told] == ["wandb cannot be reached", "wandb: offline"]
    assert "wandb sync" in told[1]
    assert tracker.told() == told[1]
    histories = [wandb_history(file) for file in wandb_files(tmp_path / "logs")]
    assert [row["loss/current"] for history in histories for row in history] == [0.25]
    assert_not_told(tmp_path, KEY)
    assert_not_told(tmp_path / "logs", str(Path(__file__).parents[3]))
    assert KEY not in caplog.text


def test_wandb_is_told_no_folders_and_no_command_line(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret_word = "word-of-the-command-line"
    monkeypatch.setattr("sys.argv", ["train_network.py", "--wandb_api_key", secret_word])
    place = tmp_path / "home-of-hilde"
    tracker = wandb_tracker(place, KEY)
    tracker.numbers(1, {"loss/current": 1.0})
    print("a line of the console")
    tracker.close()
    for word in (secret_word, "home-of-hilde", KEY, str(Path(__file__).parents[3]), "a line of the console"):
        assert_not_told(place, word)


def test_settings_of_the_user_reach_wandb(tmp_path: Path, offline: None) -> None:
    given: Mapping[str, Any] = {"notes": "for tuesday", "settings": {"run_group": "cats"}}
    tracker = wandb_tracker(tmp_path, **given)
    tracker.numbers(1, {"loss/current": 1.0})
    tracker.close()
    (file,) = wandb_files(tmp_path)
    (run,) = [record.run for record in wandb_records(file) if record.HasField("run")]
    assert (run.notes, run.run_group) == ("for tuesday", "cats")


@pytest.mark.parametrize("breaks", [False, True])
def test_wandb_is_told_how_the_run_ended(tmp_path: Path, offline: None, breaks: bool) -> None:
    tracker = wandb_tracker(tmp_path)
    tracker.numbers(1, {"loss/current": 1.0})
    try:
        if breaks:
            raise MemoryError
    except MemoryError:
        tracker.close()
    if not breaks:
        tracker.close()
    (file,) = wandb_files(tmp_path)
    assert [record.exit.exit_code for record in wandb_records(file) if record.HasField("exit")] == [int(breaks)]
