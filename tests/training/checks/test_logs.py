"""What is told about trackers before a model is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import train_network
from library.core.errors import Problem, Problems, UserError
from library.options.logs import LogOptions
from library.training.checks.logs import check_logs
from library.training.logs.settings import active_trackers, read_tracker_settings

KEY = "0123456789abcdef" * 3


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def problems_of(**given: Any) -> list[Problem]:
    problems = Problems()
    check_logs(LogOptions(**given), problems)
    return list(problems)


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "trackers.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("given", "active"),
    [
        ({}, ()),
        ({"logging_dir": "logs"}, ("tensorboard",)),
        ({"logging_dir": "logs", "log_with": "tensorboard"}, ("tensorboard",)),
        ({"log_with": "wandb"}, ("wandb",)),
        ({"logging_dir": "logs", "log_with": "wandb"}, ("wandb",)),
        ({"logging_dir": "logs", "log_with": "all"}, ("tensorboard", "wandb")),
    ],
)
def test_what_is_logged_with(given: dict[str, Any], active: tuple[str, ...], tmp_path: Path) -> None:
    assert active_trackers(LogOptions(**given)) == active
    if "logging_dir" in given:
        given = given | {"logging_dir": str(tmp_path / "logs")}
    assert problems_of(**given) == []


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"log_with": "tensorboard"}, "--log_with tensorboard"),
        ({"log_with": "all"}, "--log_with all"),
        ({"log_prefix": "cats-"}, "--log_prefix"),
        ({"log_prefix": "cats-", "log_with": "wandb"}, "--log_prefix"),
        ({"log_tracker_name": "cats"}, "--log_tracker_name"),
        ({"log_tracker_config": "a.toml"}, "--log_tracker_config"),
        ({"wandb_run_name": "cats"}, "--wandb_run_name"),
        ({"wandb_run_name": "cats", "logging_dir": "."}, "--wandb_run_name"),
        ({"wandb_api_key": KEY}, "--wandb_api_key"),
    ],
)
def test_an_option_without_its_tracker_is_told(given: dict[str, Any], where: str) -> None:
    assert [problem.where for problem in problems_of(**given)] == [where]


@pytest.mark.parametrize(("name", "given"), [("wandb", {"log_with": "wandb"}), ("tensorboard", {"logging_dir": "."})])
def test_a_missing_package_is_told_with_its_name(
    name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what Python takes for a package that is not there
    (problem,) = problems_of(**given)
    assert problem.what == f"the package {name} is not installed"
    assert f"pip install {name}" in problem.fix


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("[wandb]\nnotes = 'x'\ntag = ['a']\n", "wandb knows no tag", "did you mean tags?"),
        ("[wandb]\nproject = 'x'\n", "project cannot be set here", "say it with --log_tracker_name"),
        ("[wandb.settings]\napi_key = 'x'\n", "settings.api_key cannot be set here", "run `wandb login`"),
        ("[wandb.settings]\nconsoles = 'x'\n", "wandb knows no settings.consoles", "did you mean console?"),
        ("[tensorboard]\nlog_dir = 'x'\n", "log_dir cannot be set here", "say it with --logging_dir"),
        ("[tensorboard]\nflush_sec = 3\n", "tensorboard knows no flush_sec", "did you mean flush_secs?"),
        ("[tensorbord]\nflush_secs = 3\n", "[tensorbord] is the table of no tracker", "did you mean tensorboard?"),
        ("[comet_ml]\n", "[comet_ml] is the table of no tracker", "the tables are: [tensorboard], [wandb]"),
        ("name = 'x'\n", "name stands in no table", "put it below one of"),
    ],
)
def test_what_means_nothing_in_the_settings_file_is_told(tmp_path: Path, text: str, what: str, fix: str) -> None:
    file = config(tmp_path, text)
    (problem,) = problems_of(logging_dir=str(tmp_path), log_with="all", log_tracker_config=file)
    assert problem.what == what
    assert problem.fix.startswith(fix)
    assert problem.where.startswith(file)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[tensorboard]\nmax_queue = 'x'\n", "max_queue cannot be 'x': must be a whole number from 1 on"),
        ("[tensorboard]\nmax_queue = true\n", "max_queue cannot be True"),
        ("[tensorboard]\nflush_secs = -1\n", "flush_secs cannot be -1"),
        ("[tensorboard]\nfilename_suffix = 3\n", "filename_suffix cannot be 3: must be text"),
        ("[tensorboard]\nfilename_suffix = '/x'\n", "filename_suffix cannot be '/x': must be a plain name"),
        ("[wandb]\ntags = 'abc'\n", "tags cannot be 'abc'"),
        ("[wandb]\ngroup = 3\n", "group cannot be 3: Input should be a valid string"),
        ("[wandb]\nmode = 'sideways'\n", "mode cannot be 'sideways': Input should be 'online'"),
        ("[wandb]\nfork_from = 'x'\n", "fork_from cannot be 'x'"),
        ("[wandb]\nconfig_exclude_keys = 3\n", "config_exclude_keys cannot be 3"),
        ("[wandb]\nsettings = 3\n", "settings cannot be 3"),
        ("[wandb.settings]\nrun_group = 3\n", "settings.run_group cannot be 3: Input should be a valid string"),
        ("[wandb.settings]\ninit_timeout = 'x'\n", "settings.init_timeout cannot be 'x'"),
    ],
)
def test_a_value_that_the_tracker_would_die_of_is_told(tmp_path: Path, text: str, what: str) -> None:
    file = config(tmp_path, text)
    (problem,) = problems_of(logging_dir=str(tmp_path), log_with="all", log_tracker_config=file)
    assert problem.what.startswith(what)
    assert problem.where.startswith(f"{file}, line 2")


def test_a_table_of_a_tracker_that_is_not_asked_for_is_told(tmp_path: Path) -> None:
    file = config(tmp_path, "[wandb]\nnotes = 'x'\n")
    (problem,) = problems_of(logging_dir=str(tmp_path), log_tracker_config=file)
    assert "nothing is logged with it" in problem.what


def test_a_good_settings_file_is_read(tmp_path: Path) -> None:
    text = "[tensorboard]\nflush_secs = 5\nfilename_suffix = '.x'\n"
    text += "[wandb]\nentity = 'us'\ntags = ['a']\n[wandb.settings]\nconsole = 'off'\n"
    options = LogOptions(logging_dir=str(tmp_path), log_with="all", log_tracker_config=config(tmp_path, text))
    assert problems_of(**vars(options)) == []
    settings = read_tracker_settings(options)
    assert settings.tensorboard == {"flush_secs": 5, "filename_suffix": ".x"}
    assert settings.wandb == {"entity": "us", "tags": ["a"], "settings": {"console": "off"}}


def test_two_names_are_told(tmp_path: Path) -> None:
    file = config(tmp_path, "[wandb]\nname = 'x'\n")
    assert problems_of(log_with="wandb", log_tracker_config=file) == []
    (problem,) = problems_of(log_with="wandb", log_tracker_config=file, wandb_run_name="y")
    assert problem.where == "--wandb_run_name, --log_tracker_config"


def test_wandb_needs_a_key_only_where_it_sends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert problems_of(log_with="wandb") == []
    monkeypatch.setenv("WANDB_MODE", "online")
    (problem,) = problems_of(log_with="wandb")
    assert problem.what == "wandb has no key here"
    assert problems_of(log_with="wandb", wandb_api_key=KEY) == []
    file = config(tmp_path, "[wandb]\nmode = 'offline'\n")
    assert problems_of(log_with="wandb", log_tracker_config=file) == []


@pytest.mark.parametrize("key", ["short", "two words " * 8])
def test_a_word_that_is_no_key_is_told_without_the_word(key: str) -> None:
    (problem,) = problems_of(log_with="wandb", wandb_api_key=key)
    assert problem.where == "--wandb_api_key"
    assert key.strip() not in str(problem)


def test_a_wandb_that_is_switched_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (problem,) = problems_of(log_with="wandb")
    assert problem.what.startswith("wandb is switched off")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody may write")
def test_a_folder_that_takes_no_files_is_told() -> None:
    (problem,) = problems_of(logging_dir="/proc/self/logs")
    assert problem.where == "--logging_dir"
    assert problem.what.startswith("nothing can be written in /proc/self: ")


def test_a_script_tells_it_with_its_other_problems(tmp_path: Path) -> None:
    words = ["--pretrained_model_name_or_path", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError) as caught:
        train_network.main([*words, "--train_data_dir", str(tmp_path / "none"), "--log_with", "tensorboard"])
    places = [problem.where for problem in caught.value.problems]
    assert "--log_with tensorboard" in places and len(places) > 1
    assert not (tmp_path / "out").exists()
