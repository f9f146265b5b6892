from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from library.checkpoint.hub_client import Repository
from library.checkpoint.upload_queue import UploadPlace, UploadQueue, queue_folder, waiting_sizes

REPO = Repository("owner/name")


def place(name: str, **more: bool) -> UploadPlace:
    return UploadPlace(REPO, False, name, **more)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def names(queue: UploadQueue) -> list[str]:
    return [entry.place.name for entry in queue.entries()]


def test_the_queue_is_hidden_beside_the_files_of_the_run(tmp_path: Path) -> None:
    assert queue_folder(tmp_path, "style") == tmp_path / ".style-uploads"
    assert queue_folder(tmp_path, None) == tmp_path / ".last-uploads"


def test_what_is_queued_outlives_its_original_and_the_process(tmp_path: Path) -> None:
    folder = queue_folder(tmp_path, "x")
    first, second = write(tmp_path / "a.bin", "one"), tmp_path / "m-state"
    write(second / "manifest.json", "{}"), write(second / "deep" / "ä.bin", "two")
    queue = UploadQueue(folder)
    queue.add(first, UploadPlace(Repository("owner/other", "dataset"), True, "sub/a.bin"))
    queue.add(second, place("m-state", is_set=True))
    first.unlink()
    shutil.rmtree(second)

    again = UploadQueue(folder)
    assert again.entries() == queue.entries()
    file, state = again.entries()
    assert file.place == UploadPlace(Repository("owner/other", "dataset"), True, "sub/a.bin", False)
    assert [(f.path_in_repo, f.stored.read_text(), f.size) for f in file.files] == [("sub/a.bin", "one", 3)]
    contents = {f.path_in_repo: f.stored.read_text() for f in state.files}
    assert contents == {"m-state/deep/ä.bin": "two", "m-state/manifest.json": "{}"}
    assert state.size == 5 and state.place.is_set


def test_the_room_that_waiting_files_take_is_told_for_each_queue(tmp_path: Path) -> None:
    assert waiting_sizes(tmp_path) == {} == waiting_sizes(tmp_path / "absent")
    queue = UploadQueue(queue_folder(tmp_path, "x"))
    entry = queue.add(write(tmp_path / "a", "abc"), place("a"))
    queue.add(write(tmp_path / "b-state" / "b", "ab").parent, place("b-state", is_set=True))
    shutil.rmtree(tmp_path / "b-state")
    (queue_folder(tmp_path, "empty")).mkdir()
    assert waiting_sizes(tmp_path) == {queue.folder: 5}
    assert queue.folder_of(entry) == queue.folder / "00000001"


def test_files_are_linked_not_copied(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", "content")
    (entry,) = [UploadQueue(tmp_path / "q").add(path, place("a.bin"))]
    assert entry.files[0].stored.samefile(path)


def test_files_are_copied_where_there_are_no_links(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("no second file system that can be written to")
    queue = UploadQueue(memory / f"sd-atelier-test-{os.getpid()}")
    try:
        path = write(tmp_path / "a.bin", "content")
        entry = queue.add(path, place("a.bin"))
        path.unlink()
        assert entry.files[0].stored.read_text() == "content"
    finally:
        shutil.rmtree(queue.folder, ignore_errors=True)


def test_a_newer_file_of_the_same_place_takes_the_turn_of_the_end(tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path / "q")
    for name, text in (("a", "old"), ("b", "b"), ("a", "new")):
        queue.add(write(tmp_path / name, text), place(name))
        (tmp_path / name).unlink()
    queue.add(write(tmp_path / "a", "elsewhere"), UploadPlace(Repository("owner/other"), False, "a"))
    assert names(queue) == ["b", "a", "a"]
    assert [entry.files[0].stored.read_text() for entry in queue.entries()] == ["b", "new", "elsewhere"]
    assert names(UploadQueue(queue.folder)) == ["b", "a", "a"]


def test_what_is_being_uploaded_stays_until_it_is_over(tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path / "q")
    path = write(tmp_path / "a", "old")
    old = queue.add(path, place("a"))
    assert queue.begin(old)
    path.unlink()
    new = queue.add(write(path, "new"), place("a"))
    assert old.files[0].stored.read_text() == "old"
    queue.end(old, is_uploaded=False)  # it need not be tried again: a newer one waits
    assert queue.entries() == [new] and not queue.begin(old)
    assert not old.files[0].stored.exists()


def test_an_empty_queue_leaves_nothing_behind(tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path / "q")
    entry = queue.add(write(tmp_path / "a", "a"), place("a"))
    queue.end(entry, is_uploaded=True)
    assert not queue.folder.exists()
    # a later entry is not taken for the earlier one
    assert queue.add(tmp_path / "a", place("a")).number > entry.number


def test_what_could_not_be_queued_leaves_nothing_behind(tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path / "q")
    with pytest.raises(OSError):
        queue.add(tmp_path / "absent", place("a"))
    assert queue.entries() == [] == UploadQueue(queue.folder).entries()
    assert list(queue.folder.iterdir()) == []


def test_half_made_entries_are_no_entries_and_go_in_time(tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path / "q")
    entry = queue.add(write(tmp_path / "a", "a"), place("a"))
    young, old = queue.folder / "00000007", queue.folder / "00000008"
    for folder in (young, old):
        write(folder / "0", "half")
    os.utime(old, (0, 0))
    again = UploadQueue(queue.folder)
    assert again.entries() == [entry]
    assert young.exists() and not old.exists()  # another run may be at the young one


@pytest.mark.parametrize("text", ("", "{}", "[]", '{"format": 2}', '{"format": 1, "files": 3}'))
def test_an_entry_that_cannot_be_read_is_told_and_kept(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = UploadQueue(tmp_path / "q")
    entry = queue.add(write(tmp_path / "a", "a"), place("a"))
    described = queue.folder / f"{entry.number:08d}" / "entry.json"
    described.write_text(text)
    again = UploadQueue(queue.folder)
    assert again.entries() == []
    assert "cannot be read" in caplog.text and str(described) in caplog.text
    # its number is not taken by another
    assert again.add(tmp_path / "a", place("b")).number == 2
    assert entry.files[0].stored.exists()


def test_the_description_is_plain(tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path / "q")
    queue.add(write(tmp_path / "a", "abc"), place("sub/a", is_set=False))
    assert json.loads((queue.folder / "00000001" / "entry.json").read_text()) == {
        "format": 1,
        "repo_id": "owner/name",
        "repo_type": "model",
        "is_public": False,
        "name": "sub/a",
        "is_set": False,
        "files": [{"path": "sub/a", "size": 3}],
    }
