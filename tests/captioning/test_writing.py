"""Texts that cannot be written: a picture's own trouble is told at the end, the disk's ends the run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.captioning.runner import run
from library.captioning.work import Targets, TextKind, Work, find_work
from library.core.errors import EXIT_INCOMPLETE
from library.options.captioning import FolderOptions
from tests.captioning.colour_describer import ColourDescriber, make_pictures
from tests.training.runs import environment

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import resource, sys, time
from library.captioning.runner import run, tell
from library.captioning.work import TextKind, find_work
from library.core.errors import run_script
from library.core.log import start_logging
from library.options.captioning import FolderOptions
from tests.captioning.colour_describer import ColourDescriber

class Describer(ColourDescriber):
    def describe(self, pictures, paths):
        if len(self.batches) == 40:  # from here the system takes no byte more
            while not list(paths[0].parent.glob("[0-9]*.txt")):
                time.sleep(0.001)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        return super().describe(pictures, paths)

def main():
    start_logging()
    tell(run(find_work(FolderOptions((sys.argv[1],)), ".txt", TextKind.TAGS), Describer(), 3, 2))

sys.exit(run_script(main))
"""


def work_in(folder: Path) -> Work:
    return find_work(FolderOptions((str(folder),)), ".txt", TextKind.TAGS)


def texts_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".png")


def numbered(count: int) -> list[str]:
    return [f"{number:03}.png" for number in range(count)]


def test_one_text_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(12))
    for number in (2, 5, 6, 9, 11):
        (tmp_path / f"{number:03}.txt").mkdir()
    outcome = run(work_in(tmp_path), ColourDescriber(), 2, 1)
    assert (outcome.written, len(outcome.failed)) == (7, 5)
    assert outcome.failed[0].where == str(tmp_path / "002.txt") and "cannot be written" in outcome.failed[0].what


def test_names_that_are_too_long_are_the_business_of_their_pictures(tmp_path: Path) -> None:
    long = [f"{letter * 250}.png" for letter in "bcdefgh"]  # more than it takes for the disk to be full
    make_pictures(tmp_path, ["a.png", *long, "i.png"])
    targets = Targets(".caption")
    targets.add(tmp_path, ["a.png", *long, "i.png"])
    outcome = run(Work(targets, ()), ColourDescriber(), 3, 2)
    assert (outcome.written, outcome.stopped, outcome.not_reached) == (2, None, 0)
    assert [problem.fix for problem in outcome.failed] == ["shorten the name of the picture"] * len(long)
    assert set(texts_in(tmp_path)) == {"a.caption", "i.caption"}


def test_many_texts_in_a_row_that_cannot_be_written_end_the_run(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(80))
    for number in range(1, 80):
        (tmp_path / f"{number:03}.txt").mkdir()
    outcome = run(work_in(tmp_path), ColourDescriber(), 2, 1)
    assert outcome.stopped is not None and "texts in a row could not be written" in outcome.stopped.what
    assert os.strerror(errno.EISDIR) in outcome.stopped.what
    assert outcome.written + len(outcome.failed) + outcome.not_reached == 80


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_disk_that_takes_no_more_ends_the_run_with_counts_and_all_that_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    make_pictures(folder, numbered(300))
    (folder / "002.png").write_text("<html>")
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(folder)]
    settings = {**environment(), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=settings, capture_output=True, text=True, encoding="utf-8")
    written = len(texts_in(folder))
    assert result.returncode == EXIT_INCOMPLETE and "Traceback" not in result.stderr, result.stderr
    assert 0 < written < 150 and f"written {written}, kept 0, failed {300 - written}" in result.stderr
    assert f"the run was stopped, but {300 - written} things could not be done" in result.stderr
    assert os.strerror(errno.EFBIG) in result.stderr and "texts in a row could not be written" in result.stderr
    assert f"{folder / '002.png'}: " in result.stderr and "more pictures: they got no new text" in result.stderr
    assert not list(folder.glob(".tmp-*"))
    assert run(work_in(folder), ColourDescriber(), 8, 2).written == 299 - written  # which goes on there
