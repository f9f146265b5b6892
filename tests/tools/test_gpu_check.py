"""tools/gpu_check.py: checks are isolated, and all of them run with a toy model where there is no card."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_check import DEFAULT_SECONDS, chosen, run_check, told
from gpu_check_list import ATTENTION, CHECKS, ENVIRONMENT, PREPARE, Check
from gpu_check_runs import attention_kernels, run_and_write
from library.options.base import option_fields
from library.options.config import ConfigOptions
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from tests.training.runs import ROOT, environment

TRAININGS = [name for name, check in CHECKS.items() if check.script is not None]
NEEDS_CARD = [name for name, check in CHECKS.items() if check.needs_card]


def checked(folder: Path, *names: str) -> dict[str, Any]:
    """The results of some checks with the toy model on the CPU, as a person gets them."""
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--device", "cpu", "--toy"]
    command += ["--seconds", "1500", "--only", *names]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr
    report: dict[str, Any] = json.loads((folder / "gpu_check.json").read_text(encoding="utf-8"))
    assert [*report["checks"]] == [PREPARE, *names] and report["toy"] is True
    return report["checks"]  # type: ignore[no-any-return]


def alone(folder: Path, code: str, seconds: float = 20.0) -> dict[str, Any]:
    """The result of a check whose process runs `code`."""
    return run_check([sys.executable, "-S", "-c", code], folder / "result.json", seconds, "cpu")


def test_what_a_check_writes_is_its_result(tmp_path: Path) -> None:
    text = '{"status": "ok", "step_seconds": 0.5}'
    result = alone(tmp_path, f"import pathlib; pathlib.Path({str(tmp_path / 'result.json')!r}).write_text('{text}')")
    assert result.pop("seconds") >= 0
    assert result == {"status": "ok", "step_seconds": 0.5}
    assert told(result) == "step_seconds 0.5"


def test_a_check_that_dies_is_an_entry_with_its_last_words(tmp_path: Path) -> None:
    code = "import os, sys; print('illegal memory access', file=sys.stderr); sys.stderr.flush(); os.abort()"
    result = alone(tmp_path, code)
    assert result["status"] == "failed"
    assert "illegal memory access" in result["reason"] and re.search(r"code -?\d+", result["reason"])


def test_a_check_that_hangs_is_ended_at_its_limit(tmp_path: Path) -> None:
    began = time.monotonic()
    result = alone(tmp_path, "import time; time.sleep(60)", seconds=0.5)
    assert (result["status"], time.monotonic() - began < 20) == ("failed", True)
    assert result["reason"].startswith("not done after")


def test_no_check_begins_when_the_time_is_over(tmp_path: Path) -> None:
    result = alone(tmp_path, "raise SystemExit(3)", seconds=-1.0)
    assert result == {"status": "skipped", "reason": "no time was left"}


def test_the_limits_leave_room_below_nine_minutes() -> None:
    assert DEFAULT_SECONDS < 9 * 60
    assert all(0 < check.seconds <= 120 for check in CHECKS.values())


@pytest.mark.parametrize("name", TRAININGS)
def test_the_words_of_every_training_are_options_of_its_script(name: str) -> None:
    check = CHECKS[name]
    script = SCRIPTS[str(check.script)]
    groups = (*script.groups, ConfigOptions)
    required = [
        word
        for group in groups
        for item in option_fields(group)
        if item.metadata["option"].required
        for word in (f"--{item.name}", "x")
    ]
    options = parse_options(str(check.script), script.description, script.groups, [*required, *check.words])
    flags = {word.split("=")[0].removeprefix("--") for word in check.words if word.startswith("--")}
    assert flags <= options.given


def test_what_all_need_runs_first_and_once() -> None:
    assert chosen(None) == list(CHECKS)
    assert chosen(["method_lora", "environment"]) == [PREPARE, "environment", "method_lora"]
    assert chosen([PREPARE]) == [PREPARE]


def test_a_reference_runs_before_what_is_compared_with_it() -> None:
    order = list(CHECKS)
    compared = [(name, check.reference) for name, check in CHECKS.items() if check.reference is not None]
    assert compared and all(order.index(str(reference)) < order.index(name) for name, reference in compared)


def test_every_kind_of_attention_here_is_right() -> None:
    kernels = attention_kernels(40)["kernels"]
    assert {row["kind"] for row in kernels} >= {"sdpa", "mem_eff_attn"}
    assert {row["dtype"] for row in kernels} == {"float32", "float16", "bfloat16"}
    assert all(0 < row["error_gradient"] < 0.05 for row in kernels if "error" not in row)


def result_of(name: str, work: Path) -> dict[str, Any]:
    run_and_write(name, work, True)
    result: dict[str, Any] = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
    return result


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without a card")
def test_what_needs_a_card_is_skipped_with_the_reason(tmp_path: Path) -> None:
    assert {"lora_fp16", "full_fp16", "paged_adamw"} <= set(NEEDS_CARD)
    for name in NEEDS_CARD:
        assert result_of(name, tmp_path) == {"status": "skipped", "reason": "no CUDA card"}


def test_the_environment_names_the_versions(tmp_path: Path) -> None:
    result = result_of(ENVIRONMENT, tmp_path)
    assert (result["status"], result["torch"]) == ("ok", torch.__version__)
    assert result["packages"]["diffusers"]


def test_losses_far_from_the_reference_fail_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_check_runs import _compared

    (tmp_path / "base.json").write_text('{"losses": [1.0, 2.0]}', encoding="utf-8")
    near = Check(script="train_network.py", reference="base", tolerance=0.05)
    assert _compared(near, [1.04, 2.0], tmp_path) == {"from_reference": 0.04}
    with pytest.raises(RuntimeError, match=r"up to 10\.0% from"):
        _compared(near, [1.0, 2.2], tmp_path)
    assert _compared(Check(reference="absent"), [1.0], tmp_path) == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_call_writes_the_figures_of_trainings(tmp_path: Path) -> None:
    results = checked(tmp_path, ENVIRONMENT, ATTENTION, "lora_float32", "lora_mem_eff_attn", "method_dreambooth")
    assert all(result["status"] == "ok" for result in results.values()), results
    for name in ("lora_float32", "lora_mem_eff_attn", "method_dreambooth"):
        assert results[name]["step_seconds"] > 0 and len(results[name]["losses"]) == 4
    assert results["lora_mem_eff_attn"]["from_reference"] < 0.005
    assert results["method_dreambooth"]["from_reference"] < 0.05
    assert not list(tmp_path.glob("*.safetensors")), "what was made is gone"


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_every_check_that_needs_no_card_passes(tmp_path: Path) -> None:
    report = checked(tmp_path, *(name for name in CHECKS if name != PREPARE))
    assert {name for name, result in report.items() if result["status"] == "failed"} == set()
    assert {name for name, result in report.items() if result["status"] == "skipped"} == set(NEEDS_CARD)
