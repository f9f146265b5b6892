from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import upload_left_overs
from library.checkpoint.hub_client import Repository
from library.checkpoint.upload_queue import UploadPlace, UploadQueue, queue_folder
from library.core.errors import UserError
from tests.hub_client_process import ROOT, hub_environment
from tests.hub_server import TOKEN, Repo, served


def test_a_folder_without_queues(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no uploads wait there"):
        upload_left_overs.main([str(tmp_path)])


def test_what_waits_is_uploaded_and_the_rest_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"content")
    for name in ("one", "two"):
        place = UploadPlace(Repository(f"owner/{name}"), False, "a.safetensors")
        UploadQueue(queue_folder(tmp_path, name)).add(path, place)
    command = [sys.executable, str(ROOT / "tools" / "upload_left_overs.py"), str(tmp_path)]
    with served() as hub:
        hub.repos["model", "owner/two"] = Repo("private")
        hub.locked.add("owner/two")
        settings = hub_environment(tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)
        result = subprocess.run(command, env=settings, capture_output=True, text=True, encoding="utf-8")
        assert hub.repo("owner/one").files == {"a.safetensors": b"content"}
    assert result.returncode == 3, result.stderr
    assert "a.safetensors: is not uploaded: the Hub refuses the access token (status 403)" in result.stderr
    assert f"or to drop it delete {queue_folder(tmp_path, 'two') / '00000001'}" in result.stderr
    assert TOKEN not in result.stdout + result.stderr
    assert not queue_folder(tmp_path, "one").exists() and queue_folder(tmp_path, "two").exists()
