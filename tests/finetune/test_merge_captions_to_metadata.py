"""finetune/merge_captions_to_metadata.py: its command line, as a process, and killed at any moment."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune import merge_captions_to_metadata
from library.core.atomic_io import TEMPORARY_MARK
from library.core.errors import UserError
from tests.training.runs import ROOT, environment

SCRIPT = ROOT / "finetune" / "merge_captions_to_metadata.py"
NOTES = "x" * 4_000_000  # makes a file that takes a while to write


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The script in a process of its own, from `folder`."""
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        text=True,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def entries_of(path: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """Photographs in a folder with a Japanese name, with .caption files."""
    folder = tmp_path / "学習 data"
    folder.mkdir()
    for name in ("cat.jpg", "coins.png", "cell.webp"):
        shutil.copy(photos / name, folder)
        shutil.copy((photos / name).with_suffix(".txt"), (folder / name).with_suffix(".caption"))
    return folder


def test_as_a_process_from_the_folder_above(data: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "学習 data", "meta_cap.json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "3 pictures: 3 new entries" in err and "written: meta_cap.json, 3 entries" in err
    texts = {path.stem: path.read_text(encoding="utf-8").strip() for path in data.glob("*.caption")}
    assert entries_of(tmp_path / "meta_cap.json") == {key: {"caption": texts[key]} for key in sorted(texts)}

    process = start(tmp_path, "meta_cap.json", "学習 data")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "2 problems" in err and "Traceback" not in err


def test_it_starts_without_torch(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from finetune.merge_captions_to_metadata import main; main(sys.argv[1:]);"
        "print('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(data), str(tmp_path / "meta.json")]
    result = subprocess.run(words, cwd=ROOT, env=environment(), check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "False"


def test_the_flags(data: Path, tmp_path: Path) -> None:
    for path in data.glob("*.caption"):
        path.rename(path.with_suffix(".txt"))
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    with pytest.raises(UserError, match="none of 3 pictures has a"):
        merge_captions_to_metadata.main([str(data), str(first)])
    ending = ["--caption_extention", ".txt"]  # as guides spell it
    merge_captions_to_metadata.main(["--full_path", str(data), str(first), *ending])
    assert set(entries_of(first)) == {path.as_posix() for path in data.iterdir() if path.suffix != ".txt"}
    merge_captions_to_metadata.main([str(tmp_path), "--recursive", "--in_json", str(first), str(second), *ending])
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("ending", ["txt", ".", ".a,.b", "./x", " "])
def test_an_ending_that_is_none(data: Path, tmp_path: Path, ending: str) -> None:
    with pytest.raises(UserError, match="--caption_extension"):
        merge_captions_to_metadata.main([str(data), str(tmp_path / "meta.json"), "--caption_extension", ending])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def kill_at_work(process: subprocess.Popen[str], draws: random.Random, folder: Path) -> bool:
    """Kills a process while it writes, or at any moment; whether it was still at work."""
    deadline = time.monotonic() + 60
    if draws.random() < 0.7:
        known = set(folder.iterdir())
        while process.poll() is None and set(folder.iterdir()) <= known and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(draws.choice([0, 0, 0.002, 0.01, 0.05]))
    else:
        time.sleep(draws.uniform(0.05, 0.5))
    was_at_work = process.poll() is None
    process.kill()
    process.communicate()
    return was_at_work


@pytest.mark.parametrize("rounds", [2, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("words", [(), ("--in_json", "in.json")], ids=["in place", "from an input"])
def test_killed_at_any_moment_and_started_again(
    data: Path, tmp_path: Path, rounds: int, words: tuple[str, ...]
) -> None:
    """Output and backups are whole at every moment, and in the end as after one clean run."""
    work = tmp_path / "work"
    work.mkdir()
    begin = {
        "meta.json": json.dumps({"lost": {"notes": NOTES}, "cat": {"tags": "x", "caption": "old"}}).encode(),
        "in.json": json.dumps({"coins": {"notes": NOTES[1:]}}).encode(),
        "meta.backup-1.json": b"of another day",
    }

    def reset() -> None:
        for path in work.iterdir():
            path.unlink()
        for name, content in begin.items():
            (work / name).write_bytes(content)

    def run_whole() -> dict[str, bytes]:
        process = start(work, str(data), "meta.json", *words)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return files_of(work)

    reset()
    clean = run_whole()
    assert set(clean) == {*begin, "meta.backup-2.json"} and clean["meta.json"] != begin["meta.json"]
    assert clean["meta.backup-2.json"] == begin["meta.json"]
    draws, kills = random.Random(rounds), 0
    for _ in range(rounds):
        reset()
        for _ in range(2):
            kills += kill_at_work(start(work, str(data), "meta.json", *words), draws, work)
            found = {name: content for name, content in files_of(work).items() if not name.startswith(TEMPORARY_MARK)}
            assert found["meta.json"] in (begin["meta.json"], clean["meta.json"])
            assert found["in.json"] == begin["in.json"]
            assert found.items() - {("meta.json", begin["meta.json"])} <= clean.items()
        assert run_whole() == clean
    assert kills
