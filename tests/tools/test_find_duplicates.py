"""tools/find_duplicates.py: what it prints, writes and ends with."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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


def test_mistakes_are_told_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="DIR is missing"):
        find_duplicates.main([])
    with pytest.raises(UserError, match="one file"):
        find_duplicates.main([str(folder), "--json", "x", "--html", "./x"])
    with pytest.raises(UserError, match="does not exist"):
        find_duplicates.main([str(folder), str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="between 0 and 32"):
        find_duplicates.main([str(folder), "--threshold", "64"])


def test_a_file_that_cannot_be_written_is_told_after_the_search(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Incomplete, match="cannot be written"):
        find_duplicates.main([str(folder), "--json", str(tmp_path / "file" / "d.json")])
    assert "2 pictures" in capsys.readouterr().out
