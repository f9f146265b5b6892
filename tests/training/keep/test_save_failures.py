from __future__ import annotations

import errno
from pathlib import Path

from library.checkpoint.hub_client import Repository
from library.checkpoint.upload_queue import UploadPlace, UploadQueue, queue_folder
from library.training.keep.save_failures import save_problems, told_waiting


def test_a_full_disk_names_the_uploads_that_wait_on_it(tmp_path: Path) -> None:
    """They hold the room of files that are deleted."""
    path, full = tmp_path / "x.safetensors", OSError(errno.ENOSPC, "No space left on device")
    (without,) = save_problems(full, path, needed=1 << 20)
    assert "No space left on device" in without.what and without.fix.endswith("keep fewer files")
    (tmp_path / "old.safetensors").write_bytes(bytes(3 << 19))
    queue = UploadQueue(queue_folder(tmp_path, "style"))
    queue.add(tmp_path / "old.safetensors", UploadPlace(Repository("owner/name"), False, "old.safetensors"))
    (tmp_path / "old.safetensors").unlink()
    (problem,) = save_problems(full, path, needed=1 << 20)
    assert problem.fix == without.fix + told_waiting(tmp_path)
    assert f"1.5 MiB wait for their upload in {queue.folder} and stay on the disk" in problem.fix
    assert f"python tools/upload_left_overs.py {tmp_path}, or delete {queue.folder}" in problem.fix
