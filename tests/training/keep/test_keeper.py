"""What runs save on the way, what they keep of it, and what they do when something cannot be saved."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import train_db
import train_network
from library.checkpoint.saves import SaveList
from library.checkpoint.state import check_state
from library.core.atomic_io import TEMPORARY_MARK
from library.core.errors import EXIT_INCOMPLETE, EXIT_USER_ERROR, Stopped, UserError, run_script
from library.models.files.weights import open_weights
from tests.training.runs import assert_same, run_process
from tests.training.styles import CAPTION_FILES, style_words

STATE, LISTS = "-state", ("last-saves.json", "last-log.jsonl")
on_linux_as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root of Linux can make a disk that is full or read-only"
)


@pytest.fixture
def base(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> list[str]:
    """A good command line, three updates an epoch, but for its length."""
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--learning_rate", "1e-3"]
    words += ["--max_data_loader_n_workers", "0", "--network_train_unet_only"]
    return words + style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")


def names_in(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def stems_in(out: Path) -> set[str]:
    """Names of trained files without ending, and of states."""
    return {name.removesuffix(".safetensors") for name in names_in(out) - set(LISTS)}


def assert_whole(out: Path, name: str | None = None) -> None:
    """Every file can be read, is listed, and is as it was written; nothing half-written is left."""
    listed = SaveList.read(out, name)
    for save in listed.saves:
        assert save.is_as_written(out), save.names
    for path in out.iterdir():
        assert not path.name.startswith(TEMPORARY_MARK)
        if path.suffix == ".safetensors":
            file = open_weights(path)
            assert all(file.read(name).numel() for name in file.shapes)
        if path.name.endswith(STATE):
            check_state(path)
        if path.suffix == ".safetensors" or path.is_dir():
            assert listed.holds(path.name)


def place_of(file: Path) -> tuple[str, str]:
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    return metadata["ss_epoch"], metadata["ss_steps"]


def test_files_and_states_have_the_names_of_the_field(base: list[str], tmp_path: Path) -> None:
    """Those of epochs are left out at the end, which has the plain name; those of updates are not."""
    out = tmp_path / "out"
    words = [*base, "--output_dir", str(out), "--max_train_epochs", "3"]
    train_network.main([*words, "--save_every_n_epochs", "1", "--save_every_n_steps", "3", "--save_state"])
    stems = {"epoch-000001", "epoch-000002", "at-step00000003", "at-step00000006", "at-step00000009", "last"}
    assert stems_in(out) == stems | {stem + STATE for stem in stems}
    places = {stem: place_of(out / f"{stem}.safetensors") for stem in stems}
    assert places["epoch-000002"] == places["at-step00000006"] == ("2", "6")
    assert places["last"] == places["at-step00000009"] == ("3", "9")
    first, second = (load_file(str(out / f"epoch-00000{n}.safetensors")) for n in (1, 2))
    assert any(not first[key].equal(second[key]) for key in first)
    assert_same(load_file(str(out / "last.safetensors")), load_file(str(out / "at-step00000009.safetensors")))
    assert_whole(out)


def test_saves_change_nothing_of_the_training(base: list[str], tmp_path: Path) -> None:
    """Weights that a save takes as an average are afterwards, bit by bit, what they were."""
    words = [*base, "--max_train_steps", "4", "--ema", "--optimizer_type", "AdamWScheduleFree"]
    train_network.main([*words, "--output_dir", str(tmp_path / "a")])
    more = ["--save_every_n_steps", "2", "--save_n_epoch_ratio", "2", "--save_state", "--output_name", "b"]
    train_network.main([*words, "--output_dir", str(tmp_path / "b"), *more])
    for ending in ("", "-ema"):
        pair = (tmp_path / "a" / f"last{ending}.safetensors", tmp_path / "b" / f"b{ending}.safetensors")
        assert_same(load_file(str(pair[0])), load_file(str(pair[1])))
    assert names_in(tmp_path / "a") == {"last.safetensors", "last-ema.safetensors", "last-log.jsonl"}  # no list
    assert {"b-000001.safetensors", "b-step00000004.safetensors", "b-saves.json"} <= names_in(tmp_path / "b")


def test_older_files_go_and_those_of_others_stay(base: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    others = ["cat-000009.safetensors", "cat-step00000099.safetensors", "cat-step1.safetensors", "notes.txt"]
    for name in others:
        (out / name).write_text("mine", encoding="utf-8")
    (out / "cat-000007-state").mkdir()
    words = [*base, "--output_dir", str(out), "--output_name", "cat", "--max_train_epochs", "3", "--ema"]
    words += ["--save_state", "--save_every_n_epochs", "1", "--save_last_n_epochs", "1"]
    train_network.main(
        [*words, "--save_every_n_steps", "3", "--save_last_n_steps", "4", "--save_last_n_steps_state", "2"]
    )
    kept = ["cat", "cat-000002", "cat-step00000009", "cat-step00000006"]
    expected = {f"{stem}{ending}.safetensors" for stem in kept for ending in ("", "-ema")} | set(others)
    expected |= {f"{stem}-state" for stem in kept[:3]} | {"cat-000007-state"}
    assert names_in(out) == expected | {"cat-saves.json", "cat-log.jsonl"}
    assert (out / others[0]).read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "form", "leaves"), [("sd2_v", "safetensors", [".safetensors", ".yaml"]), ("sd1", "diffusers", [""])]
)
def test_whole_models_go_with_all_that_belongs_to_them(
    base: list[str], tiny_models: dict[str, Path], tmp_path: Path, kind: str, form: str, leaves: list[str]
) -> None:
    out = tmp_path / "out"
    words = [word for word in base if word != "--network_train_unet_only"]
    words[1] = str(tiny_models[kind])
    words += ["--v2", "--v_parameterization"] if kind == "sd2_v" else []
    words += ["--output_dir", str(out), "--max_train_steps", "3", "--save_model_as", form]
    train_db.main([*words, "--save_every_n_steps", "1", "--save_last_n_steps", "1"])
    stems = ("at-step00000002", "at-step00000003", "last")
    assert names_in(out) == {stem + ending for stem in stems for ending in leaves} | set(LISTS)
    assert_whole(out)


@pytest.mark.slow
def test_a_stop_saves_both_and_they_are_never_removed(base: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*base, "--output_dir", str(out), "--save_every_n_steps", "1", "--save_last_n_steps", "1"]
    with when_there(out / "at-step00000002.safetensors", lambda: (out / "stop").touch()), pytest.raises(Stopped):
        train_network.main([*words, "--max_train_steps", "10000"])
    (state,) = (path for path in out.iterdir() if path.name.endswith(STATE))
    assert (out / f"{state.name.removesuffix(STATE)}.safetensors").exists() and not (out / "last.safetensors").exists()
    assert [save.kind for save in SaveList.read(out, None).saves if state.name in save.names] == ["request"]
    assert_whole(out)
    step = int(state.name.removesuffix(STATE)[-8:])
    changed = ["--resume", "latest", "--max_train_steps", str(step + 4), "--allow_changed_options"]
    train_network.main([*words, *changed])
    asked = {state.name, f"at-step{step:08d}"}
    assert stems_in(out) == {*asked, f"at-step{step + 3:08d}", f"at-step{step + 4:08d}", "last"}
    assert_whole(out)


# --- what cannot be saved ---------------------------------------------------------------------------------------------


@contextmanager
def when_there(path: Path, act: Callable[[], object]) -> Iterator[None]:
    """Inside, something is done as soon as there is such a file."""
    ended = threading.Event()

    def watch() -> None:
        while not path.exists() and not ended.is_set():
            time.sleep(0.005)
        if not ended.is_set():
            act()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, files beyond this size cannot be written: for programs that is a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"cannot mount: {made.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def messages(error: pytest.ExceptionInfo[UserError]) -> list[str]:
    return [f"{Path(problem.where).name}: {problem.what}" for problem in error.value.problems]


def test_states_that_cannot_be_saved_cost_nothing_else(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*base, "--output_dir", str(out), "--max_train_steps", "4", "--save_every_n_steps", "2", "--save_state"]
    with largest_file(900_000):  # the network has 0.7 MB in its file, its optimizer twice as much
        assert run_script(lambda: train_network.main(words)) == EXIT_INCOMPLETE
    told = capsys.readouterr().err
    assert stems_in(out) == {"at-step00000002", "at-step00000004", "last"}
    assert_whole(out)
    assert f"error: {out / 'at-step00000002-state'}: could not be saved: File too large" in told
    assert "training goes on" in told and "3 things could not be done" in told


def test_a_run_that_can_save_nothing_comes_to_its_end_and_fails(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*base, "--output_dir", str(out), "--max_train_steps", "3", "--save_every_n_steps", "1"]
    with largest_file(100_000):
        assert run_script(lambda: train_network.main(words)) == EXIT_USER_ERROR
    assert stems_in(out) == set()
    told = capsys.readouterr().err  # at once, in the summary, and in the end
    assert told.count("last.safetensors: could not be saved: File too large") == 3 and "ulimit -f" in told


@on_linux_as_root
def test_a_disk_that_fills_up_stops_nothing_and_the_run_can_go_on_later(
    base: list[str], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, filler = disk / "out", disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                return

    words = [*base, "--output_dir", str(out), "--max_train_steps", "4", "--save_every_n_steps", "1", "--save_state"]
    with when_there(out / "at-step00000001-state", fill), pytest.raises(UserError) as caught:
        train_network.main(words)
    assert {"last.safetensors", "last-state"} <= {line.split(":")[0] for line in messages(caught)}
    told = capsys.readouterr().err
    assert "could not be saved: No space left on device" in told and "needed at least)" in told
    assert "at-step00000001" in stems_in(out) and "last" not in stems_in(out)
    assert_whole(out)
    filler.unlink()
    train_network.main([*words, "--resume", "latest"])
    assert {"at-step00000004", "at-step00000004-state", "last", "last-state"} <= stems_in(out)
    assert_whole(out)


@pytest.mark.slow
@on_linux_as_root
def test_a_disk_that_turns_read_only_stops_nothing(
    base: list[str], disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, view = disk / "out", tmp_path / "view"
    for folder in (out, view):
        folder.mkdir()
    mount("--bind", out, view)
    mount("-o", "remount,bind,ro", view)

    def turn() -> None:
        mount("--bind", view, out)

    words = [*base, "--output_dir", str(out), "--max_train_steps", "8", "--save_every_n_steps", "2"]
    try:
        with when_there(out / "at-step00000002.safetensors", turn), pytest.raises(UserError) as caught:
            train_network.main(words)
        assert "last.safetensors: could not be saved: Read-only file system" in messages(caught)
        assert "make the folder writable" in capsys.readouterr().err
        assert "at-step00000002" in stems_in(out)
        for file in out.glob("*.safetensors"):
            assert load_file(str(file))
    finally:
        for folder in (out, view):
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.mark.slow
def test_a_folder_that_is_taken_away_is_made_anew(base: list[str], tmp_path: Path) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    words = [*base, "--output_dir", str(out), "--max_train_steps", "6", "--save_every_n_steps", "2"]
    with when_there(out / "at-step00000002.safetensors", lambda: shutil.move(out, moved)):
        run_script(lambda: train_network.main(words))
    assert load_file(str(moved / "at-step00000002.safetensors")) and load_file(str(out / "last.safetensors"))


def test_killed_runs_leave_whole_files_and_can_be_resumed() -> None:
    """A few rounds; the script plays as many as one wants."""
    script = Path(__file__).resolve().parents[2] / "checkpoint" / "kill_while_saving.py"
    words = [sys.executable, str(script), "--rounds", "6", "--seed", "1", "--kinds", "network"]
    played = subprocess.run(words, capture_output=True, text=True, encoding="utf-8")
    assert played.returncode == 0, played.stdout[-4000:] + played.stderr[-2000:]
    assert played.stdout.startswith("6 kills") and "0 things are wrong" in played.stdout


@pytest.mark.slow
def test_of_two_processes_one_writes(tiny_models: dict[str, Path], base: list[str], tmp_path: Path) -> None:
    words = [*base[2:], "--save_every_n_steps", "1", "--save_every_n_epochs", "1", "--save_state", "--ema"]
    words += ["--max_train_epochs", "2", "--save_last_n_steps_state", "1"]
    run_process(tiny_models["sd1"], words, tmp_path / "out", processes=2)
    stems = {"epoch-000001", *(f"at-step{step:08d}" for step in range(1, 5)), "last"}
    states = {"epoch-000001-state", "at-step00000003-state", "at-step00000004-state", "last-state"}
    assert stems_in(tmp_path / "out") == {stem + end for stem in stems for end in ("", "-ema")} | states
    assert_whole(tmp_path / "out")
