"""The environment page: its judgements on known facts, and that broken packages cannot stop it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import doctor
import doctor_checks as checks
from bootstrap import ROOT

_SMI = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.65.06              Driver Version: 580.65.06      CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
"""
_CPU_TORCH = {"version": "2.13.0+cpu", "cuda": None, "hip": None, "available": False, "architectures": [], "gpus": []}
_CARD = {"name": "A card", "memory_gib": 24.0, "capability": "8.9", "bf16": True, "error": None}


def surroundings(
    torch: checks.Probe | None = None, nvidia: dict[str, str] | None = None, **versions: str | None
) -> checks.Surroundings:
    return checks.Surroundings(ROOT, Path(sys.executable), versions, torch or checks.Probe(_CPU_TORCH), nvidia or {})


def test_reads_nvidia_smi() -> None:
    assert checks.parse_nvidia_smi(_SMI) == {"driver": "580.65.06", "cuda": "13.0"}


@pytest.mark.parametrize(
    ("torch", "nvidia", "level", "words"),
    [
        ({}, {}, checks.NOTE, "no NVIDIA driver"),
        ({}, {"driver": "580", "cuda": "13.0"}, checks.PROBLEM, "cannot use your NVIDIA card"),
        ({"cuda": "13.0"}, {"driver": "535", "cuda": "12.2"}, checks.PROBLEM, "too old"),
        ({"cuda": "13.0"}, {"driver": "580", "cuda": "13.0"}, checks.PROBLEM, "finds no card"),
        ({"cuda": "13.0", "available": True}, {"driver": "580", "cuda": "13.0"}, checks.OK, "CUDA 13.0"),
    ],
)
def test_judges_the_build_of_torch_against_the_driver(
    torch: dict[str, Any], nvidia: dict[str, str], level: str, words: str
) -> None:
    (finding,) = checks.check_torch(surroundings(checks.Probe({**_CPU_TORCH, **torch}), nvidia))
    assert (finding.level, words in finding.text) == (level, True)
    assert bool(finding.fix) == (level == checks.PROBLEM)


def test_the_mend_for_a_cpu_build_keeps_the_version() -> None:
    (finding,) = checks.check_torch(surroundings(nvidia={"driver": "580", "cuda": "13.0"}))
    assert "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu" in finding.fix


def test_every_card_is_shown_and_one_that_does_not_compute_is_a_problem() -> None:
    broken = {**_CARD, "bf16": False, "error": "no kernel image is available"}
    facts = {**_CPU_TORCH, "cuda": "13.0", "available": True, "gpus": [_CARD, broken]}
    _, good, bad = checks.check_torch(surroundings(checks.Probe(facts)))
    assert (good.level, good.name) == (checks.OK, "card 0")
    assert "24.0 GiB, bf16" in good.text
    assert bad.level == checks.PROBLEM
    assert "no kernel image" in bad.text


def test_a_torch_that_crashes_is_a_finding() -> None:
    (finding,) = checks.check_torch(surroundings(checks.Probe(error="crashed (signal 11)")))
    assert (finding.level, finding.text) == (checks.PROBLEM, "crashed (signal 11)")


def test_missing_broken_and_other_versions_are_problems_with_a_mend() -> None:
    around = surroundings(numpy="2.4.6", pillow="12.0.0")
    missing = checks._judge_package(around, "toml", "0.10.2", "")
    broken = checks._judge_package(around, "numpy", "2.4.6", "ImportError: DLL load failed")
    other = checks._judge_package(around, "pillow", "13.0.0", "")
    assert [item.level for item in (missing, broken, other)] == [checks.PROBLEM] * 3
    assert "quickstart" in missing.fix
    assert "DLL load failed" in broken.text
    assert "pillow==13.0.0" in other.fix


def test_another_build_counts_as_the_pinned_version() -> None:
    finding = checks._judge_package(surroundings(numpy="2.4.6+local"), "numpy", "2.4.6", "")
    assert finding.level == checks.OK


def test_both_onnx_packages_at_once_are_a_problem() -> None:
    around = surroundings(**{"onnxruntime": "1.31.1", "onnxruntime-gpu": "0.0.1"})
    findings = [item for item in checks.check_optional(around) if item.level == checks.PROBLEM]
    assert [item.name for item in findings] == ["onnxruntime"]
    assert "uninstall -y onnxruntime onnxruntime-gpu" in findings[0].fix


@pytest.mark.parametrize(
    ("result", "level", "words"),
    [
        ({"real": ["CPUExecutionProvider"]}, checks.NOTE, "gets only"),
        ({"real": ["CUDAExecutionProvider", "CPUExecutionProvider"]}, checks.OK, "on the card"),
        ({"tried": False}, checks.NOTE, "cannot be tried"),
        ({"tried": True, "where": "on the CPU", "finite": True}, checks.OK, "on the CPU"),
        ({"tried": True, "where": "on the card", "finite": False}, checks.NOTE, "wrong results"),
    ],
)
def test_judges_trials_of_optional_packages(result: dict[str, Any], level: str, words: str) -> None:
    found, _, text, _ = checks.judge_trial("a package", "1.0", result)
    assert (found, words in text) == (level, True)


def test_a_probe_that_fails_gives_the_last_line_of_its_traceback() -> None:
    probe = checks.run_probe(ROOT, Path(sys.executable), ["import", "no_such_module_anywhere"])
    assert probe.error == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"


def test_a_python_that_is_not_there_is_a_finding() -> None:
    probe = checks.run_probe(ROOT, ROOT / "no-such-python", ["python"])
    assert "could not be started" in probe.error


def test_crashes_are_named_on_every_system() -> None:
    assert checks.explain_end(-11, "") == "crashed (signal 11)"
    assert checks.explain_end(0xC0000005, "") == "crashed (code 0xc0000005)"
    assert checks.explain_end(3, "") == "ended with code 3"


def test_onnxruntime_shows_its_real_providers() -> None:
    probe = checks.run_probe(ROOT, Path(sys.executable), ["onnxruntime"])
    assert probe.error == ""
    assert "CPUExecutionProvider" in probe.data["real"]


@pytest.mark.parametrize(("precision", "level"), [("fp16", checks.NOTE), ("'no'", checks.OK)])
def test_reads_the_saved_answers_of_accelerate(tmp_path: Path, precision: str, level: str) -> None:
    path = checks.accelerate_config_path({"HF_HOME": str(tmp_path)}, Path("/home/someone"))
    path.parent.mkdir()
    path.write_text(f"distributed_type: 'NO'\nmixed_precision: {precision}\n")
    assert checks.check_accelerate(path).level == level


def test_no_saved_answers_are_fine(tmp_path: Path) -> None:
    assert checks.check_accelerate(checks.accelerate_config_path({}, tmp_path)).level == checks.OK


def test_the_page_shows_every_finding_with_its_mend_and_the_exit_code_counts_problems() -> None:
    good = checks.Finding("Machine", checks.OK, "CPU", "2 threads")
    bad = checks.Finding("Packages", checks.PROBLEM, "toml", "missing", "pip install toml")
    page = doctor.format_page([good, bad])
    assert "! toml" in page
    assert "-> pip install toml" in page
    assert page.endswith("1 problem to mend, marked with ! above.")
    assert (doctor.exit_code([good]), doctor.exit_code([good, bad])) == (0, 1)
    report = json.loads(doctor.report_json([good, bad]))
    assert (report["ok"], [item["name"] for item in report["findings"]]) == (False, ["CPU", "toml"])
