"""A file is whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.core.atomic_io import TEMPORARY_MARK, remove_left_overs, write_text_whole, write_whole

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


def _name_of_temporary(path: Path) -> str:
    names: list[str] = []

    def write(temporary: Path) -> None:
        names.append(temporary.name)
        temporary.write_text("new")

    write_whole(path, write)
    return names[0]


def test_temporary_names_fit_whatever_the_final_name_is(tmp_path: Path) -> None:
    """They are short, keep the ending, and no two are equal, also on other machines with the same process numbers."""
    long = tmp_path / ("a" * 251 + ".npz")
    names = [_name_of_temporary(path) for path in (long, long, tmp_path / "b.safetensors", tmp_path / "README")]
    assert all(name.startswith(TEMPORARY_MARK) and len(name) < 60 for name in names) and len(set(names)) == 4
    assert [Path(name).suffix for name in (names[0].lstrip("."), names[2].lstrip("."))] == [".npz", ".safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([long.name, "b.safetensors", "README"])


def _killed(folder: Path) -> Path:
    """What a process leaves that is killed while it writes."""
    code = (
        "import os, sys; from pathlib import Path; from library.core.atomic_io import write_whole\n"
        "def write(p):\n    p.write_text('half'); print(p.name); os._exit(9)\n"
        "write_whole(Path(sys.argv[1]), write)"
    )
    before = set(folder.iterdir())
    subprocess.run([sys.executable, "-c", code, str(folder / "x.npz")], cwd=ROOT, env={**os.environ})
    (left,) = set(folder.iterdir()) - before
    return left


@pytest.mark.skipif(os.name == "nt", reason="whether a process lives cannot be asked safely there")
def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = _killed(tmp_path)
    mark, digits, host, _ = left.stem.lstrip(".").split("-")
    own = f".{mark}-{digits}-{host}-{os.getpid()}.npz"
    elsewhere = f".{mark}-{digits}-{'0' * 8}-{left.stem.rpartition('-')[2]}.npz"
    others = [own, elsewhere, left.name + ".npz", left.with_suffix(".png").name, f"a{left.name}", ".tmp-1.npz", "a.npz"]
    for name in others:
        (tmp_path / name).write_text("kept")
    (tmp_path / "below").mkdir()
    below = _killed(tmp_path / "below")
    (tmp_path / left.name.replace(digits, "00000000")).symlink_to(tmp_path / "a.npz")
    assert remove_left_overs(tmp_path, ".npz") == 1
    assert not left.exists() and below.exists() and all((tmp_path / name).exists() for name in others)
    assert (tmp_path / left.name.replace(digits, "00000000")).is_symlink()
    assert remove_left_overs(tmp_path, ".npz") == 0


def test_what_is_older_than_a_day_is_removed_wherever_it_was_made(tmp_path: Path) -> None:
    old, young = (tmp_path / f".tmp-{digit * 8}-{'0' * 8}-{os.getpid()}.npz" for digit in "12")
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (1, 1))
    assert remove_left_overs(tmp_path, ".npz") == 1
    assert young.exists() and not old.exists()
    assert remove_left_overs(tmp_path / "nowhere", ".npz") == 0
