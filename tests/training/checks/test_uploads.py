from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from library.checkpoint.hub_client import Repository
from library.core.errors import Problems, UserError
from library.options.keeping import KeepingOptions
from library.options.upload import UploadOptions
from library.training.checks.uploads import (
    StateReference,
    UploadTarget,
    check_uploads,
    fetch_resumed_state,
    parse_reference,
)
from tests.hub_client_process import answer_of, assert_token_is_nowhere, hub_environment, start_client
from tests.hub_server import READER, TOKEN, Faults, HubServer, Repo, served

# Checks options given as JSON: [upload options, keeping options] each; tells target or problems, and what was fetched.
CHECKER = """
import dataclasses, json, sys
from library.core.errors import Problems
from library.options.keeping import KeepingOptions
from library.options.upload import UploadOptions
from library.training.checks.uploads import check_uploads, fetch_resumed_state
answers = []
for upload, keeping in json.load(sys.stdin):
    problems = Problems()
    options, keeping = UploadOptions(**upload), KeepingOptions(**keeping)
    target = check_uploads(options, keeping, problems)
    folder = fetch_resumed_state(options, keeping, problems)
    answers.append({
        "target": dataclasses.asdict(target) if target else None,
        "folder": str(folder) if folder else None,
        "problems": [(p.where, p.what, p.fix) for p in problems],
    })
heavy = [name for name in ("diffusers", "accelerate", "transformers") if name in sys.modules]
print(json.dumps({"answers": answers, "heavy": heavy}))
"""
Asked = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with served() as server:
        yield server


def told(options: UploadOptions, keeping: KeepingOptions | None = None) -> list[tuple[str, str]]:
    problems = Problems()
    check_uploads(options, keeping or KeepingOptions(), problems)
    return [(problem.where, problem.what) for problem in problems]


def check_there(hub: HubServer, home: Path, *asked: Asked, **environment: str) -> tuple[list[dict[str, Any]], str]:
    settings = hub_environment(home, hub.endpoint, **environment)
    answer, talk = answer_of(start_client(CHECKER, asked, settings))
    assert answer["heavy"] == []  # all problems are told before these are loaded
    return answer["answers"], talk


# --- options ----------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_for() -> None:
    assert told(UploadOptions()) == []
    assert check_uploads(UploadOptions(), KeepingOptions(), Problems()) is None


@pytest.mark.parametrize(
    ("flag", "value"),
    (
        ("huggingface_repo_type", "dataset"),
        ("huggingface_path_in_repo", "loras"),
        ("huggingface_repo_visibility", "public"),
        ("huggingface_token", TOKEN),
        ("save_state_to_huggingface", True),
        ("async_upload", True),
    ),
)
def test_options_that_would_do_nothing(flag: str, value: str | bool) -> None:
    assert told(UploadOptions(**{flag: value})) == [(f"--{flag}", "nothing is uploaded")]  # type: ignore[arg-type]


def test_a_token_alone_serves_to_resume() -> None:
    options = UploadOptions(huggingface_token=TOKEN, resume_from_huggingface=True)
    assert told(options) == []


@pytest.mark.parametrize("name", ("name", "https://huggingface.co/owner/name", "a/b/c", "owner/na me", "./x"))
def test_names_that_no_repository_has(name: str) -> None:
    """HF_HUB_OFFLINE is set in these tests; an advice about that would repeat the wrong name."""
    assert told(UploadOptions(name)) == [("--huggingface_repo_id", f"is no name of a repository: {name!r}")]


@pytest.mark.parametrize("folder", ("/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "C:/a", " a", "a\nb", ".git/a"))
def test_folders_that_no_repository_has(folder: str) -> None:
    problems = told(UploadOptions("owner/name", huggingface_path_in_repo=folder))
    assert ("--huggingface_path_in_repo", f"is no folder of a repository: {folder!r}") in problems


def test_states_that_are_not_saved_are_not_uploaded() -> None:
    options, line = UploadOptions("owner/name", save_state_to_huggingface=True), ("--save_state_to_huggingface",)
    assert (*line, "no states are saved") in told(options)
    for keeping in (KeepingOptions(save_state=True), KeepingOptions(save_state_on_train_end=True)):
        assert (*line, "no states are saved") not in told(options, keeping)


def test_uploads_that_are_forbidden_are_refused() -> None:
    """HF_HUB_OFFLINE is set in these tests."""
    (problem,) = told(UploadOptions("owner/name"))
    assert problem == ("--huggingface_repo_id", "the environment variable HF_HUB_OFFLINE forbids every upload")


# --- what the Hub says ------------------------------------------------------------------------------------------------


def test_the_repository_is_made_before_the_run(hub: HubServer, tmp_path: Path) -> None:
    hub.repos["model", "owner/there"] = Repo("public")
    words = {"huggingface_token": f" {TOKEN} "}
    asked: list[Asked] = [
        ({"huggingface_repo_id": "owner/plain", **words}, {}),
        ({"huggingface_repo_id": "team/shown", "huggingface_repo_visibility": "public", **words}, {}),
        ({"huggingface_repo_id": "owner/odd", "huggingface_repo_visibility": "Public", **words}, {}),
        (
            {
                "huggingface_repo_id": "owner/data", "huggingface_repo_type": "dataset",
                "huggingface_path_in_repo": "a/b", "save_state_to_huggingface": True, "async_upload": True, **words,
            },
            {"save_state": True},
        ),
        ({"huggingface_repo_id": "owner/page", "huggingface_repo_type": "space", **words}, {}),
        ({"huggingface_repo_id": "owner/there", **words}, {}),
    ]  # fmt: skip
    answers, talk = check_there(hub, tmp_path / "home", *asked)
    assert [answer["problems"] for answer in answers] == [[]] * 6
    assert {key: repo.visibility for key, repo in hub.repos.items()} == {
        ("model", "owner/there"): "public",
        ("model", "owner/plain"): "private",
        ("model", "team/shown"): "public",
        ("model", "owner/odd"): "private",
        ("dataset", "owner/data"): "private",
        ("space", "owner/page"): "private",
    }
    assert UploadTarget(**answers[0]["target"]) == UploadTarget("owner/plain", "model", "", False, False)
    assert UploadTarget(**answers[3]["target"]) == UploadTarget("owner/data", "dataset", "a/b", False, True)
    assert talk == "owner/there is public and stays so; only a new repository would be made private\n"
    assert_token_is_nowhere(tmp_path)


def test_a_token_that_will_not_do_is_refused_before_the_run(hub: HubServer, tmp_path: Path) -> None:
    where = "--huggingface_repo_id"
    cases = {
        None: (where, "there is no access token to upload with"),
        "hf_wrong": (f"{where} owner/x", "the Hub refuses the access token (status 401)"),
        READER: (f"{where} owner/x", "the access token may only read"),
        "hf_ä": ("HF_TOKEN", "the access token holds a character that none has"),
    }
    asked: Asked = ({"huggingface_repo_id": "owner/x"}, {})
    for token, expected in cases.items():
        answers, talk = check_there(hub, tmp_path / "home", asked, **({"HF_TOKEN": token} if token else {}))
        assert [tuple(problem[:2]) for problem in answers[0]["problems"]] == [expected]
        assert token is None or token not in str(answers) + talk
    others: Asked = ({"huggingface_repo_id": "somebody/x"}, {})
    (answer,), _ = check_there(hub, tmp_path / "home", others, HF_TOKEN=TOKEN)
    assert answer["problems"][0][1] == "the access token may write for owner, team only"
    assert hub.repos == {}


def test_the_token_of_the_login_store_serves(hub: HubServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "token").write_text(TOKEN)
    (answer,), _ = check_there(hub, home, ({"huggingface_repo_id": "owner/x"}, {}))
    assert answer["problems"] == [] and ("model", "owner/x") in hub.repos


def test_one_process_of_several_asks(hub: HubServer, tmp_path: Path) -> None:
    asked: Asked = ({"huggingface_repo_id": "owner/x"}, {})
    (answer,), _ = check_there(hub, tmp_path / "home", asked, HF_TOKEN=TOKEN, RANK="1")
    assert answer["problems"] == [] and answer["target"] and hub.asked == []


def test_a_hub_that_is_away_is_a_warning(hub: HubServer, tmp_path: Path) -> None:
    asked: Asked = ({"huggingface_repo_id": "owner/x"}, {})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (answer,), talk = check_there(hub, tmp_path / "home", asked, HF_TOKEN=TOKEN, HF_ENDPOINT=nobody)
    assert answer["problems"] == [] and answer["target"]
    assert talk == "the Hub cannot be reached (ConnectError): uploads wait until it can be\n"
    hub.faults = Faults(down=True)
    (answer,), talk = check_there(hub, tmp_path / "home", asked, HF_TOKEN=TOKEN)
    assert answer["problems"] == []
    assert talk == "the Hub answers with an error (status 503): uploads wait until it can be\n"


# --- states on the Hub ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference"),
    (
        (
            "your-hf-name/your-model/path/test-000002-state:main:model",
            StateReference(Repository("your-hf-name/your-model"), "path/test-000002-state", "main"),
        ),
        ("o/n/x-state", StateReference(Repository("o/n"), "x-state", "main")),
        ("o/n/a/x-state/", StateReference(Repository("o/n"), "a/x-state", "main")),
        ("o/n/x-state/:v1", StateReference(Repository("o/n"), "x-state", "v1")),
        ("o/n/x-state:refs/pr/1", StateReference(Repository("o/n"), "x-state", "refs/pr/1")),
        ("o/n/a/b/x-state:v1:dataset", StateReference(Repository("o/n", "dataset"), "a/b/x-state", "v1")),
    ),
)
def test_references(text: str, reference: StateReference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    ("text", "why"),
    (
        ("latest", "does not begin with OWNER/NAME"),
        ("https://huggingface.co/o/n/x", "does not begin with OWNER/NAME"),
        ("C:/o/n/x", "does not begin with OWNER/NAME"),
        ("o/n", "names no folder"),
        ("o/n/:main", "names no folder"),
        ("o/n/x//", "names no folder"),
        ("o/n/../x", "names no folder"),
        ("o/n/x::model", "revision between the colons is empty"),
        ("o/n/x:", "revision between the colons is empty"),
        ("o/n/x:main:models", "the kind 'models' of the repository is none of model, dataset, space"),
        ("o/n/x:main:model:", "more than two colons"),
    ),
)
def test_references_of_another_form(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        parse_reference(text)
    assert "{repo_id}/{path_in_repo}:{revision}:{repo_type}" in caught.value.problems[0].fix


def test_a_state_without_a_name() -> None:
    problems = Problems()
    assert fetch_resumed_state(UploadOptions(resume_from_huggingface=True), KeepingOptions(), problems) is None
    assert [problem.where for problem in problems] == ["--resume_from_huggingface"]
    assert fetch_resumed_state(UploadOptions(), KeepingOptions(resume="x"), Problems()) is None


def resuming(text: str) -> Asked:
    return {"resume_from_huggingface": True}, {"resume": text}


def test_a_state_is_fetched_whole_and_alone(hub: HubServer, tmp_path: Path) -> None:
    """Through errors and cuts, and the second time from the cache."""
    hub.repos["dataset", "team/name"] = repo = Repo("private")
    state = {"manifest.json": b"{}", "deep/w[1].safetensors": bytes(range(256)) * 400, "optimizer.json": b"[1, 2]"}
    repo.files = {f"runs [1]/x-state/{name}": content for name, content in state.items()}
    repo.files |= {"runs [1]/x-state2/manifest.json": b"no", "runs [1]/x.safetensors": b"no"}
    hub.faults = Faults(seed=1, share=0.2, most=1)
    asked = resuming("team/name/runs [1]/x-state:main:dataset")
    (answer,), _ = check_there(hub, tmp_path / "home", asked, HF_TOKEN=TOKEN)
    hub.faults = Faults()
    if answer["folder"] is None:  # the first question is asked once, so that a Hub that is away is told soon
        (answer,), _ = check_there(hub, tmp_path / "home", asked, HF_TOKEN=TOKEN)
    folder = Path(answer["folder"])
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert answer["problems"] == [] and found == state
    assert sorted(path.name for path in folder.parent.iterdir()) == ["x-state"]

    again, _ = check_there(hub, tmp_path / "home", asked, HF_TOKEN=TOKEN)
    downloads = [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    assert again[0]["folder"] == str(folder) and len(downloads) <= 2 * len(state)
    before = len(hub.asked)
    offline, _ = check_there(hub, tmp_path / "home", asked, HF_HUB_OFFLINE="1")
    assert offline[0]["folder"] == str(folder) and len(hub.asked) == before
    assert_token_is_nowhere(tmp_path)


def test_states_that_cannot_be_fetched_are_told_in_a_sentence(hub: HubServer, tmp_path: Path) -> None:
    hub.repos["model", "owner/name"] = repo = Repo("private")
    repo.files = {"a/x-000002-state/manifest.json": b"{}", "a/x.safetensors": b""}
    hub.repos["model", "owner/bare"] = Repo("private")
    cases = {
        "owner/absent/x-state": ("knows no repository of that name and kind, or it is private", "hf auth login"),
        "owner/name/a/x-000003-state": (
            "has no folder a/x-000003-state",
            "did you mean owner/name/a/x-000002-state:main:model?",
        ),
        "owner/name/zzzzz": ("has no folder zzzzz", "the states there: owner/name/a/x-000002-state:main:model"),
        "owner/bare/x-state": ("has no folder x-state", "no state is there"),
        "owner/name/a/x-000002-state:other": ("no such revision", "branch, tag or commit"),
        "owner/name": ("names no folder", "{repo_id}/"),
    }
    answers, _ = check_there(hub, tmp_path / "home", *map(resuming, cases), HF_TOKEN=TOKEN)
    for answer, (text, (what, fix)) in zip(answers, cases.items(), strict=True):
        ((where, told_what, told_fix),) = answer["problems"]
        assert where in ("--resume", f"--resume {text}")
        assert what in told_what and fix in told_fix, (text, told_what, told_fix)
    asked = resuming("owner/name/a/x-000002-state")
    (offline,), _ = check_there(hub, tmp_path / "home", asked, HF_HUB_OFFLINE="1")
    assert "not in the cache" in offline["problems"][0][1]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (away,), _ = check_there(hub, tmp_path / "home", asked, HF_ENDPOINT=nobody)
    assert "cannot be reached" in away["problems"][0][1]


def test_a_folder_that_is_no_state_is_refused_before_anything_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    """The states below it are told as `--resume` takes them, also those that other tools wrote."""
    hub.repos["dataset", "owner/name"] = repo = Repo("private")
    ours = {f"runs/x-00000{n}-state/{name}": b"{}" for n in (1, 2) for name in ("manifest.json", "facts.json")}
    model = {"runs/model/text_encoder/model.safetensors": b"", "runs/model/model_index.json": b"{}"}
    foreign = {f"runs/foreign/{name}": b"{}" for name in ("model.safetensors", "optimizer.bin")}
    repo.files = ours | model | foreign
    states = [f"owner/name/runs/{name}:main:dataset" for name in ("foreign", "x-000001-state", "x-000002-state")]
    asked = [resuming(f"owner/name/runs{rest}:main:dataset") for rest in ("", "/model", "/model/text_encoder")]
    (parent, whole, part), _ = check_there(hub, tmp_path / "home", *asked, HF_TOKEN=TOKEN)
    assert parent["problems"][0][1:] == ["runs is no state, but holds some", f"the states in it: {', '.join(states)}"]
    for answer in (whole, part):
        assert answer["problems"][0][1].endswith(" is no state") and answer["folder"] is None
    assert not any("/resolve/" in line for line in hub.asked)

    good = [resuming(states[0]), resuming(states[2].replace(":main", "/:main"))]
    answers, _ = check_there(hub, tmp_path / "home", *good, HF_TOKEN=TOKEN)
    assert [Path(answer["folder"]).name for answer in answers] == ["foreign", "x-000002-state"]
