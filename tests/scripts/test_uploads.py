"""train_network.py with uploads, against a server of our own that answers as the Hub does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from library.core.errors import EXIT_INCOMPLETE
from tests.hub_client_process import assert_token_is_nowhere, hub_environment
from tests.hub_server import TOKEN, Faults, HubServer, served
from tests.training.runs import ROOT, photo_words

TIME = {"SOURCE_DATE_EPOCH": "1700000000"}


@dataclass(frozen=True)
class Uploaded:
    """A run that uploaded all it saved, and what was seen of it."""

    hub: HubServer
    folder: Path
    home: Path
    titles: set[tuple[int, str]]
    talk: str


def words_of(model: Path, photos: Path, out: Path) -> list[str]:
    sizes = ["--network_dim", "2", "--cache_latents", "--max_train_steps", "4", "--learning_rate", "1e-3"]
    data = [*photo_words(photos), "--max_data_loader_n_workers", "0"]
    return ["--pretrained_model_name_or_path", str(model), *data, *sizes, "--output_dir", str(out)]


def start(words: list[str], home: Path, endpoint: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train_network.py", *words],
        cwd=ROOT,
        env=hub_environment(home, endpoint, **TIME, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    talk, _ = process.communicate(timeout=240)
    return process.returncode, talk


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def titles_of(process: int) -> dict[int, str]:
    """The command lines of a process and of those that it started, by their numbers."""
    titles = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_bytes().rpartition(b") ")[2].split()[1])
            if process in (int(entry.name), parent):
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
        except OSError:  # it has ended
            continue
    return titles


@pytest.fixture(scope="module")
def uploaded(
    tiny_models: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Uploaded]:
    folder, home = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("home")
    with served() as hub:
        hub.faults = Faults(seed=3, share=0.1, most=1)
        words = words_of(tiny_models["sd1"], photos, folder)
        words += ["--output_name", "style", "--save_every_n_steps", "2", "--save_state"]
        words += ["--huggingface_repo_id", "owner/style", "--huggingface_path_in_repo", "loras/style"]
        words += ["--save_state_to_huggingface", "--async_upload", "--huggingface_token", TOKEN]
        words += ["--logging_dir", str(folder / "logs"), "--max_data_loader_n_workers", "1"]
        process = start(words, home, hub.endpoint)
        titles: set[tuple[int, str]] = set()
        while process.poll() is None and sys.platform == "linux":
            if hub.asked:  # options are read, so the token has been wiped
                titles |= set(titles_of(process.pid).items())
            time.sleep(0.05)
        code, talk = ended(process)
        assert code == 0, talk[-4000:]
        yield Uploaded(hub, folder, home, titles, talk)


def test_all_that_is_saved_arrives(uploaded: Uploaded) -> None:
    local = {
        f"loras/style/{name}": content
        for name, content in files_below(uploaded.folder).items()
        if name.split("/")[0].endswith((".safetensors", "-state"))
    }
    names = {name.removeprefix("loras/style/").split("/")[0] for name in local}
    stems = ("style-step00000002", "style-step00000004", "style")
    assert names == {f"{stem}{ending}" for stem in stems for ending in (".safetensors", "-state")}
    repo = uploaded.hub.repo("owner/style")
    assert repo.files == local
    assert repo.visibility == "private"
    assert len(repo.commits) == len(names)  # a state is one commit
    assert f"uploaded: {len(names)} to {uploaded.hub.endpoint}/owner/style" in uploaded.talk  # in the summary
    assert not (uploaded.folder / ".style-uploads").exists()


def test_the_token_is_nowhere(uploaded: Uploaded) -> None:
    assert TOKEN not in uploaded.talk
    assert "--huggingface_token on the command line can be read by every user" in uploaded.talk
    assert_token_is_nowhere(uploaded.folder, uploaded.home)
    assert not any(TOKEN.encode() in content for content in uploaded.hub.repo("owner/style").files.values())
    assert not uploaded.hub.token_seen_by_store
    if sys.platform == "linux":
        trains = {number: title for number, title in uploaded.titles if "train_network.py" in title}
        assert len(trains) > 1, "the loader process has the same title"
        assert all("--huggingface_token" in title for title in trains.values())
        assert not any(TOKEN in title for _, title in uploaded.titles)


@pytest.mark.slow
def test_a_state_on_the_hub_trains_on(
    uploaded: Uploaded, tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    reference = "owner/style/loras/style/style-step00000002-state:main:model"
    words = words_of(tiny_models["sd1"], photos, tmp_path / "out")
    words += ["--output_name", "style", "--resume", reference, "--resume_from_huggingface"]
    process = start(words, tmp_path / "home", uploaded.hub.endpoint, HF_TOKEN=TOKEN)
    code, talk = ended(process)
    assert code == 0, talk[-4000:]
    ours, theirs = (folder / "style.safetensors" for folder in (tmp_path / "out", uploaded.folder))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_training_ends_well_without_the_hub_and_the_next_start_uploads(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """What waits in the queue of a run that was killed while the Hub was away."""
    with served() as hub:
        words = words_of(tiny_models["sd1"], photos, tmp_path / "out")
        words += ["--output_name", "style", "--save_every_n_steps", "1", "--huggingface_repo_id", "owner/style"]
        hub.faults = Faults(down=True)
        process = start(words, tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)
        finished = tmp_path / "out" / "style.safetensors"
        until = time.monotonic() + 200
        while not finished.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)  # the last file is queued
        process.kill()
        _, talk = ended(process)
        assert finished.exists(), talk[-4000:]
        assert "status 503" in talk and hub.repos == {}
        assert_token_is_nowhere(tmp_path)

        first = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.safetensors")}
        assert len(first) == 5
        for path in (tmp_path / "out").glob("*.safetensors"):
            path.unlink()
        hub.faults = Faults()
        code, talk = ended(start([*words, "--overwrite"], tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN))
        assert code == 0, talk[-4000:]
        assert "of an earlier run come first" in talk
        assert hub.repo("owner/style").files == first  # both runs are equal, byte by byte


@pytest.mark.slow  # tests/training/requests/test_watch.py and tests/checkpoint/test_hub_uploads.py have its two halves
@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal as Linux and macOS have it")
def test_a_sigterm_while_the_end_waits_for_the_hub_ends_the_waiting(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    with served() as hub:
        words = [*words_of(tiny_models["sd1"], photos, tmp_path / "out"), "--huggingface_repo_id", "owner/style"]
        hub.faults = Faults(down=True)
        process = start(words, tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN)
        assert process.stdout is not None
        said = next((line for line in process.stdout if line.startswith("uploading ")), "")
        assert "Ctrl-C leaves them to the next start" in said
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        code, talk = ended(process)
    assert code == EXIT_INCOMPLETE, talk[-4000:]
    assert "4 updates in " in talk and "last.safetensors is not uploaded to owner/style" in talk
    assert "Traceback" not in talk
