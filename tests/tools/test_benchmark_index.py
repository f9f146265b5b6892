"""tools/benchmark.py index as a person runs it; the bounds of the project in full in the slow run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_index import Plan, growth, make_files
from tests.training.runs import environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "benchmark.py"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "index", *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8")


def measured(folder: Path, *words: str) -> dict[str, Any]:
    result = run(folder, "--json", "index.json", *words)
    assert result.returncode == 0, result.stderr
    assert "second start" in result.stdout and "growth" in result.stdout
    figures: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return figures


def test_index_writes_sane_figures_and_grows_with_the_records(tmp_path: Path) -> None:
    figures = measured(tmp_path, "--images", "200", "--folder", "files", "--records", "20000", "200000")
    assert figures["pictures"] == 200 == len(list((tmp_path / "files").glob("*.txt")))
    assert figures["cold_opened"] == {"pictures": 200, "captions": 200}
    assert figures["warm_opened"] == {"pictures": 0, "captions": 0}
    assert figures["cold_seconds"] > 0 < figures["warm_seconds"] and figures["examine_seconds"] > 0
    assert set(figures["worker_bytes_per_image"]) == {"fork", "spawn"} or sys.platform == "win32"
    assert [plan["records"] for plan in figures["plans"]] == [20_000, 200_000]
    assert figures["growth"]["plan"] < 1.6 and figures["growth"]["place"] < 1.6  # 2 would be the square


def test_growth_is_the_exponent_between_the_smallest_and_the_largest() -> None:
    plans = [Plan(100, 1.0, 2.0), Plan(10, 0.1, 0.02), Plan(50, 9.0, 9.0)]
    assert growth(plans) == {"place": pytest.approx(1.0), "plan": pytest.approx(2.0)}
    assert growth(plans[:1]) == {"place": None, "plan": None}


def test_a_folder_with_another_number_of_pictures_is_a_user_error(tmp_path: Path) -> None:
    make_files(tmp_path, 3)
    result = run(tmp_path, "--json", "index.json", "--images", "4", "--folder", str(tmp_path))
    assert result.returncode == 1 and "--images 3" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_hundred_thousand_files_and_a_million_records_stay_within_the_bounds(tmp_path: Path) -> None:
    figures = measured(tmp_path, "--images", "100000")
    bounds = figures["bounds"]
    assert figures["warm_opened"] == {"pictures": 0, "captions": 0}
    # work of both cores together counts, since a machine with other programs makes the clock say anything
    assert figures["cold_cpu_seconds"] <= 2 * bounds["cold_seconds"]
    assert figures["warm_cpu_seconds"] <= bounds["warm_seconds"]
    if figures["bytes_per_image"] is not None:
        assert figures["bytes_per_image"] <= bounds["bytes_per_image"]
        assert figures["warm_bytes_per_image"] <= bounds["bytes_per_image"]
        # not none: pages of Python's own objects are copied when a worker touches them; columns would be 160 bytes
        assert max(figures["worker_bytes_per_image"].values()) < 80
    assert figures["plans"][-1]["records"] == 1_000_000
    assert figures["plans"][-1]["plan_seconds"] <= bounds["plan_seconds"]
    assert max(figures["growth"].values()) < 1.3
