"""library/data/pictures/folders.py: what lies in folders, each place once, and every mistake told."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from library.core.errors import Problems
from library.data.pictures.folders import Listing, by_reason, list_folders, real_place

ROOT = Path(__file__).resolve().parents[3]


def put(top: Path, *names: str) -> Path:
    """Empty files; nothing here opens a picture."""
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    return top


def listed(*named: Path | str, recursive: bool = True, endings: Sequence[str] = ()) -> list[Listing]:
    problems = Problems()
    found = list(list_folders(map(str, named), recursive, problems, endings))
    assert not problems, list(problems)
    return found


def pictures(listings: Sequence[Listing], top: Path) -> list[str]:
    return [(listing.folder / name).relative_to(top).as_posix() for listing in listings for name in listing.pictures]


def complaints(*named: Path | str, recursive: bool = False) -> list[tuple[str, str, str]]:
    problems = Problems()
    list(list_folders(map(str, named), recursive, problems))
    return [(problem.what, problem.where, problem.fix) for problem in problems]


# --- one folder -------------------------------------------------------------------------------------------------------


def test_everything_in_a_folder_is_sorted_into_its_kind(tmp_path: Path) -> None:
    put(
        tmp_path, "猫.PNG", "b.jpg", "Z.webp", "m.HEIC", "g.gif", "b.txt", "n.md", "o.md", "LICENSE", ".a.png", ".t.txt"
    )
    put(tmp_path, "b.png/x", "a.gif/x", "c.txt/x", ".git/x")
    (tmp_path / "gone.jpg").symlink_to("nothing")
    (tmp_path / "gone.txt").symlink_to("nothing")
    (tmp_path / "round.txt").symlink_to("round.txt")
    (tmp_path / "good.txt").symlink_to("b.txt")
    (tmp_path / "link").symlink_to("c.txt")
    (listing,) = listed(tmp_path, recursive=False, endings=(".txt", ".caption"))
    assert (listing.top, listing.folder) == (str(tmp_path), tmp_path)
    assert listing.pictures == ["Z.webp", "b.jpg", "gone.jpg", "猫.PNG"] and listing.unread == ["g.gif", "m.HEIC"]
    assert set(listing.files) == {"b.txt", "gone.txt", "round.txt", "good.txt"}
    assert set(listing.broken) == {"gone.txt", "round.txt"}
    assert listing.endings == {".md": 2, "": 1}
    assert listing.below == ["a.gif", "b.png", "c.txt"] and listing.links == ["link"]


def test_all_other_files_are_listed_where_that_is_asked(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "a.txt", "a.gif", "LICENSE", ".hidden")
    (listing,) = listed(tmp_path, endings=("",))
    assert set(listing.files) == {"a.txt", "LICENSE"} and not listing.endings
    (listing,) = listed(tmp_path)
    assert not listing.files and listing.endings == {".txt": 1, "": 1}


def test_pictures_that_are_not_read_are_told_in_a_line_for_each_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "a.png", *(f"{number}.gif" for number in range(5)), "t\x1b.tiff", "x/b.png", "x/c.heic", "y/d.png")
    with caplog.at_level(logging.INFO):
        listed(tmp_path)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(
        f"{tmp_path}: 5 pictures are left out (GIF is not read; convert it to PNG or JPEG): 0.gif, "
    )
    assert "2.gif and 2 more; 1 pictures are left out (TIFF is not read" in first and first.endswith("t\\x1b.tiff")
    assert second.startswith(f"{tmp_path / 'x'}: 1 pictures are left out (HEIC")
    assert list(by_reason(["b.gif", "a.tif", "a.GIF"]).values()) == [["b.gif", "a.GIF"], ["a.tif"]]


# --- several folders --------------------------------------------------------------------------------------------------


def test_folders_below_come_behind_their_parents_by_code_point_but_hidden_ones(tmp_path: Path) -> None:
    put(tmp_path, "m.png", "b/p.png", "a/deep/p.png", "a/p.png", "Ä/p.png", "Z/p.png", "a-b/p.png", ".git/p.png")
    found = listed(tmp_path)
    expected = ["m.png", "Z/p.png", "a/p.png", "a/deep/p.png", "a-b/p.png", "b/p.png", "Ä/p.png"]
    assert pictures(found, tmp_path) == expected
    assert pictures(listed(tmp_path, recursive=False), tmp_path) == ["m.png"]
    put(tmp_path, ".git/x/q.png")
    assert pictures(listed(tmp_path / ".git"), tmp_path) == [".git/p.png", ".git/x/q.png"]  # named, and so meant


def test_real_folders_are_taken_before_links_to_them(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", "o.png", "in/i.png")
    top = put(tmp_path / "top", "sub/a/p.png", "sub/a/z/q.png")
    (top / "link").symlink_to("sub")
    (top / "sub" / "a" / "again").symlink_to("../../sub/a/z")
    (top / "sub" / "circle").symlink_to(top)
    (top / "away").symlink_to(outside)
    (outside / "back").symlink_to(top / "sub")
    (outside / "in" / "self").symlink_to("self")
    found = pictures(listed(top), top)
    assert found == ["sub/a/p.png", "sub/a/z/q.png", "away/o.png", "away/in/i.png"]


def test_each_place_counts_once_in_the_order_in_which_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "二/x.png", "一/y.png", "一/a/z.png")
    (tmp_path / "link").symlink_to("一")
    monkeypatch.chdir(tmp_path)
    found = listed("二", "一/a", "一", "./二", "link", str(tmp_path / "二"), "一/../一/a")
    assert [(listing.top, *listing.pictures) for listing in found] == [
        ("二", "x.png"), ("一/a", "z.png"), ("一", "y.png")
    ]  # fmt: skip
    assert real_place(Path("link")) == real_place(tmp_path / "一") != real_place(Path("二"))


def test_a_folder_whose_pictures_were_taken_under_another_name_is_not_empty(tmp_path: Path) -> None:
    put(tmp_path, "all/one/p.png")
    assert pictures(listed(tmp_path / "all" / "one", tmp_path / "all"), tmp_path) == ["all/one/p.png"]
    assert len(complaints(tmp_path / "all", tmp_path / "all" / "one", recursive=False)) == 1


def test_folders_may_lie_deeper_than_the_stack_of_python(tmp_path: Path) -> None:
    depth, limit = 120, sys.getrecursionlimit()
    put(tmp_path, "d/" * depth + "p.png")
    sys.setrecursionlimit(len(inspect.stack()) + depth // 2)  # folders as deep as the real limit take long to make
    try:
        problems = Problems()
        found = list(list_folders([str(tmp_path)], True, problems))
    finally:
        sys.setrecursionlimit(limit)
    assert len(found) == depth + 1 and list(found[-1].pictures) == ["p.png"] and not problems


def test_each_folder_is_read_once() -> None:
    """In a process of its own: what watches the calls of Python cannot be taken away again."""
    program = """
import sys
from pathlib import Path
from library.core.errors import Problems
from library.data.pictures.folders import list_folders
top = Path(sys.argv[1])
read = []
sys.addaudithook(lambda event, args: read.append(event) if event in ("os.scandir", "os.listdir", "open") else None)
found = list(list_folders([str(top)], True, Problems(), (".txt",)))
print(len(found), *read)
"""
    with tempfile.TemporaryDirectory() as top:
        put(Path(top), "a.png", "a.txt", "a.gif", "x/b.png", "x/y/c.png", "z/n.txt")
        command = [sys.executable, "-c", program, top]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.split() == ["4", *["os.scandir"] * 4]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_folders_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path, "good/a.png", "file.png", "four/b/x.png", "four/a/x.png", "four/.h/x.png"))
    put(tmp_path, "four/d/x.png", "four/e/x.png", "texts/a.txt", "heic/a.heic")
    (tmp_path / "four" / "c").symlink_to("../good")
    accepted = "accepted are .png .jpg"
    told = complaints("gone", "good", "file.png", "four", "texts", " ", "heic")
    assert [(what, where, fix[: len(accepted)]) for what, where, fix in told] == [
        (f"the folder does not exist (looked for {tmp_path / 'gone'})", "gone", "check the path"),
        ("this is a file; a folder of pictures is expected", "file.png", "name the folder it lie"),
        ("no pictures directly in this folder; it holds the folders a, b, c and 2 more", "four", "give --recursive"),
        ("no pictures in this folder", "texts", accepted),
        ("a folder without a name", "DIR", "name a folder; . is th"),
        (
            "no pictures in this folder; 1 pictures are left out (HEIC is not read; convert it to PNG or JPEG): a.heic",
            "heic",
            accepted,
        ),
    ]
    put(tmp_path, "hollow/x/y/a.txt")
    assert complaints("hollow", recursive=True)[0][0] == "no pictures in this folder and those below"


@pytest.mark.skipif(os.name == "nt", reason="rights work otherwise there")
def test_folders_without_right_to_read_are_told_and_the_others_taken() -> None:
    """Also when the tests run as the administrator, who may read everything: for a moment they run as nobody."""
    with tempfile.TemporaryDirectory() as name:
        top = put(Path(name), "a/p.png", "b/p.png", "c/p.png", "only/shut/p.png")
        top.chmod(0o755)
        shut = (top / "b", top / "only" / "shut")
        for folder in shut:
            folder.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            problems = Problems()
            found = list(list_folders([name], True, problems))
            alone = complaints(top / "only", recursive=True)
        finally:
            os.seteuid(user)
            for folder in shut:
                folder.chmod(0o700)
    assert pictures(found, top) == ["a/p.png", "c/p.png"]
    assert [problem.where for problem in problems] == list(map(str, shut))
    assert [what for what, _, _ in alone] == ["cannot read the folder: Permission denied"]
