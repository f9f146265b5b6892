"""Against a server of our own that answers as the Hub does; the client runs in processes of its own, because
huggingface_hub reads its environment when it is imported."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from library.core.errors import UserError
from library.models.hub import Located, is_repo_id, locate
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.stable_diffusion import StableDiffusion

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_doNotTellAnybodyThisToken"
FLAG = "--pretrained_model_name_or_path"
WEIGHTS = {"diffusion_pytorch_model.safetensors", "model.safetensors"}

# Runs calls given as JSON on standard input, each with the time it took.
CLIENT = """
import json, sys, time
from library.core.errors import UserError
from library.models.hub import fetch_weights, locate
answers = []
for name, arguments in json.load(sys.stdin):
    start = time.monotonic()
    try:
        found = {"locate": locate, "fetch_weights": fetch_weights}[name](*arguments)
        answer = {"path": str(getattr(found, "path", found)), "repo_id": getattr(found, "repo_id", None)}
    except UserError as error:
        (problem,) = error.problems
        answer = {"where": problem.where, "what": problem.what, "fix": problem.fix}
    answers.append({**answer, "seconds": time.monotonic() - start})
print(json.dumps(answers))
"""


@dataclass
class FakeHub:
    """A server with one folder per model below `root`, and what it was asked, as "METHOD path".

    A model named `gated` is shown to all and given to nobody, `private` answers as if it were not there, `down` fails.
    """

    root: Path
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def downloads(self, repo_id: str) -> list[str]:
        """The files of the model that were asked for."""
        start = f"GET /{repo_id}/resolve/{COMMIT}/"
        return sorted(line.removeprefix(start) for line in self.asked if line.startswith(start))

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"] and len(parts) >= 4
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        folder = self.root / repo
        if repo.endswith("/down"):
            send(request, 500, b"")
        elif repo.endswith("/private") or not folder.is_dir():
            send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif is_api and parts[4:5] == ["revision"] and parts[5] not in ("main", COMMIT):
            send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif is_api:
            send(request, 200, json.dumps(self.describe(folder, parts[4:])).encode())
        elif repo.endswith("/gated"):
            send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            content = (folder / "/".join(parts[4:])).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            send(request, 200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def describe(self, folder: Path, what: list[str]) -> Any:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if what[:1] == ["tree"]:
            return [
                {
                    "type": "file",
                    "path": name,
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
                for name, path in zip(names, files, strict=True)
            ]
        return {"id": str(folder.relative_to(self.root)), "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)


def start_client(home: Path, calls: list[tuple[str, list[Any]]], **environment: str) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    own = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        env={**kept, **own, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(calls))
    process.stdin.close()
    process.stdin = None
    return process


def answers_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert TOKEN not in out + err
    return list(json.loads(out))


def run_client(home: Path, *calls: tuple[str, list[Any]], **environment: str) -> list[dict[str, Any]]:
    return answers_of(start_client(home, list(calls), **environment))


@pytest.fixture(scope="module")
def hub(model_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    root = tmp_path_factory.mktemp("hub")
    whole = Path(shutil.copytree(model_files / "sd2_v", root / "owner" / "whole"))
    # what is beside one set of weights in published models
    for name in (
        "v2.safetensors", "v2.ckpt", "README.md", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_flax_model.msgpack", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/model.onnx", "text_encoder/pytorch_model.bin", "safety_checker/config.json",
        "safety_checker/model.safetensors",
    ):  # fmt: skip
        (whole / name).parent.mkdir(exist_ok=True)
        (whole / name).write_bytes(b"not to be fetched")
    half = Path(shutil.copytree(model_files / "sd1", root / "owner" / "half"))
    for path in [path for path in half.rglob("*.safetensors") if path.name in WEIGHTS]:
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    shutil.copytree(model_files / "sd1" / "vae", root / "owner" / "vae")
    for name in ("gated", "down"):
        shutil.copytree(model_files / "sd1", root / "owner" / name, ignore=shutil.ignore_patterns("*.safetensors"))
    shards = root / "owner" / "shards"
    shards.mkdir()
    (shards / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    (shards / "diffusion_pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    for name in (*names, "diffusion_pytorch_model.fp16.bin"):
        (shards / name).write_bytes(b"weights")
    for name in ("one_file/b.safetensors", "one_file/a.ckpt", "no_weights/config.json", "elsewhere/README.md"):
        (root / "owner" / name).parent.mkdir(exist_ok=True)
        (root / "owner" / name).write_bytes(b"{}")
    server = FakeHub(root)
    yield server
    server.stop()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def assert_token_is_nowhere(home: Path) -> None:
    for path in home.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("owner/name", "stabilityai/stable-diffusion-2-1", "a/B_c.d-1", "CompVis/v1.4"))
def test_ids_of_the_hub(name: str) -> None:
    assert is_repo_id(name)


@pytest.mark.parametrize(
    "name",
    (
        "", " ", "name", "/owner/name", "owner/name/", "a/b/c", "./owner/name", "../name", "owner/..", "own..er/name",
        "C:/name", "C:\\models\\name", "owner\\name", "owner/model.safetensors", "owner/model.CKPT", "owner/vae.pt",
        "~/name", "owner/na me", "owner/näme", "owner/a--b", "owner/name.git", "owner/" + "x" * 100, "owner/name\n",
        "https://huggingface.co/owner/name",
    ),
)  # fmt: skip
def test_other_texts_are_no_ids(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_repo_id(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such file or folder|is a web address") as caught:
        locate(name, FLAG)
    assert caught.value.problems[0].where == f"{FLAG} {name}"


def test_what_is_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "model.safetensors").touch()
    for name in ("owner/name", "model.safetensors", str(tmp_path / "model.safetensors")):
        assert locate(name, FLAG) == Located(Path(name), None)
    with pytest.raises(UserError, match=r"no such file or folder\n.*did you mean model\.safetensors\?"):
        locate("mode.safetensors", FLAG)


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_model_comes_in_two_steps_and_then_from_the_cache(
    hub: FakeHub, home: Path, models_in_memory: dict[str, StableDiffusion]
) -> None:
    configs = ["model_index.json", "scheduler/scheduler_config.json"]
    configs += [f"{part}/config.json" for part in ("text_encoder", "unet", "vae")]
    (located,) = run_client(home, ("locate", ["owner/whole", FLAG]), HF_ENDPOINT=hub.endpoint)
    assert located["repo_id"] == "owner/whole"
    assert hub.downloads("owner/whole") == sorted(configs)
    identity = identify(Path(located["path"]))
    assert (identity.family, identity.prediction_type, identity.layout) == ("sd2", "v_prediction", "diffusers")
    assert identity.form == "diffusers_safetensors"

    (fetched,) = run_client(home, ("fetch_weights", ["owner/whole", FLAG]), HF_ENDPOINT=hub.endpoint)
    assert fetched["path"] == located["path"]
    weights = ["text_encoder/model.safetensors"]
    weights += [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    assert hub.downloads("owner/whole") == sorted(configs + weights)
    models = load_stable_diffusion(identify(Path(fetched["path"])), "v_prediction")
    expected = models_in_memory["sd2_v"].unet.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in models.unet.state_dict().items())

    asked = len(hub.asked)
    calls = (("locate", ["owner/whole", FLAG]), ("fetch_weights", ["owner/whole", FLAG]))
    for environment in ({"HF_ENDPOINT": hub.endpoint}, {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "1"}):
        again = run_client(home, *calls, **environment)
        assert [answer["path"] for answer in again] == [located["path"]] * 2
    assert hub.asked[asked:] == []
    assert_token_is_nowhere(home)


def test_other_sets_of_weights(hub: FakeHub, home: Path) -> None:
    """Half precision where there is no other, a VAE alone, the VAE of a whole model, and weights in several files."""
    half, vae, whole, shards = run_client(
        home,
        ("fetch_weights", ["owner/half", FLAG]),
        ("fetch_weights", ["owner/vae", "--vae", ["vae"]]),
        ("fetch_weights", ["owner/whole", "--vae", ["vae"]]),
        ("fetch_weights", ["owner/shards", "--vae", ["vae"]]),
        HF_ENDPOINT=hub.endpoint,
    )
    load_stable_diffusion(identify(Path(half["path"])), "epsilon")
    names = {path.name for path in Path(vae["path"]).iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}
    weights = {path.relative_to(whole["path"]).as_posix() for path in Path(whole["path"]).rglob("*.safetensors")}
    assert weights == {"vae/diffusion_pytorch_model.safetensors"}
    assert {path.name for path in Path(shards["path"]).iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.bin.index.json",
        "diffusion_pytorch_model-00001-of-00002.bin",
        "diffusion_pytorch_model-00002-of-00002.bin",
    }
    # all of it is now in the cache, of the whole model the VAE only
    calls = [("fetch_weights", [f"owner/{name}", "--vae", ["vae"]]) for name in ("vae", "whole", "shards")]
    calls.append(("fetch_weights", ["owner/whole", FLAG]))
    *again, incomplete = run_client(home, *calls, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert [answer["path"] for answer in again] == [vae["path"], whole["path"], shards["path"]]
    assert "HF_HUB_OFFLINE" in incomplete["what"]


def test_a_cache_that_is_not_whole_is_completed(hub: FakeHub, home: Path) -> None:
    call = ("locate", ["owner/half", FLAG])
    (located,) = run_client(home, call, HF_ENDPOINT=hub.endpoint)
    config = Path(located["path"]) / "unet" / "config.json"
    content = config.read_text()
    config.unlink()
    (answer,) = run_client(home, call, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert "the cache does not hold all of the model" in answer["what"]
    (answer,) = run_client(home, call, HF_ENDPOINT=hub.endpoint)
    assert answer["path"] == located["path"] and config.read_text() == content


def test_weights_come_from_the_version_that_was_checked(hub: FakeHub, home: Path) -> None:
    """Here one that the Hub has no more, because its owner wrote the history anew."""
    (located,) = run_client(home, ("locate", ["owner/half", FLAG]), HF_ENDPOINT=hub.endpoint)
    snapshot, former = Path(located["path"]), "f" * 40
    snapshot.rename(snapshot.with_name(former))
    (snapshot.parents[1] / "refs" / "main").write_text(former)
    (answer,) = run_client(home, ("fetch_weights", ["owner/half", FLAG]), HF_ENDPOINT=hub.endpoint)
    assert "no longer has the version" in answer["what"]
    assert str(home) in answer["fix"]


REFUSED = {
    "owner/private": ("knows no model of that name, or it is private", "hf auth login"),
    "owner/absent": ("no such folder here, and the Hub knows no model of that name", "check the name"),
    "owner/gated": ("only to those who accepted its licence", "huggingface.co/owner/gated, then log in"),
    "owner/down": ("answers with an error (status 500)", "try again later"),
    "owner/one_file": ("no Diffusers model, but has a.ckpt, b.safetensors", "hf download owner/one_file a.ckpt"),
    "owner/elsewhere": ("no such folder here, and what the Hub has under that name is no Diffusers model", "choose"),
}


def test_what_the_hub_will_not_give_is_said_in_a_line(hub: FakeHub, home: Path) -> None:
    calls: list[tuple[str, list[Any]]] = [("locate", [name, FLAG]) for name in REFUSED]
    calls.append(("fetch_weights", ["owner/no_weights", "--vae", ["vae"]]))
    *answers, no_weights = run_client(home, *calls, HF_ENDPOINT=hub.endpoint)
    for (name, (what, fix)), answer in zip(REFUSED.items(), answers, strict=True):
        assert answer["where"] == f"{FLAG} {name}"
        assert what in answer["what"] and fix in answer["fix"], answer
        assert "\n" not in answer["what"] + answer["fix"]
        assert answer["seconds"] < 10
    assert "no PyTorch weights in vae" in no_weights["what"]
    assert_token_is_nowhere(home)


def test_without_a_hub_the_answer_comes_soon(hub: FakeHub, home: Path) -> None:
    """Nobody listens, somebody listens and never answers, no address, an impossible token, no network wanted."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        environments = {
            "ConnectError": {"HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}"},
            "ReadTimeout": {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            "cannot be reached": {"HF_ENDPOINT": "nowhere"},
            "access token": {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": f"{TOKEN}é"},
            "HF_HUB_OFFLINE is set": {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "1"},
        }
        call = ("locate", ["owner/name", FLAG])
        clients = {words: start_client(home, [call], **values) for words, values in environments.items()}
        for words, client in clients.items():
            (answer,) = answers_of(client)
            assert words in answer["what"], answer
            assert answer["what"].startswith("no such folder here, and the ")
            assert answer["seconds"] < 10
