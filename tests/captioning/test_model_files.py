"""Against a server of our own that answers as the Hub does; the client runs in processes of its own, because
huggingface_hub reads its environment when it is imported."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_client_process import answer_of, assert_token_is_nowhere, hub_environment, start_client
from tests.hub_server import LARGE, TOKEN, HubServer, Mishap, Repo, served, sha256

# Fetches, in turn, what is given as [repository, names to choose, folder]; tells the problem of each, if there is one.
CLIENT = """
import json, sys
from pathlib import Path
from library.captioning.model_files import fetch
from library.core.errors import UserError
from library.core.log import start_logging
start_logging()
given = json.load(sys.stdin)
if given["largest_file"]:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (given["largest_file"],) * 2)
answers = []
for repo_id, wanted, folder in given["calls"]:
    choose = lambda names: [name for name in wanted if name in names]
    try:
        fetch(repo_id, choose, Path(folder), f"--repo_id {repo_id}", ["a.onnx", "b.csv"], pauses=(0.01, 0.02))
        answers.append(None)
    except UserError as error:
        (problem,) = error.problems
        answers.append({"where": problem.where, "what": problem.what, "fix": problem.fix})
heavy = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
print(json.dumps({"answers": answers, "heavy": heavy}))
"""
Call = tuple[str, list[str], Path]
MODEL, TAGS = "model.onnx", "tags.csv"
SIZE = 400_000


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with served() as server:
        server.repos["model", "owner/name"] = tagger(0)
        yield server


def tagger(number: int) -> Repo:
    files = {MODEL: content_of(number, SIZE), TAGS: b"tag_id,name\n1,cat\n", "README.md": b"read me"}
    return Repo("public", files)


def content_of(number: int, size: int) -> bytes:
    return b"".join((number * 1_000_003 + place).to_bytes(4, "little") for place in range(size // 4))


def start(hub: HubServer, home: Path, *calls: Call, largest_file: int = 0, **more: str) -> subprocess.Popen[str]:
    given = {"calls": [[repo, names, str(folder)] for repo, names, folder in calls], "largest_file": largest_file}
    return start_client(CLIENT, given, hub_environment(home, hub.endpoint, **{"HF_TOKEN": TOKEN, **more}))


def outcome(process: subprocess.Popen[str]) -> tuple[list[Any], str]:
    answer, talk = answer_of(process)
    assert answer["heavy"] == []
    return answer["answers"], talk


def run(hub: HubServer, home: Path, *calls: Call, **more: Any) -> tuple[list[Any], str]:
    return outcome(start(hub, home, *calls, **more))


def held(folder: Path) -> dict[str, bytes]:
    """The files below a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def the_part(folder: Path) -> Path:
    (part,) = folder.glob(f"{MODEL}.*.part")
    return part


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def ranges(hub: HubServer, name: str = MODEL) -> list[str | None]:
    return [request.headers.get("range") for request in hub.requests_for(name)]


def sent(hub: HubServer, name: str = MODEL) -> list[int]:
    return [request.sent for request in hub.requests_for(name)]


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_the_chosen_files_arrive_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    """Small and large ones, in folders and with any letters; only what is not there with that content is fetched."""
    files = hub.repo("owner/name").files
    wanted = [MODEL, TAGS, "日本/タグ 1#.csv"]
    files[wanted[-1]] = "猫".encode()
    new, altered = tmp_path / "new" / "モデル", tmp_path / "altered"
    altered.mkdir()
    (altered / MODEL).write_bytes(files[MODEL][:-1] + b"?")
    (altered / TAGS).write_bytes(files[TAGS])
    (altered / "mine.txt").write_text("mine")
    (altered / f"{MODEL}.0123456789ab.part").write_bytes(b"begun from another version")
    calls: list[Call] = [("owner/name", wanted, new)] * 2 + [("owner/name", [TAGS, MODEL], altered)]
    answers, _ = run(hub, tmp_path / "home", *calls)
    assert answers == [None] * 3
    assert held(new) == {name: files[name] for name in wanted}
    assert held(altered) == {MODEL: files[MODEL], TAGS: files[TAGS], "mine.txt": b"mine"}
    assert sent(hub) == [SIZE, SIZE]  # into the new folder and for the altered file
    assert [len(sent(hub, name)) for name in wanted[1:]] == [1, 1]
    assert hub.requests_for("README.md") == []
    assert all(item.headers["authorization"] == f"Bearer {TOKEN}" for item in hub.requests_for(MODEL))
    assert_token_is_nowhere(tmp_path)


def test_a_large_file_comes_from_another_host_which_sees_no_token(hub: HubServer, tmp_path: Path) -> None:
    with served() as store:
        content = hub.repo("owner/name").files[MODEL]
        store.stored[sha256(content)] = content
        hub.moved_to = store.endpoint
        answers, talk = run(hub, tmp_path / "home", ("owner/name", [MODEL, TAGS], tmp_path / "models"))
        assert answers == [None] and held(tmp_path / "models")[MODEL] == content
        assert store.asked == [f"GET /store/{sha256(content)}"] and store.requests[0].sent == len(content)
        assert not store.token_seen_by_store and TOKEN not in str(store.requests)
        assert hub.requests_for(MODEL)[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert store.endpoint not in talk
    assert len(content) >= LARGE > len(held(tmp_path / "models")[TAGS])


# --- what is cut ------------------------------------------------------------------------------------------------------


def test_a_cut_file_goes_on_in_the_same_start_and_in_the_next(hub: HubServer, tmp_path: Path) -> None:
    """Two tries after the one that brought nothing; each that brought something counts anew."""
    cut, busy = Mishap(cut_after=100_000), Mishap(status=503)
    hub.mishaps[MODEL] = [cut, busy, cut, busy, busy, busy]
    call = ("owner/name", [MODEL, TAGS], tmp_path / "models")
    (first, second), talk = run(hub, tmp_path / "home", call, call)
    assert first["where"] == "--repo_id owner/name" and second is None
    assert first["what"] == "model.onnx: the Hub answers with an error (status 503)"
    assert "what has arrived is kept" in first["fix"]
    assert ranges(hub) == [None, *["bytes=100000-"] * 2, *["bytes=200000-"] * 4]
    assert sum(sent(hub)) == SIZE
    assert held(tmp_path / "models") == {name: hub.repo("owner/name").files[name] for name in (MODEL, TAGS)}
    assert "model.onnx: goes on after 0.2 MB" in talk


def test_a_killed_start_goes_on_in_the_next_and_by_who_waits(hub: HubServer, tmp_path: Path) -> None:
    """The first is killed while a second waits for it; the second is killed; the third brings the rest."""
    folder, content = tmp_path / "models", hub.repo("owner/name").files[MODEL]
    hub.mishaps[MODEL] = [Mishap(hold_after=150_000), Mishap(hold_after=100_000)]
    call = ("owner/name", [MODEL], folder)
    first = start(hub, tmp_path / "home", call)
    wait_for(lambda: list(folder.glob("*.part")) != [] and the_part(folder).stat().st_size == 150_000)
    second = start(hub, tmp_path / "home", call)
    wait_for(lambda: sum(line.startswith("GET /api/models/") for line in hub.asked) == 2)
    time.sleep(0.3)
    assert sent(hub) == [150_000]  # it waits
    for process, size in ((first, 250_000), (second, 250_000)):
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_for(lambda size=size: the_part(folder).stat().st_size == size)
        assert list(held(folder)) == [the_part(folder).name]
    hub.go_on.set()
    assert run(hub, tmp_path / "home", call)[0] == [None]
    assert held(folder) == {MODEL: content}
    assert ranges(hub) == [None, "bytes=150000-", "bytes=250000-"]
    assert hub.requests_for(MODEL)[-1].sent == SIZE - 250_000


def test_two_at_once_fetch_it_once(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    hub.mishaps[MODEL] = [Mishap(hold_after=150_000)]
    calls = [("owner/name", [MODEL, TAGS], folder)]
    both = [start(hub, tmp_path / "home", *calls) for _ in range(2)]
    wait_for(lambda: sum(line.startswith("GET /api/models/") for line in hub.asked) == 2 and sent(hub) == [150_000])
    time.sleep(0.5)
    hub.go_on.set()
    talks = []
    for process in both:
        answers, talk = outcome(process)
        assert answers == [None]
        talks.append("another process fetches it; waiting" in talk)
    assert sorted(talks) == [False, True]
    assert sent(hub) == [SIZE]
    assert held(folder) == {name: hub.repo("owner/name").files[name] for name in (MODEL, TAGS)}


def test_versions_are_never_glued_together(hub: HubServer, tmp_path: Path) -> None:
    """What was begun goes on where a new version has the same file, and is begun anew where it has another one."""
    folder = tmp_path / "models"
    old, new = hub.repo("owner/name"), tagger(1)
    give_up = [Mishap(cut_after=100_000), *[Mishap(status=500)] * 3]
    hub.mishaps[MODEL] = list(give_up)
    call = ("owner/name", [MODEL], folder)
    assert run(hub, tmp_path / "home", call)[0] != [None]
    old.files["README.md"] = b"other words"
    old.commits.append(("Other words", ["README.md"], []))
    hub.mishaps[MODEL] = list(give_up)
    assert run(hub, tmp_path / "home", call)[0] != [None]
    assert the_part(folder).read_bytes() == old.files[MODEL][:200_000]
    new.commits += [("", [], [])] * 2
    hub.repos["model", "owner/name"] = new
    assert run(hub, tmp_path / "home", call)[0] == [None]
    assert held(folder) == {MODEL: new.files[MODEL]}
    assert ranges(hub)[1::4] == ["bytes=100000-", "bytes=200000-"] and ranges(hub)[-1] is None


def test_a_server_that_falls_silent_and_then_sends_all_again(hub: HubServer, tmp_path: Path) -> None:
    hub.mishaps[MODEL] = [Mishap(hold_after=100_000), Mishap(ignores_range=True)]
    call = ("owner/name", [MODEL], tmp_path / "models")
    answers, talk = run(hub, tmp_path / "home", call, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert answers == [None] and "ReadTimeout" in talk
    assert held(tmp_path / "models") == {MODEL: hub.repo("owner/name").files[MODEL]}
    assert ranges(hub) == [None, "bytes=100000-"] and sent(hub) == [100_000, SIZE]


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_wrong_bytes_never_get_the_final_name(hub: HubServer, tmp_path: Path) -> None:
    """One byte of a large and of a small file, and sizes that the Hub tells wrongly; the next start brings it."""
    models, tags, long, short = (tmp_path / name for name in ("models", "tags", "long", "short"))
    models.mkdir()
    (models / MODEL).write_bytes(b"the one before")
    hub.mishaps = {MODEL: [Mishap(spoil=True)], TAGS: [Mishap(spoil=True)]}
    for repo_id, size in (("owner/long", SIZE + 1), ("owner/short", SIZE - 1)):
        hub.repos["model", repo_id] = tagger(2)
        hub.repo(repo_id).told_sizes[MODEL] = size
    first, second = ("owner/name", [MODEL], models), ("owner/name", [TAGS], tags)
    wrong_sizes = ("owner/long", [MODEL], long), ("owner/short", [MODEL], short)
    answers, _ = run(hub, tmp_path / "home", first, second, *wrong_sizes)
    for name, answer in zip((MODEL, TAGS, MODEL, MODEL), answers, strict=True):
        assert answer["what"].startswith(f"{name} did not arrive as the Hub says it is (its size or checksum differs)")
        assert "start again" in answer["fix"]
    assert held(models) == {MODEL: b"the one before"} and held(tags) == held(long) == held(short) == {}
    answers, _ = run(hub, tmp_path / "home", first, second)
    assert answers == [None, None]
    files = hub.repo("owner/name").files
    assert held(models) == {MODEL: files[MODEL]} and held(tags) == {TAGS: files[TAGS]}


def test_a_beginning_that_was_spoilt_is_fetched_anew(hub: HubServer, tmp_path: Path) -> None:
    """As a disk leaves it when the power fails; also one that has more than the whole."""
    folder, content = tmp_path / "models", hub.repo("owner/name").files[MODEL]
    call = ("owner/name", [MODEL], folder)
    hub.mishaps[MODEL] = [Mishap(cut_after=100_000), *[Mishap(status=500)] * 3]
    run(hub, tmp_path / "home", call)
    the_part(folder).write_bytes(bytes(100_000))
    part = the_part(folder)
    answers, talk = run(hub, tmp_path / "home", call)
    assert answers == [None] and held(folder) == {MODEL: content}
    assert "what was there of it is spoilt; fetching it anew" in talk
    (folder / MODEL).unlink()
    part.write_bytes(content + b"more")
    assert run(hub, tmp_path / "home", call)[0] == [None] and held(folder) == {MODEL: content}


def test_what_cannot_be_had_is_said_in_a_line(hub: HubServer, tmp_path: Path) -> None:
    hub.repos["model", "owner/gated"] = Repo("public", {"a.onnx": b"a"}, is_gated=True)
    hub.repos["model", "owner/down"] = Repo("public", {"a.onnx": b"a"}, is_down=True)
    hub.repos["model", "owner/refused"] = Repo("public", {"refused.onnx": b"a"})
    hub.repos["model", "owner/gone"] = Repo("public", {"gone.onnx": b"a"})
    hub.repos["model", "owner/other"] = Repo("public", {f"{n}.bin": b"" for n in range(7)} | {"\x1b[2J": b""})
    hub.repos["model", "owner/empty"] = Repo("public")
    hub.repos["model", "owner/large"] = Repo("public", {"a.onnx": b"a"}, told_sizes={"a.onnx": 10**16})
    hub.mishaps = {"refused.onnx": [Mishap(status=403)], "gone.onnx": [Mishap(status=404)]}
    expected = {
        "absent": ("knows no model of that name, or it is private", "check the name"),
        "gated": ("a.onnx: the Hub gives this model only to those who accepted", "huggingface.co/owner/gated, then"),
        "down": (
            "answers with an error (status 500)",
            "or download a.onnx and b.csv from https://huggingface.co/owner/",
        ),
        "refused": ("refuses access (status 403)", "hf auth login"),
        "gone": ("the Hub no longer has gone.onnx as it told", "start again"),
        "other": (
            r"none of the files that are needed; it has \x1b[2J, 0.bin, 1.bin, 2.bin, 3.bin and 3 more",
            "choose",
        ),
        "empty": ("it has no files at all", "choose another model"),
        "large": ("a.onnx needs 10000000000.0 MB, ", "make room there"),
    }
    names = ["a.onnx", "refused.onnx", "gone.onnx"]
    answers, _ = run(hub, tmp_path / "home", *((f"owner/{repo}", names, tmp_path / repo) for repo in expected))
    for (repo, (what, fix)), answer in zip(expected.items(), answers, strict=True):
        assert answer["where"] == f"--repo_id owner/{repo}"
        assert what in answer["what"] and fix in answer["fix"], answer
        assert "\n" not in answer["what"] + answer["fix"]
        assert held(tmp_path / repo) == {}
    assert hub.asked.count("GET /api/models/owner/down") == 3
    assert_token_is_nowhere(tmp_path)


def test_names_that_leave_the_folder_are_refused(hub: HubServer, tmp_path: Path) -> None:
    names = ["../evil", "/tmp/evil", "a/../../evil", "C:evil", "..\\evil", "sub/con.txt", "a\x1bb"]
    hub.repos["model", "owner/evil"] = Repo("public", dict.fromkeys(names, b"evil"))
    answers, _ = run(hub, tmp_path / "home", *(("owner/evil", [name], tmp_path / "models") for name in names))
    assert all("cannot be put into a folder" in answer["what"] and "\x1b" not in answer["what"] for answer in answers)
    assert not any("/resolve/" in line for line in hub.asked)
    assert held(tmp_path) == {} or all(name.startswith("home/") for name in held(tmp_path))


def test_a_full_disk_and_a_folder_that_cannot_be_made_are_told(hub: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    folder, file = tmp_path / "models", tmp_path / "file"
    file.write_text("no folder")
    call, below_file = ("owner/name", [MODEL], folder), ("owner/name", [MODEL], file / "models")
    (full, no_folder), _ = run(hub, tmp_path / "home", call, below_file, largest_file=120_000)
    assert f"model.onnx cannot be kept in {folder}: File too large" in full["what"]
    assert "make room" in full["fix"] and "what has arrived is kept" in full["fix"]
    assert f"cannot be kept in {file / 'models'}: Not a directory" in no_folder["what"]
    assert the_part(folder).stat().st_size == 120_000
    assert run(hub, tmp_path / "home", call)[0] == [None]
    assert held(folder) == {MODEL: hub.repo("owner/name").files[MODEL]} and ranges(hub)[-1] == "bytes=120000-"


def test_without_a_network_there_is_a_line_with_what_to_do(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        environments = {
            "the Hub cannot be reached (ConnectError)": {"HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}"},
            "the Hub cannot be reached (Unsupp": {"HF_ENDPOINT": "nowhere"},
            "the access token on this machine holds a character": {"HF_TOKEN": f"{TOKEN}é"},
            "the Hub may not be asked, because HF_HUB_OFFLINE is set": {"HF_HUB_OFFLINE": "1"},
        }
        clients = {
            words: start(hub, tmp_path / "home", ("owner/name", [MODEL], folder), **environment)
            for words, environment in environments.items()
        }
        for words, client in clients.items():
            (answer,), _ = outcome(client)
            assert answer["what"].startswith(words), answer
            if "token" not in words:
                by_hand = (
                    "download a.onnx and b.csv from https://huggingface.co/owner/name/tree/main and put them into "
                )
                assert f"or {by_hand}{folder}" in answer["fix"]
    assert not folder.exists() and hub.asked == []
