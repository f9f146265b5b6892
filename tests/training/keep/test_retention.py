"""Which saved files go, which stay, and how the list of them outlives a kill."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from library.checkpoint.saves import END, EPOCH, REQUEST, STEP, SaveList
from library.checkpoint.state import write_state
from library.core.atomic_io import temporary_name
from library.options.keeping import KeepingOptions
from library.training.keep.retention import KeptFiles, remove_whole


def make_kept(folder: Path, begins: bool = True, **options: int) -> KeptFiles:
    kept = KeptFiles(folder, "cat", KeepingOptions(**options))  # type: ignore[arg-type]
    if begins:
        kept.begin(None, 0, saves_on_way=True)
    return kept


def save(kept: KeptFiles, folder: Path, kind: str, step: int, is_state: bool = False) -> Path:
    """Writes a file or a state, and lists it."""
    stem = f"cat-step{step:08d}" if kind in (STEP, REQUEST) else f"cat-{step:06d}"
    path = folder / (f"{stem}-state" if is_state else f"{stem}.safetensors")
    if is_state:
        write_state(path, {"weights": {"a": torch.full((3,), float(step))}}, {"step": step, "epoch": 1})
    else:
        path.write_text(f"of update {step}", encoding="utf-8")
    kept.add(kind, is_state, (step, 1), [path])
    return path


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "cat-saves.json")


def listed(folder: Path) -> list[tuple[str, ...]]:
    return [save.names for save in SaveList.read(folder, "cat").saves]


@pytest.mark.parametrize("is_state", [False, True])
def test_steps_older_than_the_reach_go(tmp_path: Path, is_state: bool) -> None:
    reach = {"save_last_n_steps_state": 3} if is_state else {}
    kept = make_kept(tmp_path, True, save_last_n_steps=7, **reach)
    paths = {}
    for step in (2, 4, 6, 8, 10):
        paths[step] = save(kept, tmp_path, STEP, step, is_state)
        kept.retire({(STEP, is_state)}, step)
    stays = [8, 10] if is_state else [4, 6, 8, 10]
    assert steps_in(tmp_path) == [paths[step].name for step in stays]
    assert listed(tmp_path) == [(paths[step].name,) for step in stays]


def test_states_of_epochs_can_have_a_limit_of_their_own(tmp_path: Path) -> None:
    """Without it, they go with the files."""
    for folder, own, states in (
        (tmp_path / "own", {"save_last_n_epochs_state": 1}, [4]),
        (tmp_path / "as", {}, [2, 4]),
    ):
        folder.mkdir()
        kept = make_kept(folder, save_last_n_epochs=2, **own)  # type: ignore[arg-type]
        for step in (1, 2, 4):
            for is_state in (False, True):
                save(kept, folder, EPOCH, step, is_state)
            kept.retire({(EPOCH, False), (EPOCH, True)}, step)
        names = [f"cat-{step:06d}.safetensors" for step in (2, 4)] + [f"cat-{step:06d}-state" for step in states]
        assert steps_in(folder) == sorted(names)


def test_the_newest_stays_however_small_the_limit(tmp_path: Path) -> None:
    kept = make_kept(tmp_path, save_last_n_steps=1, save_last_n_epochs=1)
    for step in (5, 10):
        save(kept, tmp_path, STEP, step)
        save(kept, tmp_path, EPOCH, step)
        kept.retire({(STEP, False), (EPOCH, False)}, step)
    assert steps_in(tmp_path) == ["cat-000010.safetensors", "cat-step00000010.safetensors"]


def test_nothing_goes_while_nothing_newer_is_written(tmp_path: Path) -> None:
    kept = make_kept(tmp_path, save_last_n_epochs=1)
    for step in (1, 2, 3):
        save(kept, tmp_path, EPOCH, step)
    kept.retire({(STEP, False), (EPOCH, True)}, 3)
    kept.retire(set(), 3)
    assert len(steps_in(tmp_path)) == 3


def test_requests_and_the_end_never_go(tmp_path: Path) -> None:
    kept = make_kept(tmp_path, save_last_n_steps=1)
    for step in (1, 2, 3):
        save(kept, tmp_path, REQUEST, step)
    kept.retire({(kind, False) for kind in (REQUEST, END, STEP)}, 100)
    assert len(steps_in(tmp_path)) == 3


@pytest.mark.parametrize("after_resume", [False, True])
def test_what_somebody_has_changed_stays(tmp_path: Path, after_resume: bool) -> None:
    kept = make_kept(tmp_path, save_last_n_steps=1)
    first, second = (save(kept, tmp_path, STEP, step) for step in (1, 2))
    first.write_text("mine now!!", encoding="utf-8")  # as long as it was
    if after_resume:
        kept = make_kept(tmp_path, begins=False, save_last_n_steps=1)
        kept.begin(tmp_path / "cat-step00000002-state", 2, saves_on_way=True)
    third = save(kept, tmp_path, STEP, 5)
    kept.retire({(STEP, False)}, 5)
    assert steps_in(tmp_path) == [first.name, third.name] and second.name not in steps_in(tmp_path)
    assert listed(tmp_path) == [(third.name,)]


def test_a_resumed_run_forgets_what_came_later_and_goes_on(tmp_path: Path) -> None:
    kept = make_kept(tmp_path, save_last_n_steps=2)
    for step in (2, 4, 6):
        save(kept, tmp_path, STEP, step)
        save(kept, tmp_path, STEP, step, is_state=True)
    kept = make_kept(tmp_path, begins=False, save_last_n_steps=2)
    kept.begin(tmp_path / "cat-step00000004-state", 4, saves_on_way=True)
    assert [names[0] for names in listed(tmp_path)][-1] == "cat-step00000004-state" and len(listed(tmp_path)) == 4
    save(kept, tmp_path, STEP, 6)
    kept.retire({(STEP, False)}, 6)
    assert "cat-step00000002.safetensors" not in steps_in(tmp_path)
    assert "cat-step00000002-state" in steps_in(tmp_path)  # no newer state was written


def test_a_state_whose_run_was_killed_before_it_was_listed_is_taken_up(tmp_path: Path) -> None:
    kept = make_kept(tmp_path, save_last_n_steps=1)
    save(kept, tmp_path, STEP, 3)
    state = tmp_path / "cat-step00000003-state"
    write_state(state, {"weights": {"a": torch.zeros(3)}}, {"step": 3, "epoch": 1})
    kept = make_kept(tmp_path, begins=False, save_last_n_steps=1)
    kept.begin(state, 3, saves_on_way=True)
    assert listed(tmp_path)[-1] == (state.name,) and SaveList.read(tmp_path, "cat").saves[-1].is_as_written(tmp_path)
    save(kept, tmp_path, STEP, 5, is_state=True)
    kept.retire({(STEP, True)}, 5)
    assert not state.exists()


def test_a_new_run_takes_nothing_over_and_clears_left_overs_away(tmp_path: Path) -> None:
    kept = make_kept(tmp_path, save_last_n_steps=1)
    first = save(kept, tmp_path, STEP, 1)
    left = [tmp_path / temporary_name(ending) for ending in (".safetensors", ".json", "")]
    dead = [path.with_name("-".join([*path.name.split("-")[:3], "999999999" + path.suffix])) for path in left]
    for path in (*left, *dead):
        path.touch()
    kept = make_kept(tmp_path, save_last_n_steps=1)
    assert listed(tmp_path) == []
    assert not any(path.exists() for path in dead) and all(path.exists() for path in left)  # ours: we live
    save(kept, tmp_path, STEP, 9)
    kept.retire({(STEP, False)}, 9)
    assert first.exists()


def test_a_run_that_goes_on_from_the_state_of_another_removes_nothing_of_its_name(tmp_path: Path) -> None:
    kept = make_kept(tmp_path, save_last_n_steps=1)
    first = save(kept, tmp_path, STEP, 1)
    state = tmp_path / "dog-step00000002-state"
    write_state(state, {"weights": {"a": torch.ones(3)}}, {"step": 2, "epoch": 1, "name": "dog"})
    kept = make_kept(tmp_path, begins=False, save_last_n_steps=1)
    kept.begin(state, 2, saves_on_way=True)
    assert listed(tmp_path) == []
    save(kept, tmp_path, STEP, 9)
    kept.retire({(STEP, False)}, 9)
    assert first.exists()


def test_a_copy_of_a_listed_state_is_as_good(tmp_path: Path) -> None:
    """One that was fetched from the Hub, say."""
    kept = make_kept(tmp_path)
    state = save(kept, tmp_path, STEP, 1, is_state=True)
    elsewhere = shutil.copytree(state, tmp_path / "elsewhere" / "backup")
    make_kept(tmp_path, begins=False).begin(elsewhere, 1, saves_on_way=True)
    assert listed(tmp_path) == [(state.name,)]


def test_states_that_are_not_the_runs_are_passed_over_until_they_are_written_anew(tmp_path: Path) -> None:
    kept = make_kept(tmp_path)
    states = [save(kept, tmp_path, STEP, step, is_state=True) for step in (1, 2, 3)]
    make_kept(tmp_path, begins=False).begin(states[1], 2, saves_on_way=True)
    found = SaveList.read(tmp_path, "cat")
    assert listed(tmp_path) == [(state.name,) for state in states[:2]]
    assert [found.passes_over(state) for state in states] == [False, False, True]
    kept = make_kept(tmp_path, begins=False)
    kept.begin(None, 0, saves_on_way=False)  # a list is written all the same: there are states
    found = SaveList.read(tmp_path, "cat")
    assert [found.passes_over(state) for state in states] == [True, True, True]
    save(kept, tmp_path, STEP, 2, is_state=True)
    found = SaveList.read(tmp_path, "cat")
    assert [found.passes_over(state) for state in states] == [True, False, True]


def test_a_damaged_list_is_told_and_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cat-saves.json").write_text("{", encoding="utf-8")
    kept = make_kept(tmp_path, begins=False)
    kept.begin(tmp_path / "x-state", 1, saves_on_way=True)
    assert listed(tmp_path) == [] and "a new list is begun" in caplog.text


def test_a_folder_is_removed_in_one_step(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "a").touch()
    remove_whole(folder)
    assert list(tmp_path.iterdir()) == []
    link = tmp_path / "link"
    (tmp_path / "precious").mkdir()
    link.symlink_to(tmp_path / "precious")
    remove_whole(link)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    remove_whole(tmp_path / "nothing")
