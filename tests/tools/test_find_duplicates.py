"""tools/find_duplicates.py: what it prints, writes and ends with."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import find_duplicates
from library.core.errors import Incomplete, UserError
from tests.training.runs import ROOT, environment


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    place = tmp_path / "写真"
    (place / "below").mkdir(parents=True)
    for name in ("cat.jpg", "cat.txt", "coffee.jpg", "coffee.txt"):
        shutil.copy(photos / name, place / name)
    Image.open(photos / "cat.jpg").resize((160, 106)).save(place / "below" / "猫 <b>.png")
    (place / "below" / "猫 <b>.txt").write_text("another caption", encoding="utf-8")
    return place


def state_of(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_run_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    before = state_of(folder)
    command = [sys.executable, str(ROOT / "tools" / "find_duplicates.py"), folder.name, "--recursive"]
    words = ["--json", "out/d.json", "--html", "out/d.html"]
    result = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr
    keep, copy = Path(folder.name) / "cat.jpg", Path(folder.name) / "below" / "猫 <b>.png"
    lines = result.stdout.splitlines()
    assert lines[0] == "group 1: 2 pictures" and lines[-1] == "3 pictures, 1 of them copies of others, in 1 group"
    assert lines[1].startswith(f"  keep  {keep}  (320x213, ") and lines[2].startswith(f"  copy  {copy}  (160x106, ")
    assert lines[2].endswith(": near copy") and "their captions differ:" in lines[3]
    assert "ginger tabby" in lines[4] and "another caption" in lines[5]
    values = json.loads((tmp_path / "out" / "d.json").read_text(encoding="utf-8"))
    assert values["pictures"] == 3 and values["unreadable"] == []
    (group,) = values["groups"]
    assert group["keep"]["path"] == str(keep) and group["captions_differ"] is True
    assert [(one["path"], one["kind"], one["like"]) for one in group["copies"]] == [(str(copy), "near copy", str(keep))]
    page = (tmp_path / "out" / "d.html").read_text(encoding="utf-8")
    assert "猫 &lt;b&gt;.png" in page and "<b>.png" not in page and "default-src 'none'" in page
    assert state_of(folder) == before


def test_a_picture_that_cannot_be_read_is_told_by_the_exit_code(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    with pytest.raises(Incomplete) as caught:
        find_duplicates.main([str(folder)])
    assert caught.value.end == "the search is over"
    assert [Path(problem.where).name for problem in caught.value.problems] == ["broken.jpg"]
    assert capsys.readouterr().out.splitlines()[-1] == "2 pictures, 0 of them copies of others, in 0 groups"


@pytest.mark.slow
def test_a_killed_search_leaves_whole_files_or_none(photos: Path, tmp_path: Path) -> None:
    folder, draws = tmp_path / "p", random.Random(3)
    folder.mkdir()
    for number in range(6):
        for path in (*photos.glob("*.jpg"), *photos.glob("*.png")):
            shutil.copy(path, folder / f"{number}{path.name}")
    command = [sys.executable, str(ROOT / "tools" / "find_duplicates.py"), str(folder)]

    def words(out: str) -> list[str]:
        return [*command, "--json", str(tmp_path / out / "d.json"), "--html", str(tmp_path / out / "d.html")]

    def files(out: str) -> dict[str, bytes]:
        found = {path.name: path.read_bytes() for path in (tmp_path / out).glob("*")}
        return {name: content for name, content in found.items() if not name.startswith(".tmp-")}

    begun, before = time.monotonic(), state_of(folder)
    subprocess.run(words("clean"), env=environment(), check=True, capture_output=True)
    seconds, clean = time.monotonic() - begun, files("clean")
    assert set(clean) == {"d.json", "d.html"}
    for _ in range(3):
        process = subprocess.Popen(
            words("killed"), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds * draws.uniform(0.4, 1.0))
        process.kill()
        process.wait()
        assert files("killed").items() <= clean.items()
    subprocess.run(words("killed"), env=environment(), check=True, capture_output=True)
    assert files("killed") == clean and state_of(folder) == before


def test_mistakes_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DIR is missing"):
        find_duplicates.main([])
    with pytest.raises(UserError, match="one file"):
        find_duplicates.main([str(folder), "--json", "x", "--html", "./x"])
    with pytest.raises(UserError, match="does not exist"):
        find_duplicates.main([str(folder), str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="between 0 and 32"):
        find_duplicates.main([str(folder), "--threshold", "64"])


@pytest.mark.parametrize("flag", ["--json", "--html"])
def test_no_other_file_is_written_over(folder: Path, tmp_path: Path, flag: str) -> None:
    (tmp_path / "meta.json").write_text('{"a": {"caption": "precious"}, "pictures": 3}', encoding="utf-8")
    (tmp_path / "page.html").write_text("<!doctype html><title>Duplicates</title>", encoding="utf-8")
    (tmp_path / "file").write_text("")
    (tmp_path / "tags.words").write_text("a, b", encoding="utf-8")
    places = {
        "no earlier result": [tmp_path / "meta.json", tmp_path / "page.html", tmp_path / "file"],
        "no name for a result": [folder / "coffee.jpg", tmp_path / "new.PNG", tmp_path / "new.psd"],
        "hold captions": [folder / "cat.txt", tmp_path / "new.caption", tmp_path / "new.words"],
        "this is a folder": [tmp_path, folder / "below"],
        "cannot be written": [tmp_path / "file" / "d.json"],
    }
    before = state_of(tmp_path)
    for told, paths in places.items():
        for path in paths:
            with pytest.raises(UserError, match=told) as caught:
                find_duplicates.main([str(folder), "--caption_extension", ".words", flag, str(path)])
            assert not isinstance(caught.value, Incomplete) and flag in caught.value.problems[0].where
    assert state_of(tmp_path) == before
    for again in range(2):
        (folder / f"{again}.png").write_bytes(b"")
        with pytest.raises(Incomplete):
            find_duplicates.main([str(folder), flag, str(tmp_path / "new" / "result")])
        assert f"{again}.png" in (tmp_path / "new" / "result").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the size of a file")
def test_a_full_temporary_folder_is_told_without_a_traceback(folder: Path) -> None:
    words = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", sys.executable, str(ROOT / "tools" / "find_duplicates.py")]
    result = subprocess.run([*words, str(folder)], env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "the temporary folder" in result.stderr and "TMPDIR" in result.stderr
