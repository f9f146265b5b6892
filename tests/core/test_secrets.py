"""Secrets on the command line: hidden in the process title and in what trackers record, and told once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from library.core.secrets import HIDDEN, hide_word, taken_secret

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_gehéim-猫"
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from library.core.log import start_logging
from library.core.secrets import taken_secret
start_logging()
value = sys.argv[2] if sys.argv[1] == "--token" else sys.argv[1].split("=", 1)[1]
for _ in range(2):
    assert taken_secret(value, "--token", "a safe") == value
print(sys.argv, sys.orig_argv)
title = Path("/proc/self/cmdline")
print(title.read_bytes().split(b"\\0") if title.exists() else "")
"""


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(root=str(ROOT)), *words]
    settings = {**os.environ, "PYTHONUTF8": "1", **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, encoding="utf-8", check=True)


@pytest.mark.parametrize("words", [["--token", SECRET], [f"--token={SECRET}"]])
def test_a_secret_on_the_command_line_is_hidden_and_told_once(words: list[str]) -> None:
    done = run(*words, "--output_name", "cat")
    assert SECRET not in done.stdout + done.stderr
    assert done.stderr.count("can be read by every user of this machine; better in a safe") == 1
    title = done.stdout.splitlines()[1]
    assert repr(SECRET.encode())[2:-1] not in title
    if sys.platform == "linux":
        assert f"{'x' * len(SECRET.encode())}', b'--output_name', b'cat'" in title, "the rest stays readable"
    assert HIDDEN in done.stdout and "--output_name" in done.stdout


def test_of_several_processes_one_tells_it() -> None:
    assert run("--token", SECRET, RANK="1").stderr == ""


def test_a_word_that_holds_the_secret_by_chance_stays() -> None:
    done = run("--token", "a", "--output_name", "cat", "banana")
    assert "banana" in done.stdout and "'cat'" in done.stdout


def test_a_secret_from_a_file_is_taken_silently(caplog: pytest.LogCaptureFixture) -> None:
    assert taken_secret(f" {SECRET}\n", "--token", "a safe") == SECRET
    assert not hide_word(SECRET, "--token")
    assert caplog.text == ""


@pytest.mark.parametrize("value", [None, "", "  "])
def test_none_is_none(value: str | None) -> None:
    assert taken_secret(value, "--token", "a safe") is None
