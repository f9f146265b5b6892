"""What is handed over while a run trains, against a server of our own that answers as the Hub does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from library.training.checks.uploads import UploadTarget
from library.training.uploads import Uploads
from tests.checkpoint.hub_client_process import answer_of, hub_environment, start_client
from tests.checkpoint.hub_server import TOKEN, Repo, served

# For each case: hands a model with its yaml, a state and a file that is not there to uploads; looks before and after.
CLIENT = """
import json, sys, time
from pathlib import Path
from library.checkpoint.hub_client import Hub
from library.checkpoint.hub_uploads import UploadWorker
from library.checkpoint.upload_queue import UploadQueue, queue_folder
from library.training.checks.uploads import UploadTarget
from library.training.uploads import HubUploads
answers = []
for folder, target, with_yaml in json.load(sys.stdin):
    folder, target = Path(folder), UploadTarget(**target)
    queue = UploadQueue(queue_folder(folder, "x"))
    uploads = HubUploads(target, queue, UploadWorker(queue, Hub(None)), with_yaml)
    uploads.add([folder / "x.safetensors"])
    uploads.add([folder / "x-state"], is_state=True)
    uploads.add([folder / "absent.safetensors"])
    until = time.monotonic() + (30 if target.in_background else 0.5)
    while queue.entries() and time.monotonic() < until:
        time.sleep(0.02)
    waiting = [entry.place.name for entry in queue.entries()]
    answers.append({"waiting": waiting, "lines": uploads.finish(), "told": uploads.told()})
print(json.dumps(answers))
"""


def target_of(repo_id: str, **more: Any) -> UploadTarget:
    plain = {"repo_type": "model", "folder": "", "is_public": False, "with_states": False, "in_background": False}
    return UploadTarget(repo_id, **{**plain, **more})


def test_uploads_that_are_not_asked_for(tmp_path: Path) -> None:
    uploads = Uploads()
    uploads.add([tmp_path / "absent"])
    assert uploads.finish() == [] == uploads.told()


def test_what_goes_when_and_where(tmp_path: Path) -> None:
    cases = {
        "background": (target_of("owner/background", in_background=True), False),
        "end": (target_of("owner/end", with_states=True, folder="a/b", is_public=True, repo_type="dataset"), True),
        "locked": (target_of("owner/locked"), False),
    }
    for name in cases:
        (tmp_path / name / "x-state").mkdir(parents=True)
        for file in ("x.safetensors", "x.yaml", "x-state/manifest.json"):
            (tmp_path / name / file).write_text(file)
    given = [(str(tmp_path / name), asdict(target), with_yaml) for name, (target, with_yaml) in cases.items()]
    with served() as hub:
        hub.repos["model", "owner/locked"] = Repo("private")
        hub.locked.add("owner/locked")
        settings = hub_environment(tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)
        (background, end, locked), _ = answer_of(start_client(CLIENT, given, settings))
        first, second = hub.repo("owner/background"), hub.repo("owner/end", "dataset")
    not_queued = "absent.safetensors is not uploaded: it could not be queued: No such file or directory"
    assert first.files == {"x.safetensors": b"x.safetensors"} and first.visibility == "private"
    assert background["waiting"] == [] and background["lines"] == [not_queued]
    assert background["told"] == [f"uploaded: 1 to {hub.endpoint}/owner/background"]

    names = ("x.safetensors", "x.yaml", "x-state/manifest.json")
    assert second.files == {f"a/b/{name}": name.encode() for name in names} and second.visibility == "public"
    assert end["waiting"] == ["a/b/x.safetensors", "a/b/x.yaml", "a/b/x-state"]  # nothing before the end
    assert end["told"] == [f"uploaded: 3 to {hub.endpoint}/datasets/owner/end"]

    refusal = "the Hub refuses the access token (status 403)"
    assert locked["lines"] == [not_queued, f"x.safetensors is not uploaded to owner/locked ({refusal})"]
    (told,) = locked["told"]
    assert told.startswith(f"still to be uploaded: 1 in {tmp_path / 'locked' / '.x-uploads'}; the next run")
