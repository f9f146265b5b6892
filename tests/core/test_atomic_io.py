"""A file is whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.core.atomic_io import write_text_whole, write_whole

ROOT = Path(__file__).resolve().parents[2]


def fail(path: Path) -> None:
    path.write_text("half")
    raise OSError("disk full")


def refuse(path: Path) -> None:
    raise OSError("not what was written")


def test_text_arrives_with_unix_line_ends(tmp_path: Path) -> None:
    write_text_whole(tmp_path / "new" / "a.txt", "é\n二\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "é\n二\n".encode()


def test_a_failed_write_or_check_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_whole(path, "old")
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    with pytest.raises(OSError, match="not what was written"):
        write_whole(path, lambda p: p.write_text("new") and None, refuse)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_whole(path, "old")
    code = (
        "import os, sys; from pathlib import Path; from library.core.atomic_io import write_whole\n"
        "def write(p):\n    p.write_text('half'); os._exit(9)\n"
        "write_whole(Path(sys.argv[1]), write)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env={**os.environ})
    assert result.returncode == 9
    assert path.read_text() == "old"
