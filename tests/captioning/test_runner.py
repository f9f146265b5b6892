"""Pictures through a describer: every picture gets its text or is told, whatever the others do."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.captioning.describer import Decoded
from library.captioning.reading import read_ahead
from library.captioning.runner import Outcome, run, tell
from library.captioning.work import Target, TextKind, Work, find_work
from library.core.errors import Incomplete, Problem, UserError, format_incomplete
from library.options.captioning import FolderOptions
from tests.captioning.colour_describer import ColourDescriber, make_pictures
from tests.training.runs import environment

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from library.captioning.runner import run, tell
from library.captioning.work import TextKind, find_work
from library.core.errors import run_script
from library.core.log import start_logging
from library.options.captioning import FolderOptions
from tests.captioning.colour_describer import ColourDescriber

def main():
    start_logging()
    tell(run(find_work(FolderOptions((sys.argv[1],)), ".txt", TextKind.TAGS), ColourDescriber(), 3, 2))

sys.exit(run_script(main))
"""


def work_in(*folders: Path, overwrite: bool = False, appends: bool = False) -> Work:
    return find_work(FolderOptions(tuple(map(str, folders)), overwrite=overwrite), ".txt", TextKind.TAGS, appends)


def texts_in(folder: Path) -> dict[str, str]:
    """By file, all that is no picture; so left-overs show, too."""
    pictures = (".png", ".jpg", ".webp")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in pictures)
    return {path.relative_to(folder).as_posix(): path.read_bytes().decode() for path in files}


def expected(folder: Path, name: str) -> str:
    with Image.open(folder / name) as picture:
        red, green, blue = (int(value) // 32 for value in np.asarray(picture.convert("RGB"))[0, 0])
    return f"colour {red} {green} {blue}\n"


def numbered(count: int) -> list[str]:
    return [f"{number:03}.png" for number in range(count)]


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size", "threads"), [(1, 1, 1), (7, 1, 3), (7, 3, 2), (6, 3, 1), (40, 8, 4)])
def test_every_picture_gets_its_text_in_batches_in_order(tmp_path: Path, count: int, size: int, threads: int) -> None:
    make_pictures(tmp_path, numbered(count))
    describer = ColourDescriber()
    outcome = run(work_in(tmp_path), describer, size, threads)
    assert (outcome.written, outcome.kept, list(outcome.failed)) == (count, 0, [])
    assert describer.batches == [numbered(count)[start : start + size] for start in range(0, count, size)]
    assert texts_in(tmp_path) == {f"{name[:-4]}.txt": expected(tmp_path, name) for name in numbered(count)}


def test_several_folders_and_names_of_all_scripts(tmp_path: Path) -> None:
    make_pictures(tmp_path / "写真", ["猫.png", "いぬ 1.png"])
    make_pictures(tmp_path / "b", ["ü'\".png", "x.y.png"])
    outcome = run(work_in(tmp_path / "写真", tmp_path / "b"), ColourDescriber(), 3, 2)
    assert outcome.written == 4
    assert set(texts_in(tmp_path)) == {"写真/猫.txt", "写真/いぬ 1.txt", "b/ü'\".txt", "b/x.y.txt"}


def test_a_second_run_keeps_all_and_overwriting_does_all_anew(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(4))
    run(work_in(tmp_path), ColourDescriber(), 2, 2)
    (tmp_path / "001.txt").write_text("mine\n")
    describer = ColourDescriber()
    assert run(work_in(tmp_path), describer, 2, 2) == Outcome(0, 4, ()) and not describer.batches
    assert texts_in(tmp_path)["001.txt"] == "mine\n"
    outcome = run(work_in(tmp_path, overwrite=True), ColourDescriber(), 2, 2)
    assert (outcome.written, outcome.kept) == (4, 0)
    assert texts_in(tmp_path)["001.txt"] == expected(tmp_path, "001.png")


@pytest.mark.parametrize("appends", [False, True])
def test_a_text_with_nothing_to_read_is_written(tmp_path: Path, appends: bool) -> None:
    make_pictures(tmp_path, numbered(3))
    (tmp_path / "000.txt").touch()
    (tmp_path / "001.txt").write_bytes(b"\xef\xbb\xbf \r\n")
    outcome = run(work_in(tmp_path, appends=appends), ColourDescriber(), 2, 2)
    assert (outcome.written, outcome.kept) == (3, 0)
    assert texts_in(tmp_path) == {f"{name[:-4]}.txt": expected(tmp_path, name) for name in numbered(3)}


class Meddling(ColourDescriber):
    """Another process writes a text for the first picture while this one describes it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        self._file.write_text("theirs\n")
        return super().describe(pictures, paths)


def test_a_text_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(2))
    outcome = run(work_in(tmp_path), Meddling(tmp_path / "000.txt"), 2, 1)
    assert (outcome.written, outcome.kept) == (1, 1) and texts_in(tmp_path)["000.txt"] == "theirs\n"
    outcome = run(work_in(tmp_path, overwrite=True), Meddling(tmp_path / "000.txt"), 2, 1)
    assert (outcome.written, outcome.kept) == (2, 0)


def test_texts_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(6))
    new = [expected(tmp_path, name).strip() for name in numbered(6)]
    old = {"001": "solo", "002": f"{new[2]}, solo", "003": "\ufeff first \r\nsecond\n", "004": "", "005": "\nsecond"}
    for stem, text in old.items():
        (tmp_path / f"{stem}.txt").write_bytes(text.encode())
    outcome = run(work_in(tmp_path, appends=True), ColourDescriber(), 2, 2)
    assert (outcome.written, outcome.kept, list(outcome.failed)) == (5, 1, [])
    after = texts_in(tmp_path)
    assert after == {
        "000.txt": f"{new[0]}\n",
        "001.txt": f"solo, {new[1]}\n",
        "002.txt": f"{new[2]}, solo",  # not even its end of line
        "003.txt": f"first, {new[3]}\nsecond\n",
        "004.txt": f"{new[4]}\n",
        "005.txt": f"{new[5]}\nsecond\n",
    }
    outcome = run(work_in(tmp_path, appends=True), ColourDescriber(), 2, 2)
    assert (outcome.written, outcome.kept) == (0, 6) and texts_in(tmp_path) == after


def test_an_old_text_that_cannot_be_read_is_told_and_stays(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(2))
    (tmp_path / "000.txt").write_bytes(b"caf\xe9")
    outcome = run(work_in(tmp_path, appends=True), ColourDescriber(), 2, 1)
    assert outcome.written == 1 and "not UTF-8" in outcome.failed[0].what
    assert (tmp_path / "000.txt").read_bytes() == b"caf\xe9"


class Saying(ColourDescriber):
    """Says the same of every picture."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        return [self._text for _ in pictures]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (" a cat\r\non a\u2028mat\n", "a cat on a mat\n"),
        ("red\x1b[31m \0cat\x85", "red [31m  cat\n"),
        ("half \ud83d", "half \ufffd\n"),
        ("猫", "猫\n"),
    ],
)
def test_a_text_is_one_line_without_control_characters(tmp_path: Path, said: str, written: str) -> None:
    make_pictures(tmp_path, ["a.png"])
    run(work_in(tmp_path), Saying(said), 1, 1)
    assert texts_in(tmp_path) == {"a.txt": written}


@pytest.mark.parametrize("said", ["", " \n\x1b "])
def test_an_empty_text_is_not_written_but_told(tmp_path: Path, said: str) -> None:
    make_pictures(tmp_path, numbered(2))
    outcome = run(work_in(tmp_path), Saying(said), 2, 1)
    assert texts_in(tmp_path) == {} and outcome.written == 0
    where = str(tmp_path / "001.png")
    assert outcome.failed[1] == Problem("nothing is to be said of it", where, "look at it")
    (tmp_path / "000.txt").write_text("old\n")
    outcome = run(work_in(tmp_path, appends=True), Saying(said), 2, 1)  # which has a text, and nothing is added
    assert (outcome.kept, len(outcome.failed)) == (1, 1)
    outcome = run(work_in(tmp_path, overwrite=True), Saying(said), 2, 1)
    assert texts_in(tmp_path) == {"000.txt": "old\n"} and len(outcome.failed) == 2
    said_of = ["nothing is to be said of it; the old text stays", "nothing is to be said of it"]
    assert [problem.what for problem in outcome.failed] == said_of


# --- bad pictures -----------------------------------------------------------------------------------------------------


def test_bad_pictures_are_told_in_order_and_the_others_done(tmp_path: Path, photos: Path) -> None:
    make_pictures(tmp_path, ["a.png", "c.png", "e.png", "g.png", "i.png"])
    (tmp_path / "b.jpg").write_bytes((photos / "cat.jpg").read_bytes()[:3000])
    (tmp_path / "d.jpg").write_text("<!DOCTYPE html><title>404</title>")
    (tmp_path / "f.png").touch()
    (tmp_path / "h.webp").symlink_to(tmp_path / "gone.webp")
    describer = ColourDescriber()
    outcome = run(work_in(tmp_path), describer, 2, 3)
    assert outcome.written == 5 and set(texts_in(tmp_path)) == {f"{letter}.txt" for letter in "acegi"}
    assert [Path(problem.where).name for problem in outcome.failed] == ["b.jpg", "d.jpg", "f.png", "h.webp"]
    assert "web page" in outcome.failed[1].what
    assert describer.batches == [["a.png", "c.png"], ["e.png", "g.png"], ["i.png"]]


class Surprised(ColourDescriber):
    """Its decoder fails on one picture in a way that nobody foresaw."""

    def read(self, path: Path) -> Decoded:
        if path.name == "001.png":
            raise ZeroDivisionError("no columns\nand more")
        return super().read(path)


def test_any_surprise_of_a_decoder_concerns_its_picture_alone(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(3))
    outcome = run(work_in(tmp_path), Surprised(), 3, 2)
    assert outcome.written == 2
    assert outcome.failed[0].what == "it cannot be read (ZeroDivisionError: no columns)"
    assert outcome.failed[0].where == str(tmp_path / "001.png")


# --- a model that fails -----------------------------------------------------------------------------------------------


class Failing(ColourDescriber):
    """Fails for some pictures, and for more at once than `most`."""

    def __init__(self, bad: Sequence[str] = (), most: int = 100, error: Exception | None = None) -> None:
        super().__init__()
        self.bad, self._most, self._error = set(bad), most, error or RuntimeError("bad\nin detail")
        self.calls = 0

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        self.calls += 1
        if len(pictures) > self._most:
            raise MemoryError("no room")
        if not self.bad.isdisjoint(path.name for path in paths):
            raise self._error
        return super().describe(pictures, paths)


def test_a_picture_that_the_model_cannot_take_does_not_take_others_with_it(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(9))
    describer = Failing(["004.png"])
    outcome = run(work_in(tmp_path), describer, 3, 2)
    assert outcome.written == 8 and "004.txt" not in texts_in(tmp_path)
    assert outcome.failed[0].what == "the model fails on it (RuntimeError: bad)"
    assert outcome.failed[0].where == str(tmp_path / "004.png")
    assert describer.batches[-1] == ["006.png", "007.png", "008.png"]  # which come together again


def test_what_a_describer_says_of_a_picture_is_told_as_it_says_it(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(8))
    describer = Failing(numbered(8), error=UserError.of("no numbers", "this one", "take it out"))
    outcome = run(work_in(tmp_path), describer, 2, 1)  # a user's mistake never stops the others
    assert outcome.failed == [Problem("no numbers", "this one", "take it out")] * 8


def test_a_batch_that_is_too_large_goes_one_by_one_from_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_pictures(tmp_path, numbered(10))
    describer = Failing(most=1)
    outcome = run(work_in(tmp_path), describer, 4, 2)
    assert (outcome.written, list(outcome.failed)) == (10, []) and describer.calls == 11
    assert caplog.text.count("cannot take 4 pictures at once") == 1 and "MemoryError: no room" in caplog.text


@pytest.mark.parametrize("size", [1, 4])
def test_a_broken_model_stops_the_run_with_its_error(tmp_path: Path, size: int) -> None:
    make_pictures(tmp_path, numbered(60))
    describer = Failing(numbered(60))
    with pytest.raises(RuntimeError, match="bad"):
        run(work_in(tmp_path), describer, size, 2)
    assert describer.calls < 10 and texts_in(tmp_path) == {}


def test_a_model_that_breaks_on_the_way_stops_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_pictures(tmp_path, numbered(80))
    describer = Failing(numbered(80)[3:])
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError, match="bad"):
        run(work_in(tmp_path), describer, 1, 2)
    assert describer.calls == 53 and len(texts_in(tmp_path)) == 3  # what was there is written
    assert "stopped: 3 texts were written; the same command goes on from there" in caplog.text


class Forgetful(ColourDescriber):
    """Loses the last picture of a batch."""

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        return super().describe(pictures, paths)[: max(1, len(pictures) - 1)]


def test_texts_never_come_to_the_wrong_picture(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(5))
    outcome = run(work_in(tmp_path), Forgetful(), 3, 1)
    assert outcome.written == 5
    assert texts_in(tmp_path) == {f"{name[:-4]}.txt": expected(tmp_path, name) for name in numbered(5)}


class Slow(ColourDescriber):
    """Takes its time, and looks what is there."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self.seen = folder, list[int]()

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        time.sleep(0.4)
        self.seen.append(len(list(self._folder.glob("[0-9]*.txt"))))
        return super().describe(pictures, paths)


def test_texts_of_a_slow_model_are_written_batch_by_batch(tmp_path: Path) -> None:
    make_pictures(tmp_path, numbered(6))
    describer = Slow(tmp_path)
    run(work_in(tmp_path), describer, 2, 1)
    assert describer.seen == [0, 2, 4]


# --- interrupted, killed ----------------------------------------------------------------------------------------------


class Interrupted(ColourDescriber):
    """Somebody presses Ctrl-C while it describes the third batch."""

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        if len(self.batches) == 2:
            signal.raise_signal(signal.SIGINT)
        return super().describe(pictures, paths)


def test_an_interrupt_lets_what_was_described_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_pictures(tmp_path, numbered(40))
    before = threading.active_count()
    with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
        run(work_in(tmp_path), Interrupted(), 3, 2)
    assert list(texts_in(tmp_path)) == [f"{number:03}.txt" for number in range(6)]
    assert "stopped: 6 texts were written; the same command goes on from there" in caplog.text
    assert threading.active_count() <= before + 1  # the monitor of the progress bar stays
    assert run(work_in(tmp_path), ColourDescriber(), 3, 2).written == 34


def test_runs_that_are_killed_and_started_again_give_the_files_of_a_clean_run(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py")]
    settings = {**environment(), "PYTHONPATH": str(ROOT)}
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    for folder in (clean, killed):
        make_pictures(folder, numbered(200))
    run(work_in(clean), ColourDescriber(), 3, 2)
    for texts in (20, 100):
        process = subprocess.Popen([*command, str(killed)], env=settings, stderr=subprocess.DEVNULL)
        while len(list(killed.glob("*.txt"))) < texts and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert all(path.stat().st_size > 8 for path in killed.glob("[0-9]*.txt"))  # none is half-written
    there = len(list(killed.glob("[0-9]*.txt")))
    result = subprocess.run([*command, str(killed)], env=settings, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert f"written {200 - there}, kept {there}, failed 0" in result.stderr
    assert texts_in(killed) == texts_in(clean)


@pytest.mark.parametrize("texts", [5, 40])
def test_texts_are_added_once_though_the_run_was_killed(tmp_path: Path, texts: int) -> None:
    (tmp_path / "run.py").write_text(RUN.replace("TextKind.TAGS)", "TextKind.TAGS, appends=True)"))
    command = [sys.executable, str(tmp_path / "run.py")]
    settings = {**environment(), "PYTHONPATH": str(ROOT)}
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    for folder in (clean, killed):
        make_pictures(folder, numbered(120))
        for number in range(0, 120, 2):
            (folder / f"{number:03}.txt").write_text("solo\n")
    run(work_in(clean, appends=True), ColourDescriber(), 3, 2)
    process = subprocess.Popen([*command, str(killed)], env=settings, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("[0-9]*.txt"))) < 60 + texts and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    result = subprocess.run([*command, str(killed)], env=settings, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert texts_in(killed) == texts_in(clean) and texts_in(clean)["000.txt"].count("colour") == 1


# --- memory, telling --------------------------------------------------------------------------------------------------


def test_few_pictures_are_decoded_ahead(tmp_path: Path) -> None:
    taken, decoded = 0, 0

    def read(path: Path) -> Decoded:
        nonlocal decoded
        decoded += 1
        return np.zeros(1)

    targets = [Target(tmp_path / f"{number}.png", tmp_path / f"{number}.txt") for number in range(100)]
    reading = read_ahead(targets, read, threads=3, ahead=7)
    for _ in range(50):
        taken = next(reading).number + 1
        assert decoded <= taken + 7
    reading.close()
    assert taken == 50 and decoded <= 57


class Waiting(ColourDescriber):
    """Describes a batch only once a picture of the next one has been decoded."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self._last, self.waited_in_vain = last, 0
        self._read = {name: threading.Event() for name in numbered(100)}

    def read(self, path: Path) -> Decoded:
        picture = super().read(path)
        self._read[path.name].set()
        return picture

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        if paths[-1].name != self._last:
            coming = f"{int(paths[-1].stem) + 1:03}.png"
            self.waited_in_vain += not self._read[coming].wait(20)
        return super().describe(pictures, paths)


@pytest.mark.parametrize(("size", "threads"), [(1, 1), (4, 2)])
def test_pictures_are_decoded_while_the_model_works(tmp_path: Path, size: int, threads: int) -> None:
    make_pictures(tmp_path, numbered(20))
    describer = Waiting(numbered(20)[-1])
    assert run(work_in(tmp_path), describer, size, threads).written == 20
    assert len(describer.batches) == 20 // size and describer.waited_in_vain == 0


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(tmp_path, numbered(7))
    run(work_in(tmp_path), ColourDescriber(), 3, 1)
    assert "100%" in (told := capsys.readouterr().err) and "7/7" in told


def test_counts_are_told_and_what_failed_is_incomplete(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        tell(Outcome(12, 3, ()))
        assert "written 12, kept 3, failed 0" in caplog.text
        with pytest.raises(Incomplete) as raised:
            tell(Outcome(1, 0, [Problem("broken", f"{number}.png", "mend it") for number in range(25)]))
    assert "written 1, kept 0, failed 25" in caplog.text
    told = format_incomplete(raised.value)
    assert "19.png" in told and "20.png" not in told and "5 more pictures" in told
    assert told.startswith("all pictures were gone through, but 25 things could not be done")
    assert "they got no new text either; where there is an old one, it stays" in told
