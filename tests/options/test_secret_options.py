"""Tokens and keys among the options: hidden at once, and written nowhere."""

from __future__ import annotations

import sys

import pytest

from library.options.base import info_of, option_fields
from library.options.command_line import read_command_line
from library.options.scripts import SCRIPTS
from library.options.write import options_as_toml

SECRET = "hf_0123456789abcdefghij"
OPTIONS = ["huggingface_token", "wandb_api_key"]


def test_these_are_all() -> None:
    fields = {item for script in SCRIPTS.values() for group in script.groups for item in option_fields(group)}
    assert sorted(item.name for item in fields if info_of(item).secret) == OPTIONS


@pytest.mark.parametrize("name", OPTIONS)
def test_a_secret_is_hidden_and_told_without_its_value(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--pretrained_model_name_or_path", "model", "--output_dir", "out", f"--{name}", SECRET]
    monkeypatch.setattr(sys, "argv", ["train_network.py", *words])
    options = read_command_line("train_network.py", None)
    assert options is not None
    assert [getattr(group, name) for group in options.groups if hasattr(group, name)] == [SECRET]
    assert SECRET not in " ".join(sys.argv)
    told = "".join(capsys.readouterr())
    assert f"--{name}" in told and "environment" in told and SECRET not in told
    assert SECRET not in options_as_toml(options.groups)
