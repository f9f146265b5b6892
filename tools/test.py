"""The check every change must pass: ruff, mypy and the tests, in an environment of its own.

    python tools/test.py                      everything but the slow tests
    python tools/test.py --slow               everything
    python tools/test.py --device cuda        on the graphics card as well
    python tools/test.py tests/core -k sizes  what pytest is given after our own options
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bootstrap import ROOT, WITH_TESTS, BootstrapError, ensure_environment, run_tool, say, venv_python

_CUDA_QUESTION = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 3)"


def main() -> int:
    """Runs all stages, also when one fails; returns 0 only when every one passed."""
    options, pytest_arguments = _parse(sys.argv[1:])
    python = _existing_python() if options.no_install else ensure_environment(ROOT, WITH_TESTS)
    environment = stage_environment(options.device)
    if options.device == "cuda":
        _require_cuda(python)
    failed = [name for name, command in _checks(python) if not _passes(name, command, environment)]
    say("\npytest")
    command = pytest_command(python, options.slow, pytest_arguments)
    closing_line, code = _run_pytest(command, environment)
    if code != 0:
        failed.append("pytest")
    say()
    say("all stages passed" if not failed else f"FAILED: {', '.join(failed)}")
    say(closing_line)
    return 1 if failed else 0


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the tests compute")
    parser.add_argument("--slow", action="store_true", help="run the slow tests as well")
    parser.add_argument("--no-install", action="store_true", help="take the environment as it is")
    return parser.parse_known_args(arguments)


def stage_environment(device: str) -> dict[str, str]:
    """Environment variables of the stages: one thread each (reproducible, and faster at toy size), no network."""
    hidden_cards = {"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {}
    return {
        **os.environ,
        **hidden_cards,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUTF8": "1",
        "SD_ATELIER_TEST_DEVICE": device,
    }


def pytest_command(python: Path, slow: bool, arguments: Sequence[str]) -> list[str]:
    """The pytest command line; what the caller passes comes last and wins."""
    command = [str(python), "-m", "pytest", "-n", "2"]
    if sys.stdout.isatty():
        command.append("--color=yes")
    if not slow and "-m" not in arguments:
        command += ["-m", "not slow"]
    return [*command, *arguments]


def _checks(python: Path) -> list[tuple[str, list[str]]]:
    return [
        ("ruff", [str(python), "-m", "ruff", "check", "."]),
        ("mypy", [str(python), "-m", "mypy"]),
    ]


def _passes(name: str, command: Sequence[str], environment: dict[str, str]) -> bool:
    say(f"\n{name}")
    return subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def _run_pytest(command: Sequence[str], environment: dict[str, str]) -> tuple[str, int]:
    """Shows pytest's output as it comes; returns its last line and its exit code (no tests at all is 5, a failure)."""
    last = "pytest printed nothing"
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.rstrip() or last
    return last, process.returncode


def _existing_python() -> Path:
    python = venv_python(ROOT / ".venv")
    return python if python.exists() else Path(sys.executable)


def _require_cuda(python: Path) -> None:
    if subprocess.run([str(python), "-c", _CUDA_QUESTION], capture_output=True).returncode != 0:
        raise BootstrapError(
            "--device cuda: torch finds no NVIDIA card here", "python tools/doctor.py says why; or leave --device out"
        )


if __name__ == "__main__":
    sys.exit(run_tool(main))
