"""Processes that talk to a `HubServer`: huggingface_hub reads its environment when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hub_server import TOKEN

ROOT = Path(__file__).resolve().parents[1]


def hub_environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    """The environment of a process that takes `endpoint` for the Hub and `home` for its cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    own = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **more}


def start_client(code: str, given: Any, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Starts Python code that reads JSON from standard input and prints JSON."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(given))
    process.stdin.close()
    process.stdin = None
    return process


def answer_of(process: subprocess.Popen[str]) -> tuple[Any, str]:
    """What it printed, and what it logged; the token is in neither."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert TOKEN not in out + err
    return json.loads(out.splitlines()[-1]), err


def assert_token_is_nowhere(*folders: Path) -> None:
    """No file below the folders holds it, and none is named by it."""
    for folder in folders:
        for path in folder.rglob("*"):
            assert TOKEN not in path.name
            assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
