"""Which pictures get a text: found without opening one, and every mistake told at once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from library.captioning.texts_there import holds_text
from library.captioning.work import Target, Targets, TextKind, Work, find_work, text_name, threads_of
from library.core.errors import UserError
from library.data.captions.caption_files import read_caption
from library.options.captioning import FolderOptions
from tests.captioning.colour_describer import make_pictures

TAGS = "1girl, solo, long_hair, looking_at_viewer"
CAPTION = "a girl with long hair sits on the grass"


def options(*folders: Path, recursive: bool = False, overwrite: bool = False) -> FolderOptions:
    return FolderOptions(tuple(map(str, folders)), recursive, overwrite)


def names(targets: object) -> list[str]:
    assert isinstance(targets, Targets)
    return [target.picture.name for target in targets]


def complaint(folders: FolderOptions, extension: str = ".txt", kind: TextKind = TextKind.TAGS) -> UserError:
    with pytest.raises(UserError) as raised:
        find_work(folders, extension, kind)
    return raised.value


def texts(folder: Path, ending: str, *lines: str) -> Path:
    """Pictures a.png, b.png, … with a text each."""
    letters = [chr(ord("a") + number) for number in range(len(lines))]
    make_pictures(folder, [f"{letter}.png" for letter in letters])
    for letter, line in zip(letters, lines, strict=True):
        (folder / f"{letter}{ending}").write_text(f"{line}\n", encoding="utf-8")
    return folder


# --- what is found ----------------------------------------------------------------------------------------------------


def test_pictures_without_a_text_are_to_do_in_the_order_of_their_names(tmp_path: Path) -> None:
    make_pictures(tmp_path, ["b.png", "Z.jpg", "猫.webp", "a.v2.png", "c.png", ".hidden.png"])
    (tmp_path / "c.txt").write_text("cat\n")
    (tmp_path / "notes.txt").write_text(CAPTION)
    work = find_work(options(tmp_path), ".txt", TextKind.TAGS)
    assert names(work.todo) == ["Z.jpg", "a.v2.png", "b.png", "猫.webp"] and names(work.kept) == ["c.png"]
    assert work.todo[-1] == Target(tmp_path / "猫.webp", tmp_path / "猫.txt")
    assert [target.file.name for target in work.todo] == ["Z.txt", "a.v2.txt", "b.txt", "猫.txt"]
    assert not work.overwrites and not work.appends


def test_overwriting_and_appending_leave_nothing_out(tmp_path: Path) -> None:
    texts(tmp_path, ".txt", "x", "y")
    work = find_work(options(tmp_path, overwrite=True), ".txt", TextKind.TAGS)
    assert (names(work.todo), len(work.kept), work.overwrites) == (["a.png", "b.png"], 0, True)
    work = find_work(options(tmp_path), ".txt", TextKind.TAGS, appends=True)
    assert (names(work.todo), len(work.kept), work.appends) == (["a.png", "b.png"], 0, True)


def test_several_folders_come_one_after_the_other_and_each_once(tmp_path: Path) -> None:
    first, second = tmp_path / "二", tmp_path / "一"
    make_pictures(first, ["x.png"])
    make_pictures(second, ["y.png", "a.png"])
    (tmp_path / "link").symlink_to(second)
    again = Path(os.path.relpath(first))
    work = find_work(options(first, second, again, first, tmp_path / "link"), ".txt", TextKind.TAGS)
    assert [target.picture for target in work.todo] == [first / "x.png", second / "a.png", second / "y.png"]


def test_recursive_takes_folders_below_sorted_but_hidden_ones_and_no_circle(tmp_path: Path) -> None:
    make_pictures(tmp_path, ["m.png"])
    for name in ("b", "a/deep", "a", ".git", "Ä"):
        make_pictures(tmp_path / name, ["p.png"])
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to("z")
    work = find_work(options(tmp_path, tmp_path / "b", recursive=True), ".txt", TextKind.TAGS)
    found = [target.picture.relative_to(tmp_path).as_posix() for target in work.todo]
    assert found == ["m.png", "a/p.png", "a/deep/p.png", "b/p.png", "Ä/p.png"]
    assert names(find_work(options(tmp_path), ".txt", TextKind.TAGS).todo) == ["m.png"]


def test_a_folder_whose_pictures_were_taken_under_another_name_is_not_empty(tmp_path: Path) -> None:
    make_pictures(tmp_path / "all" / "one", ["p.png"])
    work = find_work(options(tmp_path / "all" / "one", tmp_path / "all", recursive=True), ".txt", TextKind.TAGS)
    assert len(work.todo) == 1


def test_a_text_that_is_a_folder_or_a_link_to_nothing_does_not_count_as_there(tmp_path: Path) -> None:
    make_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    assert names(find_work(options(tmp_path), ".txt", TextKind.TAGS).todo) == ["a.png", "b.png"]


@pytest.mark.parametrize("nothing", ["", "\n", " \r\n\t\r\n", "\ufeff\n"])
def test_a_text_with_nothing_to_read_does_not_count_as_there(tmp_path: Path, nothing: str) -> None:
    texts(tmp_path, ".txt", "cat", "x", "y")
    (tmp_path / "b.txt").write_bytes(nothing.encode())
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")  # no UTF-8: training tells of it
    work = find_work(options(tmp_path), ".txt", TextKind.TAGS)
    assert names(work.todo) == ["b.png"] and names(work.kept) == ["a.png", "c.png"]
    has = [read_caption(tmp_path / f"{stem}.txt", whole=True) is not None for stem in "ab"]  # what training says
    assert has == [holds_text(tmp_path / f"{stem}.txt") for stem in "ab"] == [True, False]


def test_left_overs_of_killed_runs_go(tmp_path: Path) -> None:
    make_pictures(tmp_path, ["a.png"])
    dead = subprocess.run(
        [sys.executable, "-c", "from library.core.atomic_io import temporary_name\nprint(temporary_name('.txt'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (tmp_path / dead).write_text("half")
    find_work(options(tmp_path), ".tags.txt", TextKind.TAGS)  # their temporary files end on .txt as well
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_what_is_found_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts(tmp_path, ".caption", CAPTION, CAPTION)
    make_pictures(tmp_path, ["c.png", "d.gif", "e\x1b.gif", "f.tiff"])
    with caplog.at_level(logging.INFO):
        find_work(options(tmp_path), ".txt", TextKind.TAGS)
    assert "pictures: 3, of them 3 to do, 0 have their .txt" in caplog.text
    assert "2 pictures are left out (GIF is not read" in caplog.text and "e\\x1b.gif" in caplog.text
    assert "1 pictures are left out (TIFF is not read" in caplog.text
    assert caplog.text.count("2 pictures will have .txt and .caption files") == 1


def test_what_becomes_of_texts_that_are_there_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts(tmp_path, ".txt", "x", "y")
    make_pictures(tmp_path, ["c.png"])
    with caplog.at_level(logging.INFO):
        find_work(options(tmp_path), ".txt", TextKind.TAGS)
        find_work(options(tmp_path, overwrite=True), ".txt", TextKind.TAGS)
        find_work(options(tmp_path), ".txt", TextKind.TAGS, appends=True)
    assert "3, of them 1 to do, 2 have their .txt (these stay)" in caplog.text
    assert "3, of them 3 to do, 2 have their .txt (these are overwritten)" in caplog.text
    assert "3, of them 3 to do, 2 have their .txt (these get more)" in caplog.text


def test_threads_are_those_asked_for_and_at_least_one() -> None:
    assert threads_of(FolderOptions(max_data_loader_n_workers=5)) == 5
    assert threads_of(FolderOptions()) == max(1, min(8, (os.cpu_count() or 1) - 1))


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    good, empty, file = tmp_path / "good", tmp_path / "empty", tmp_path / "file.png"
    make_pictures(good, ["a.png", "a.jpg", "B.png", "b.webp"])
    empty.mkdir()
    make_pictures(tmp_path, ["file.png"])
    make_pictures(tmp_path / "upper" / "lower", ["x.png"])
    error = complaint(options(tmp_path / "gone", empty, good, file, tmp_path / "upper"))
    told = str(error)
    assert len(error.problems) == 5
    assert "the folder does not exist" in told and "no pictures in this folder" in told
    assert "this is a file" in told and "it holds the folders lower" in told and "--recursive" in told
    assert "share one .txt" in told and "B.png and b.webp" in told


def test_only_names_that_a_disk_takes_for_one_share_a_text(tmp_path: Path) -> None:
    pictures = ["Straße.jpg", "Strasse.png", "ılık.png", "ilik.jpg", "ﬁsch.png", "fisch.jpg"]
    make_pictures(tmp_path, pictures)
    assert len(find_work(options(tmp_path), ".txt", TextKind.TAGS).todo) == len(pictures)
    make_pictures(tmp_path, ["Äpfel.jpg", "äPFEL.png"])
    assert "Äpfel.jpg and äPFEL.png" in str(complaint(options(tmp_path)))


@pytest.mark.skipif(os.name == "nt", reason="names are counted otherwise")
def test_names_that_are_too_long_with_the_ending_are_told(tmp_path: Path) -> None:
    make_pictures(tmp_path, [f"{'猫' * 83}.png", f"{'x' * 251}.png"])
    assert len(find_work(options(tmp_path), ".txt", TextKind.TAGS).todo) == 2
    told = str(complaint(options(tmp_path), ".caption", TextKind.CAPTION))
    assert "猫猫" in told and "xxx" in told and "shorten these names" in told
    (tmp_path / f"{'x' * 251}.png").unlink()
    assert len(find_work(options(tmp_path), ".capt", TextKind.CAPTION).todo) == 1


def test_a_name_that_is_empty_is_not_the_folder_one_is_in() -> None:
    assert "a folder without a name" in str(complaint(FolderOptions(("",))))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="rights mean nothing to root")
def test_a_folder_that_cannot_be_written_to_is_told_unless_nothing_is_to_be_written(tmp_path: Path) -> None:
    texts(tmp_path, ".txt", "x")
    tmp_path.chmod(0o500)
    try:
        assert len(find_work(options(tmp_path), ".txt", TextKind.TAGS).kept) == 1
        assert "no file can be written here" in str(complaint(options(tmp_path, overwrite=True)))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("extension", "said"),
    [
        ("txt", "give .txt"),
        (".", "no file name"),
        (".a/b", "no file name"),
        (".a\\b", "no file name"),
        (".txt ", "no file name"),
        (".t\nt", "no file name"),
        (".png", "no captions"),
        (".x.JPG", "no captions"),
        (".npz", "no captions"),
        (".json", "no captions"),
        (".toml", "no captions"),
        (".Safetensors", "no captions"),
        (".gif", "no captions"),
    ],
)
def test_endings_that_would_do_harm_are_refused(tmp_path: Path, extension: str, said: str) -> None:
    make_pictures(tmp_path, ["a.png"])
    error = complaint(options(tmp_path), extension)
    assert said in str(error) and "--caption_extension" in str(error)


# --- texts of the other kind (PRE-06) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_captions_are_not_written_where_tags_lie_nor_tags_where_captions_lie(tmp_path: Path, overwrite: bool) -> None:
    tagged, captioned = tmp_path / "tagged", tmp_path / "captioned"
    texts(tagged, ".txt", TAGS, TAGS, CAPTION)
    texts(captioned, ".caption", CAPTION, CAPTION, TAGS)
    error = complaint(options(tagged, overwrite=overwrite), ".txt", TextKind.CAPTION)
    assert "hold tags" in str(error) and "1girl" in str(error) and "--caption_extension .caption" in str(error)
    error = complaint(options(captioned, overwrite=overwrite), ".caption", TextKind.TAGS)
    assert "hold captions" in str(error) and CAPTION in str(error) and "--caption_extension .txt" in str(error)
    assert len(find_work(options(tagged), ".caption", TextKind.CAPTION).todo) == 3
    assert len(find_work(options(captioned), ".txt", TextKind.TAGS).todo) == 3


def test_each_folder_is_judged_by_itself(tmp_path: Path) -> None:
    written = "a photo of ohwx man standing in the rain"
    texts(tmp_path / "by_hand", ".txt", *[written] * 6)
    texts(tmp_path / "tags", ".txt", *[TAGS] * 10)
    both = tmp_path / "tags", tmp_path / "by_hand"
    for overwrite in (False, True):
        error = complaint(options(*both, overwrite=overwrite))
        assert f'{tmp_path / "by_hand" / "a.txt"} says "{written}"' in str(error) and len(error.problems) == 1
        assert "and 3 more" in str(error) and "1girl" not in str(error)
    assert len(find_work(options(both[0], overwrite=True), ".txt", TextKind.TAGS).todo) == 10


def test_folders_of_one_text_each_are_judged_together(tmp_path: Path) -> None:
    folders = [texts(tmp_path / name, ".txt", CAPTION) for name in "abc"]
    assert "hold captions" in str(complaint(options(*folders)))


@pytest.mark.parametrize(
    ("kind", "others", "text", "lost"),
    [
        (TextKind.TAGS, TAGS, "1girl", "photo of sks person"),
        (TextKind.TAGS, TAGS, "solo", "A close-up photograph of a woman, red dress, bokeh"),
        (TextKind.CAPTION, CAPTION, "a cat, close up", "1girl, long hair"),
    ],
)
def test_no_text_of_the_other_kind_is_overwritten(
    tmp_path: Path, kind: TextKind, others: str, text: str, lost: str
) -> None:
    count = 120  # more than a sample
    for number in range(count):
        (tmp_path / f"{number:03}.png").touch()
        (tmp_path / f"{number:03}.txt").write_text(others)
    (tmp_path / "033.txt").write_text(lost)
    (tmp_path / "077.txt").write_text(text)
    assert len(find_work(options(tmp_path, overwrite=True), ".txt", kind).todo) == count  # one may be a model's
    (tmp_path / "077.txt").write_text(f"\r\n{lost}")
    told = str(complaint(options(tmp_path, overwrite=True), ".txt", kind))
    assert "2 files that would be overwritten" in told and "077.txt" in told and lost in told
    assert "--overwrite" in told and "delete them" in told
    assert len(find_work(options(tmp_path), ".txt", kind).kept) == count  # nothing is lost there


def test_files_of_the_same_kind_and_files_that_are_half_and_half_are_let_pass(tmp_path: Path) -> None:
    texts(tmp_path / "tags", ".txt", TAGS, TAGS)
    assert len(find_work(options(tmp_path / "tags"), ".txt", TextKind.TAGS).kept) == 2
    texts(tmp_path / "half", ".txt", TAGS, TAGS, CAPTION, CAPTION)
    for kind in TextKind:
        assert len(find_work(options(tmp_path / "half"), ".txt", kind).kept) == 4
    texts(tmp_path / "one", ".txt", TAGS)
    assert len(find_work(options(tmp_path / "one"), ".txt", TextKind.CAPTION).kept) == 1


def test_tags_may_be_added_behind_captions(tmp_path: Path) -> None:
    texts(tmp_path, ".txt", CAPTION, CAPTION)
    assert len(find_work(options(tmp_path), ".txt", TextKind.TAGS, appends=True).todo) == 2


def test_files_that_belong_to_no_picture_say_nothing(tmp_path: Path) -> None:
    make_pictures(tmp_path, ["a.png"])
    for number in range(5):
        (tmp_path / f"tags{number}.txt").write_text(TAGS)
    assert len(find_work(options(tmp_path), ".txt", TextKind.CAPTION).todo) == 1


def test_a_sample_over_all_folders_is_read_of_many_files(tmp_path: Path) -> None:
    for number in range(120):
        lines = TAGS if number >= 20 else CAPTION
        (tmp_path / f"{number:03}.txt").write_text(lines)
        (tmp_path / f"{number:03}.png").touch()
    assert "hold tags" in str(complaint(options(tmp_path), ".txt", TextKind.CAPTION))


def test_files_that_are_no_text_do_not_stop_the_check(tmp_path: Path) -> None:
    texts(tmp_path, ".txt", TAGS, TAGS, TAGS)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\0\0" * 5000)
    assert "hold tags" in str(complaint(options(tmp_path), ".txt", TextKind.CAPTION))


# --- size -------------------------------------------------------------------------------------------------------------


def test_targets_behave_as_a_sequence(tmp_path: Path) -> None:
    targets = Targets(".txt")
    targets.add(tmp_path / "a", ["1.png", "2.png"])
    targets.add(tmp_path / "b", [])
    targets.add(tmp_path / "c", ["3.png"])
    assert len(targets) == 3 and targets.folders == [tmp_path / "a", tmp_path / "c"]
    assert [targets[0], targets[1], targets[2]] == list(targets) == list(targets[:]) == [*targets[:2], targets[-1]]
    with pytest.raises(IndexError):
        targets[3]
    assert isinstance(Work(targets, []).todo[0], Target) and text_name("no_ending", ".txt") == "no_ending.txt"


def test_a_picture_to_do_takes_little_memory(tmp_path: Path) -> None:
    count = 1000
    for number in range(count):
        (tmp_path / f"picture_{number:07d}.jpg").touch()
    find_work(options(tmp_path), ".txt", TextKind.TAGS)
    tracemalloc.start()
    work = find_work(options(tmp_path), ".txt", TextKind.TAGS)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(work.todo) == count and held / count < 130  # bytes: 130 MB for a million
