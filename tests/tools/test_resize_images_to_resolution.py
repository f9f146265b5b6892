"""tools/resize_images_to_resolution.py: its command line, exit codes, and runs that are killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resize_images_to_resolution
from library.core.errors import Incomplete, UserError
from tests.training.runs import ROOT, environment

COMMAND = [sys.executable, str(ROOT / "tools" / "resize_images_to_resolution.py")]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_line_of_the_guides(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--max_resolution", "96x96,64x64", "--save_as_png", "--copy_associated_files"]
    resize_images_to_resolution.main([*words, str(photos), str(tmp_path / "out"), "--divisible_by", "2"])
    made = files_in(tmp_path / "out")
    assert len(made) == 15 * 2 * 2 and "cat+96x96.png" in made
    assert made["cat+64x64.txt"] == (photos / "cat.txt").read_bytes()
    told = capsys.readouterr().err
    assert "copies written: 30, kept as they were: 0" in told and "30 copied" in told


def test_a_bad_picture_is_told_by_the_exit_code(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "in")
    (tmp_path / "in" / "broken\x1b[31m.jpg").write_bytes((photos / "coffee.jpg").read_bytes()[:3000])
    words = ["in", "out", "--max_resolution", "64x64"]
    result = subprocess.run(
        [*COMMAND, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 3 and "\x1b[31m" not in result.stderr and "Traceback" not in result.stderr
    assert "the copies are made, but 1 thing could not be done" in result.stderr and "broken\\x1b" in result.stderr
    assert list(files_in(tmp_path / "out")) == ["cat+64x64.jpg"]


def test_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resize_images_to_resolution.main(["a", "--max_resolution", "512", "--interpolation", "cubik"])
    told = str(caught.value)
    assert "DST is missing" in told and "512x512" in told and "did you mean cubic?" in told
    with pytest.raises(UserError, match="belongs to no option"):
        resize_images_to_resolution.main(["a", "b", "c"])


def test_small_and_transparent_pictures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (40, 30), (200, 30, 30, 100)).save(tmp_path / "in" / "a.png")
    resize_images_to_resolution.main([str(tmp_path / "in"), str(tmp_path / "out"), "--max_resolution", "64x64"])
    told = capsys.readouterr().err
    assert "nothing is enlarged" in told and "--save_as_png keeps transparency" in told
    (tmp_path / "in" / "b.png").write_bytes(b"x")
    with pytest.raises(Incomplete):
        resize_images_to_resolution.main([str(tmp_path / "in"), str(tmp_path / "out"), "--max_resolution", "64x64"])
    assert "copies written: 0, kept as they were: 1" in capsys.readouterr().err


def test_copies_of_the_other_kind_are_told_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "in")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--max_resolution", "64x64,48x48"]
    resize_images_to_resolution.main(words)
    (tmp_path / "out" / "dog+64x64.png").write_bytes(b"of another set")
    made = files_in(tmp_path / "out")
    for more in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="trained as well") as caught:
            resize_images_to_resolution.main([*words, "--save_as_png", *more])
        assert len(caught.value.problems) == 1 and "cat+64x64.jpg, cat+48x48.jpg" in str(caught.value)
    assert files_in(tmp_path / "out") == made
    resize_images_to_resolution.main(words)


def test_copies_that_are_older_than_their_pictures_are_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "in")
    words = [str(tmp_path / "in"), str(tmp_path / "out"), "--max_resolution", "64x64,48x48"]
    resize_images_to_resolution.main(words)
    resize_images_to_resolution.main(words)
    assert "older" not in capsys.readouterr().err
    made = files_in(tmp_path / "out")
    Image.new("RGB", Image.open(photos / "cat.jpg").size, "red").save(tmp_path / "in" / "cat.jpg")
    resize_images_to_resolution.main(words)
    assert "2 copies are older than their pictures" in capsys.readouterr().err and files_in(tmp_path / "out") == made
    resize_images_to_resolution.main([*words, "--overwrite"])
    assert "older" not in capsys.readouterr().err and files_in(tmp_path / "out") != made


def test_a_killed_run_that_is_started_again_gives_the_same_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    source = tmp_path / "写真"
    source.mkdir()
    for number in range(40):
        noise = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        noise.resize((480, 320)).save(source / f"{number}.jpg")
        (source / f"{number}.txt").write_text(f"noise {number}", encoding="utf-8")
    words = [str(source), "--max_resolution", "256x256,192x192", "--copy_associated_files"]
    resize_images_to_resolution.main([*words, str(tmp_path / "clean")])
    clean, out = files_in(tmp_path / "clean"), tmp_path / "out"
    running = subprocess.Popen([*COMMAND, *words, str(out)], env=environment(), stderr=subprocess.DEVNULL)
    while running.poll() is None and len(list(out.glob("*+*"))) < 9:
        time.sleep(0.002)
    running.kill()
    running.wait()
    made = {name: content for name, content in files_in(out).items() if not name.startswith(".tmp-")}
    assert len(made) >= 9 and made.items() < clean.items()
    resize_images_to_resolution.main([*words, str(out)])
    assert files_in(out) == clean and len(clean) == 160
