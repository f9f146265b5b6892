"""A folder is whole or absent, and the old one is there until the new one is, wherever a process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.core.whole_folder import folders_aside, remove_left_over_folders, swap_folder, write_whole_folder

ROOT = Path(__file__).resolve().parents[2]
OWN = ("weights", "inner", "former")


def fill(folder: Path, text: str) -> None:
    (folder / "weights").write_text(text, encoding="utf-8")
    (folder / "inner").mkdir()
    (folder / "inner" / "more").write_text(text, encoding="utf-8")


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


def make_old(folder: Path) -> None:
    """An old folder, with a file that the new one does not have, and one that is somebody else's."""
    folder.mkdir()
    fill(folder, "old")
    (folder / "former").write_text("old", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")


NEW = {"weights": "new", "inner/more": "new", "notes.txt": "mine"}
OLD = {"weights": "old", "inner/more": "old", "notes.txt": "mine", "former": "old"}


def test_the_new_folder_takes_the_place_and_what_others_put_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    write_whole_folder(folder, lambda path: fill(path, "first"), OWN)
    assert content(folder) == {"weights": "first", "inner/more": "first"}
    make_old(tmp_path / "other")
    write_whole_folder(tmp_path / "other", lambda path: fill(path, "new"), OWN)
    assert content(tmp_path / "other") == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "other"]


def test_a_write_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder, "half")
        raise OSError("disk full")

    make_old(tmp_path / "model")
    with pytest.raises(OSError, match="disk full"):
        write_whole_folder(tmp_path / "model", fail, OWN)
    assert content(tmp_path / "model") == OLD and len(list(tmp_path.iterdir())) == 1


def test_a_swap_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    make_old(tmp_path / "model")
    with pytest.raises(OSError):
        swap_folder(tmp_path / "never written", tmp_path / "model", OWN)
    assert content(tmp_path / "model") == OLD and len(list(tmp_path.iterdir())) == 1


def test_a_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError):
        write_whole_folder(tmp_path / "model", lambda path: fill(path, "new"), OWN)
    assert (tmp_path / "model").read_text(encoding="utf-8") == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ("n" * 255, "二" * 85, "a.b c", ".hidden"), ids=("long", "wide", "dots", "hidden"))
def test_names_may_be_as_long_as_the_disk_allows(tmp_path: Path, name: str) -> None:
    for text in ("one", "two"):
        write_whole_folder(tmp_path / name, lambda path, text=text: fill(path, text), OWN)
        assert content(tmp_path / name)["weights"] == text
    assert [path.name for path in tmp_path.iterdir()] == [name]


# Ends a process just before the step with a number: each step that changes a folder or opens a file counts.
KILLED_AT_EVERY_STEP = """
import os, shutil, sys
from pathlib import Path
from library.core.whole_folder import folders_aside, remove_left_over_folders, write_whole_folder
from tests.core.test_whole_folder import NEW, OLD, OWN, content, fill, make_old

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}


def killed_at(number, action):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    left = [number]

    def step(event, _arguments):
        if event in STEPS:
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)

    sys.addaudithook(step)
    action()
    os._exit(0)


def good(top):
    there = [path for path in (top / "model", *folders_aside(top)) if path.is_dir()]
    assert len(there) == 1, there
    found = content(there[0])
    # somebody else's file may still be on its way; it is never lost
    assert any(path.name == "notes.txt" for path in top.rglob("*"))
    found.setdefault("notes.txt", "mine")
    assert found in (NEW, OLD), found
    return found


top, ends, number = Path(sys.argv[1]), [], 0
while True:
    number += 1
    case = top / str(number)
    case.mkdir()
    make_old(case / "model")
    was_killed = killed_at(number, lambda: write_whole_folder(case / "model", lambda p: fill(p, "new"), OWN))
    found, tidied = good(case), -number % 2
    while was_killed:
        tidied += 2 if any(case.glob(".tmp-*.old")) else 1000  # there it matters where tidying is killed
        copy = case.with_name("copy")
        shutil.copytree(case, copy)
        tidying_was_killed = killed_at(tidied, lambda: remove_left_over_folders(copy))
        assert good(copy) == found
        remove_left_over_folders(copy)
        assert [path.name for path in copy.iterdir()] == ["model"] and content(copy / "model") == found
        shutil.rmtree(copy)
        if not tidying_was_killed:
            break
    ends.append("new" if found == NEW else "old")
    if not was_killed:
        break
print(" ".join(ends))
"""


@pytest.mark.skipif(os.name == "nt", reason="processes are not forked there")
def test_wherever_writing_or_tidying_is_killed_one_whole_folder_is_there(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ends = result.stdout.split()
    assert ends == sorted(ends, reverse=True) and ends.count("old") > 10 and ends.count("new") > 3


def test_what_lives_or_is_not_ours_is_not_tidied_away(tmp_path: Path) -> None:
    names: list[str] = []

    def write(folder: Path) -> None:
        names.append(folder.name)
        assert remove_left_over_folders(tmp_path) == 0
        fill(folder, "new")

    write_whole_folder(tmp_path / "model", write, OWN)
    (mine,) = names
    elsewhere = mine.replace(mine.split("-")[2], "0" * 8)
    kept = [mine, elsewhere, mine.replace(".new", ".png"), ".tmp-1.new", "a.new", f"a{mine}"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f"{mine.removesuffix('.new')}.file.new").write_text("mine", encoding="utf-8")
    assert remove_left_over_folders(tmp_path) == 0 and all((tmp_path / name).is_dir() for name in kept)
    os.utime(tmp_path / elsewhere, (1, 1))
    assert remove_left_over_folders(tmp_path) == 1 and not (tmp_path / elsewhere).exists()
    assert remove_left_over_folders(tmp_path / "nowhere") == 0 and folders_aside(tmp_path / "nowhere") == []
