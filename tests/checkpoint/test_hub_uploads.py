"""Against a server of our own that answers as the Hub does, and fails at random."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from library.checkpoint.hub_client import Repository
from library.checkpoint.hub_uploads import Pauses
from library.checkpoint.upload_queue import UploadPlace, UploadQueue
from tests.hub_client_process import answer_of, assert_token_is_nowhere, hub_environment, start_client
from tests.hub_server import TOKEN, Faults, HubServer, Repo, served, sha256

# Queues what it is told to, each with the time it took, deletes it, and uploads in the background and at the end.
WORKER = """
import json, shutil, sys, time
from pathlib import Path
from library.checkpoint.hub_client import Hub, Repository
from library.checkpoint.hub_uploads import Pauses, UploadWorker
from library.checkpoint.upload_queue import UploadPlace, UploadQueue
from library.core.log import start_logging
start_logging()
given = json.load(sys.stdin)
queue = UploadQueue(Path(given["queue"]))
worker = UploadWorker(queue, Hub(None), Pauses(0.05, 0.2))
seconds = []
for source, name, is_set in given["add"]:
    start = time.perf_counter()
    queue.add(Path(source), UploadPlace(Repository("owner/name"), False, name, is_set))
    worker.wake()
    seconds.append(time.perf_counter() - start)
    (shutil.rmtree if is_set else Path.unlink)(Path(source))
start = time.perf_counter()
left = worker.finish(given.get("patience", 60))
finished = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "finished": finished, "left": left, "uploaded": sum(worker.uploaded.values())}))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with served() as server:
        yield server


def environment(hub: HubServer, tmp_path: Path, **more: str) -> dict[str, str]:
    return hub_environment(tmp_path / "home", hub.endpoint, **{"HF_TOKEN": TOKEN, **more})


def content_of(number: int, size: int) -> bytes:
    return bytes((number * 31 + place * 7) % 251 for place in range(size))


def make_files(folder: Path, sizes: dict[str, int]) -> dict[str, bytes]:
    contents = {name: content_of(number, size) for number, (name, size) in enumerate(sizes.items())}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


def run_worker(hub: HubServer, tmp_path: Path, add: list[tuple[Path, str, bool]], **given: Any) -> tuple[Any, str]:
    words = {"queue": str(tmp_path / "queue"), "add": [(str(path), name, is_set) for path, name, is_set in add]}
    return answer_of(start_client(WORKER, {**words, **given}, environment(hub, tmp_path)))


def test_everything_arrives_in_order_although_the_hub_fails_at_random(hub: HubServer, tmp_path: Path) -> None:
    """Errors, cut transfers, lost answers, slow ones; originals that are deleted at once; a state is one commit."""
    hub.faults = Faults(seed=5, share=0.3, most=2, slow=0.05)
    files = make_files(tmp_path, {f"x-00000{n}.safetensors": 9000 * n + 1 for n in (1, 2, 3)} | {"small.yaml": 20})
    state = make_files(tmp_path, {"x-state/manifest.json": 300, "x-state/optimizer.safetensors": 20_000})
    add = [(tmp_path / name, f"loras/{name}", False) for name in files]
    answer, talk = run_worker(hub, tmp_path, [*add, (tmp_path / "x-state", "loras/x-state", True)])

    repo = hub.repo("owner/name")
    assert answer["left"] == {} and answer["uploaded"] == 5
    expected = {f"loras/{name}": content for name, content in (files | state).items()}
    assert {name: sha256(content) for name, content in repo.files.items()} == {
        name: sha256(content) for name, content in expected.items()
    }
    assert [sorted(added) for _, added, _ in repo.commits] == [
        *([f"loras/{name}"] for name in files),
        sorted(f"loras/{name}" for name in state),
    ]
    assert repo.commits[0][0] == "Add loras/x-000001.safetensors"
    assert repo.visibility == "private"
    assert {"cut", "500", "503"} <= set(hub.faults.happened) and len(hub.faults.happened) >= 5
    assert not (tmp_path / "queue").exists()
    assert sum(answer["seconds"]) < 1 < answer["finished"]  # the training did not wait for any of it
    # our lines only: no bars, nothing of the client's, and its signed addresses are nowhere
    assert "uploaded loras/x-state to owner/name" in talk
    assert all(line.startswith(("uploaded ", "warning: loras/", "error: loras/")) for line in talk.splitlines()), talk
    assert hub.endpoint not in talk
    assert not hub.token_seen_by_store
    assert_token_is_nowhere(tmp_path)


def test_the_queue_of_a_killed_run_is_worked_off_by_the_next(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.slow = 0.4
    files = make_files(tmp_path, {f"x-{n}.safetensors": 5000 for n in range(4)})
    given = {"queue": str(tmp_path / "queue"), "add": [(str(tmp_path / name), name, False) for name in files]}
    process = start_client(WORKER, given, environment(hub, tmp_path))
    until = time.monotonic() + 60
    while not any("/preupload/" in line for line in hub.asked) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    repo = hub.repo("owner/name")
    assert len(repo.commits) < 4
    assert not any((tmp_path / name).exists() for name in files)
    assert_token_is_nowhere(tmp_path)

    hub.faults.slow = 0
    answer, _ = run_worker(hub, tmp_path, [])
    assert answer["left"] == {} and repo.files == files
    assert [added for _, added, _ in repo.commits] == [[name] for name in files]
    assert not (tmp_path / "queue").exists()


def test_without_a_network_the_files_wait(hub: HubServer, tmp_path: Path) -> None:
    files = make_files(tmp_path, {"a.safetensors": 5000, "b.safetensors": 5000})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        given = {"queue": str(tmp_path / "queue"), "patience": 0.5}
        given["add"] = [(str(tmp_path / name), name, False) for name in files]
        answer, talk = answer_of(start_client(WORKER, given, environment(hub, tmp_path, HF_ENDPOINT=nobody)))
    assert sum(answer["seconds"]) < 1 and answer["finished"] < 10
    assert set(answer["left"].values()) == {"the Hub cannot be reached (ConnectError)"}
    assert talk.count("a.safetensors is not uploaded yet: the Hub cannot be reached") == 1
    queued = UploadQueue(tmp_path / "queue").entries()
    assert {entry.place.name: entry.files[0].stored.read_bytes() for entry in queued} == files
    assert_token_is_nowhere(tmp_path)


def test_what_the_hub_refuses_is_in_nobodys_way(hub: HubServer, tmp_path: Path) -> None:
    """The first goes to a repository that is locked; the second is uploaded."""
    make_files(tmp_path, {"a.bin": 5000, "b.bin": 5000})
    hub.repos["model", "owner/locked"] = Repo("private")
    hub.locked.add("owner/locked")
    code = WORKER.replace('Repository("owner/name")', "Repository(name)")
    given: dict[str, Any] = {"queue": str(tmp_path / "queue")}
    given["add"] = [(str(tmp_path / "a.bin"), "owner/locked", False), (str(tmp_path / "b.bin"), "owner/open", False)]
    answer, talk = answer_of(start_client(code, given, environment(hub, tmp_path)))
    assert answer["left"] == {"1": "the Hub refuses the access token (status 403)"}
    assert "error: owner/locked was not uploaded: the Hub refuses" in talk
    assert list(hub.repo("owner/open").files) == ["owner/open"]


def test_a_file_that_arrived_otherwise_is_sent_again(hub: HubServer, tmp_path: Path) -> None:
    files = make_files(tmp_path, {"large.bin": 5000, "small.txt": 50})
    hub.tell_wrong = set(files)
    answer, talk = run_worker(hub, tmp_path, [(tmp_path / name, name, False) for name in files])
    assert answer["left"] == {} and hub.repo("owner/name").files == files
    for name in files:
        assert f"{name} is not uploaded yet: {name} arrived with another checksum" in talk


def test_a_state_replaces_all_of_an_older_one_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    hub.repos["model", "owner/name"] = repo = Repo("public")
    repo.files = {"x-state/old.bin": b"old", "x-state/kept.bin": b"old", "x-state2/a": b"other", "README.md": b"words"}
    state = make_files(tmp_path, {"x-state/kept.bin": 30, "x-state/new.bin": 6000})
    run_worker(hub, tmp_path, [(tmp_path / "x-state", "x-state", True)])
    assert repo.files == {**state, "x-state2/a": b"other", "README.md": b"words"}
    assert [(sorted(added), deleted) for _, added, deleted in repo.commits] == [(sorted(state), ["x-state/old.bin"])]
    assert repo.visibility == "public"


def test_a_copy_that_was_altered_is_not_uploaded(hub: HubServer, tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path / "queue")
    make_files(tmp_path, {"a.bin": 5000})
    entry = queue.add(tmp_path / "a.bin", UploadPlace(Repository("owner/name"), False, "a.bin"))
    with entry.files[0].stored.open("ab") as file:
        file.write(b"more")
    answer, _ = run_worker(hub, tmp_path, [])
    assert answer["left"] == {"1": "its copy in the queue was altered or is gone"}
    assert hub.repos == {}


def test_ctrl_c_ends_the_waiting(hub: HubServer, tmp_path: Path) -> None:
    make_files(tmp_path, {"a.bin": 5000})
    hub.faults.down = True
    given = {"queue": str(tmp_path / "queue"), "add": [(str(tmp_path / "a.bin"), "a.bin", False)], "patience": 600}
    process = start_client(WORKER, given, environment(hub, tmp_path))
    until = time.monotonic() + 60
    while not any("/repos/create" in line for line in hub.asked) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    answer, talk = answer_of(process)
    assert "what is not uploaded stays in the queue" in talk
    assert list(answer["left"]) == ["1"] and answer["finished"] < 30
    assert len(UploadQueue(tmp_path / "queue").entries()) == 1


def test_pauses_grow_to_a_limit() -> None:
    pauses = Pauses(first=1, longest=60)
    assert 0.75 <= pauses.after(1) <= 1.25
    assert 3 <= pauses.after(3) <= 5
    assert all(45 <= pauses.after(tries) <= 75 for tries in (7, 8, 10_000))


def test_the_answers_of_the_server_are_json(hub: HubServer) -> None:
    """The server of these tests, by its own word: an unknown token is refused."""
    request = urllib.request.Request(f"{hub.endpoint}/api/whoami-v2", headers={"authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["name"] == "owner"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{hub.endpoint}/api/whoami-v2")
