"""What is handed over while a run trains, against a server of our own that answers as the Hub does."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from library.checkpoint.hub_client import Repository
from library.checkpoint.upload_queue import UploadPlace, UploadQueue, queue_folder
from library.training.checks.uploads import UploadTarget
from library.training.keep.uploads import Uploads
from tests.hub_client_process import answer_of, hub_environment, start_client
from tests.hub_server import TOKEN, Repo, served

# For each case: hands a model with its yaml, a state and a file that is not there to uploads; waits until so many are
# left in the queue, and ends.
CLIENT = """
import json, sys, time
from pathlib import Path
from library.checkpoint.hub_client import Hub
from library.checkpoint.upload_queue import UploadQueue, queue_folder
from library.training.checks.uploads import UploadTarget
from library.training.keep.uploads import HubUploads
answers = []
for folder, target, with_yaml, left in json.load(sys.stdin):
    folder, target = Path(folder), UploadTarget(**target)
    queue = UploadQueue(queue_folder(folder, "x"))
    uploads = HubUploads(target, queue, Hub(None), with_yaml)
    uploads.add([folder / "x.safetensors"])
    uploads.add([folder / "x-state"], is_state=True)
    uploads.add([folder / "absent.safetensors"])
    until = time.monotonic() + 30
    while len(queue.entries()) > left and time.monotonic() < until:
        time.sleep(0.02)
    waiting = [entry.place.name for entry in queue.entries()]
    answers.append({"waiting": waiting, "lines": uploads.finish(), "told": uploads.told()})
print(json.dumps(answers))
"""


def target_of(repo_id: str, **more: Any) -> UploadTarget:
    plain = {"repo_type": "model", "folder": "", "is_public": False, "with_states": False}
    return UploadTarget(repo_id, **{**plain, **more})


def test_uploads_that_are_not_asked_for(tmp_path: Path) -> None:
    uploads = Uploads()
    uploads.add([tmp_path / "absent"])
    assert uploads.finish() == [] == uploads.told()


def test_what_goes_when_and_where(tmp_path: Path) -> None:
    cases = {
        "plain": (target_of("owner/plain"), False, 0),
        "all": (target_of("owner/all", with_states=True, folder="a/b", is_public=True, repo_type="dataset"), True, 0),
        "locked": (target_of("owner/locked"), False, 1),
    }
    for name in cases:
        (tmp_path / name / "x-state").mkdir(parents=True)
        for file in ("x.safetensors", "x.yaml", "x-state/manifest.json"):
            (tmp_path / name / file).write_text(file)
    given = [(str(tmp_path / name), asdict(target), *more) for name, (target, *more) in cases.items()]
    with served() as hub:
        hub.repos["model", "owner/locked"] = Repo("private")
        hub.locked.add("owner/locked")
        settings = hub_environment(tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)
        (plain, everything, locked), _ = answer_of(start_client(CLIENT, given, settings))
        first, second = hub.repo("owner/plain"), hub.repo("owner/all", "dataset")
    not_queued = "absent.safetensors is not uploaded: it could not be queued: No such file or directory"
    assert first.files == {"x.safetensors": b"x.safetensors"} and first.visibility == "private"
    assert plain["waiting"] == [], "it was uploaded before the end"
    assert plain["lines"] == [not_queued]
    assert plain["told"] == [f"uploaded: 1 to {hub.endpoint}/owner/plain"]

    names = ("x.safetensors", "x.yaml", "x-state/manifest.json")
    assert second.files == {f"a/b/{name}": name.encode() for name in names} and second.visibility == "public"
    assert everything["waiting"] == []
    assert everything["told"] == [f"uploaded: 3 to {hub.endpoint}/datasets/owner/all"]

    refusal = "the Hub refuses the access token (status 403)"
    assert locked["lines"] == [not_queued, f"x.safetensors is not uploaded to owner/locked ({refusal})"]
    (told,) = locked["told"]
    assert told.startswith(f"still to be uploaded: 1 in {tmp_path / 'locked' / '.x-uploads'}; the next run")


def test_what_an_earlier_run_left_is_no_failure_of_this_one(tmp_path: Path) -> None:
    """One repository was deleted since, and is not made again; another has no right of writing any more."""
    out = tmp_path / "out"
    (out / "x-state").mkdir(parents=True)
    (out / "x.safetensors").write_text("new")
    (out / "old.safetensors").write_text("old")
    folder = queue_folder(out, "x")
    for name in ("deleted", "locked", "there"):
        place = UploadPlace(Repository(f"owner/{name}"), False, "old.safetensors")
        UploadQueue(folder).add(out / "old.safetensors", place)
    with served() as hub:
        hub.repos["model", "owner/there"], hub.repos["model", "owner/locked"] = Repo("private"), Repo("private")
        hub.locked.add("owner/locked")
        settings = hub_environment(tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)
        given = [(str(out), asdict(target_of("owner/own")), False, 2)]
        (answer,), _ = answer_of(start_client(CLIENT, given, settings))
        assert {repo_id for _, repo_id in hub.repos} == {"owner/there", "owner/locked", "owner/own"}
        assert hub.repo("owner/there").files == {"old.safetensors": b"old"}
        assert hub.repo("owner/own").files == {"x.safetensors": b"new"}
    assert [line.split()[0] for line in answer["lines"]] == ["absent.safetensors"]
    *uploaded, waiting, deleted, locked = answer["told"]
    assert uploaded == [f"uploaded: 1 to {hub.endpoint}/owner/{name}" for name in ("there", "own")]
    assert waiting.startswith(f"still to be uploaded: 2 in {folder}; ")
    unknown = "the Hub knows no repository of that name and kind, or it is private"
    assert deleted == (
        f"of an earlier run: old.safetensors is not uploaded to owner/deleted ({unknown}); "
        f"to drop it, delete {folder / '00000001'}"
    )
    assert "to owner/locked (the Hub refuses the access token (status 403)); to drop it, delete" in locked
    for line in (deleted, locked):
        shutil.rmtree(line.partition("to drop it, delete ")[2])
    assert UploadQueue(folder).entries() == []
