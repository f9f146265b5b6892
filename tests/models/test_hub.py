"""Against a server of our own that answers as the Hub does; the client runs in processes of its own, because
huggingface_hub reads its environment when it is imported."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from library.core.errors import UserError
from library.core.hub_names import is_repo_id
from library.models.hub import Located, locate
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.stable_diffusion import StableDiffusion
from tests.hub_client_process import answer_of, assert_token_is_nowhere, hub_environment, start_client
from tests.hub_server import TOKEN, HubServer, Repo, served

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


def client_environment(home: Path, **more: str) -> dict[str, str]:
    endpoint = more.pop("HF_ENDPOINT")
    settings = hub_environment(home, endpoint, **{"HF_TOKEN": TOKEN, **more})
    return {key: value for key, value in settings.items() if not key.startswith("TRANSFORMERS_")}


def run_client(home: Path, *calls: tuple[str, list[Any]], **environment: str) -> list[dict[str, Any]]:
    answers, _ = answer_of(start_client(CLIENT, list(calls), client_environment(home, **environment)))
    return list(answers)


@pytest.fixture(scope="module")
def hub(model_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
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
    with served() as server:
        server.repos = {("model", f"owner/{path.name}"): Repo.of_folder(path) for path in (root / "owner").iterdir()}
        server.repo("owner/gated").is_gated = True
        server.repo("owner/down").is_down = True
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


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
    hub: HubServer, home: Path, models_in_memory: dict[str, StableDiffusion]
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


def test_other_sets_of_weights(hub: HubServer, home: Path) -> None:
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


def test_a_cache_that_is_not_whole_is_completed(hub: HubServer, home: Path) -> None:
    call = ("locate", ["owner/half", FLAG])
    (located,) = run_client(home, call, HF_ENDPOINT=hub.endpoint)
    config = Path(located["path"]) / "unet" / "config.json"
    content = config.read_text()
    config.unlink()
    (answer,) = run_client(home, call, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")
    assert "the cache does not hold all of the model" in answer["what"]
    (answer,) = run_client(home, call, HF_ENDPOINT=hub.endpoint)
    assert answer["path"] == located["path"] and config.read_text() == content


def test_weights_come_from_the_version_that_was_checked(hub: HubServer, home: Path) -> None:
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


def test_what_the_hub_will_not_give_is_said_in_a_line(hub: HubServer, home: Path) -> None:
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


def test_without_a_hub_the_answer_comes_soon(hub: HubServer, home: Path) -> None:
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
        clients = {
            words: start_client(CLIENT, [call], client_environment(home, **values))
            for words, values in environments.items()
        }
        for words, client in clients.items():
            (answer,), _ = answer_of(client)
            assert words in answer["what"], answer
            assert answer["what"].startswith("no such folder here, and the ")
            assert answer["seconds"] < 10
