"""The JSONL log on disks that fill up and with people who remove it; the rest of it is in test_scalars.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from library.training.logs.row_file import RowFile
from tests.training.logs.log_readers import listening, read_rows


def add_rows(rows: RowFile, first: int, last: int) -> None:
    for step in range(first, last + 1):
        rows.add({"step": step, "loss/current": 1 / step})
        rows.flush()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_is_told_once_and_rows_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It takes half a row; numbers are written when there is room again, none twice."""
    import resource

    path = tmp_path / "log.jsonl"
    with listening(caplog):
        rows = RowFile(path, overwrite=False)
        add_rows(rows, 1, 3)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = path.stat().st_size + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
        try:
            add_rows(rows, 4, 6)
            assert rows.state_dict()["rows"] == 6
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == full, "this test needs a torn row"
        assert caplog.text.count("cannot write") == 1
        assert rows.told() == f"log: {path}; its last 3 rows could not be written"
        add_rows(rows, 7, 7)
        rows.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5, 6, 7]
    assert caplog.text.count("cannot write") == 1
    assert "is written again" in caplog.text
    assert rows.told() == f"log: {path}"


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
@pytest.mark.parametrize("what", ["file", "folder", "another file is there"])
def test_a_log_that_is_removed_is_told_once_and_goes_on_in_a_new_file(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "out" / "log.jsonl"
    with listening(caplog):
        rows = RowFile(path, overwrite=False)
        add_rows(rows, 1, 3)
        shutil.rmtree(path.parent) if what == "folder" else path.unlink()
        if what == "another file is there":
            path.write_text("of somebody else\n", encoding="utf-8")
        add_rows(rows, 4, 6)
        assert [row["step"] for row in read_rows(path)] == [4, 5, 6]
        path.unlink()
        rows.close()
    assert caplog.text.count("was removed") == 1
    assert rows.told() == f"log: {path} without its beginning, which was removed"
    assert not path.exists(), "removed after its last row"
    kept = [aside.read_text(encoding="utf-8") for aside in path.parent.glob("log.1.jsonl")]
    assert kept == (["of somebody else\n"] if what == "another file is there" else [])
