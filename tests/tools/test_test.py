"""The test command: what it gives to pytest, and that its last line and exit code are pytest's."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bootstrap import ROOT

PYTHON = Path(sys.executable)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/test.py, loaded from its path: its name belongs to the standard library."""
    spec = importlib.util.spec_from_file_location("tools_test", ROOT / "tools" / "test.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("slow", "given", "expected"),
    [
        (False, [], ["-m", "not slow"]),
        (True, [], []),
        (False, ["-m", "cuda"], ["-m", "cuda"]),
        (False, ["tests/core", "-k", "toml"], ["-m", "not slow", "tests/core", "-k", "toml"]),
    ],
)
def test_what_pytest_is_given(tool: ModuleType, slow: bool, given: list[str], expected: list[str]) -> None:
    command = tool.pytest_command(PYTHON, slow, given)
    assert [word for word in command[5:] if word != "--color=yes"] == expected
    assert command[:5] == [str(PYTHON), "-m", "pytest", "-n", "2"]


def test_our_options_are_taken_out_of_those_of_pytest(tool: ModuleType) -> None:
    options, rest = tool._parse(["--slow", "-x", "--device", "cuda", "tests/core", "-k", "toml"])
    assert (options.slow, options.device, rest) == (True, "cuda", ["-x", "tests/core", "-k", "toml"])


@pytest.mark.parametrize("code", [0, 1, 5])
def test_the_last_line_and_the_exit_code_come_through(tool: ModuleType, code: int) -> None:
    script = f"print('a test'); print('=== 1 passed ==='); print(); raise SystemExit({code})"
    assert tool._run_pytest([str(PYTHON), "-c", script], dict(os.environ)) == ("=== 1 passed ===", code)


def test_stages_see_the_device_and_have_no_network(tool: ModuleType) -> None:
    environment = tool.stage_environment("cuda")
    assert (environment["SD_ATELIER_TEST_DEVICE"], environment["HF_HUB_OFFLINE"]) == ("cuda", "1")
    assert environment["OMP_NUM_THREADS"] == "1"
