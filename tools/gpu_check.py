"""Tries on a graphics card what only a card can show, and writes one JSON file with what it found.

    python tools/gpu_check.py --json gpu.json

Precisions (fp16 with its scaler, bf16, --full_fp16, --full_bf16), kinds of attention, paged optimizers, and the peak
memory and seconds of a step of every method, with a random SD 1.5 of full size at 512 x 512. Takes less than nine
minutes. Each check runs in a process of its own with a limit of its own: what fails or hangs is an entry in the file.

`--device cpu --toy` goes through the same checks with a toy model, and skips what needs a card.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bootstrap import ROOT, say
from gpu_check_list import CHECKS, PREPARE

sys.path.insert(0, str(ROOT))  # run as a file, from any folder

DEFAULT_SECONDS = 520.0
_TOY_PATIENCE = 5  # times the limit of each check: toys run where other work does
_TOLD_LINES = 6  # of what a process said before it died

Result = dict[str, Any]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the checks; exit code 1 when one has failed."""
    arguments = _parse(words)
    if arguments.run is not None:
        from gpu_check_runs import run_and_write  # here, for it imports torch, which the parent must not hold

        run_and_write(arguments.run, arguments.work, arguments.toy)
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as work:
        report = run_all(arguments, Path(work))
    failed = [name for name, result in report["checks"].items() if result["status"] == "failed"]
    say(f"\nwritten: {arguments.json}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def run_all(arguments: argparse.Namespace, work: Path) -> Result:
    """Every check that was asked for, one after the other; the file is whole after each of them."""
    from library.core.atomic_io import write_text_whole

    started = time.monotonic()
    patience = _TOY_PATIENCE if arguments.toy else 1
    report: Result = {"date": datetime.now(UTC).date().isoformat(), "toy": arguments.toy, "checks": {}}
    for name in chosen(arguments.only):
        left = arguments.seconds - (time.monotonic() - started)
        command = [sys.executable, str(Path(__file__).resolve()), "--run", name, "--work", str(work)]
        command += ["--toy"] if arguments.toy else []
        result = run_check(
            command, work / f"{name}.json", min(left, patience * CHECKS[name].seconds), device=arguments.device
        )
        report["checks"][name] = result
        report["seconds"] = round(time.monotonic() - started, 1)
        write_text_whole(arguments.json, json.dumps(report, indent=2) + "\n")
        say(f"{result['status']:8} {name}: {told(result)}")
        if name == PREPARE and result["status"] != "ok":
            break  # the others would only say so again
    return report


def chosen(only: Sequence[str] | None) -> list[str]:
    """The checks in the order in which they run: what all need, then those named, or all of them."""
    return [PREPARE, *(name for name in CHECKS if name != PREPARE and (only is None or name in only))]


def run_check(command: Sequence[str], file: Path, seconds: float, device: str) -> Result:
    """Runs one check as a process of its own, which leaves its result in `file`.

    Returns:
        `status` ("ok", "failed" or "skipped"), `reason` where it is not ok, `seconds`, and the check's own figures.
    """
    if seconds <= 0:
        return {"status": "skipped", "reason": "no time was left"}
    began = time.monotonic()
    try:
        ended = subprocess.run(
            command, env=_environment(device), capture_output=True, encoding="utf-8", errors="replace", timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"not done after {seconds:.0f} s", "seconds": round(seconds, 1)}
    if ended.returncode == 0 and file.is_file():
        result: Result = json.loads(file.read_text(encoding="utf-8"))
    else:
        last = " | ".join(ended.stderr.strip().splitlines()[-_TOLD_LINES:])
        result = {"status": "failed", "reason": f"the process ended with code {ended.returncode}: {last}"}
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def told(result: Result) -> str:
    """One line about a result."""
    if "reason" in result:
        return str(result["reason"])
    figures = {key: value for key, value in result.items() if isinstance(value, (int, float, str)) and key != "status"}
    return ", ".join(f"{key} {value}" for key, value in figures.items())


def _environment(device: str) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
    no_card = {"CUDA_VISIBLE_DEVICES": "-1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **offline, **(no_card if device == "cpu" else {})}


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), metavar="FILE", help="where results go")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --toy")
    parser.add_argument("--toy", action="store_true", help="a toy model, small pictures, few steps")
    parser.add_argument("--only", nargs="+", choices=[*CHECKS], metavar="CHECK", help=f"some of: {', '.join(CHECKS)}")
    parser.add_argument(
        "--seconds", type=float, default=DEFAULT_SECONDS, metavar="S", help="for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--run", choices=[*CHECKS], help=argparse.SUPPRESS
    )  # what the processes of the checks are given
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.device == "cpu" and not arguments.toy:
        parser.error("--device cpu needs --toy: a model of full size would take hours")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
