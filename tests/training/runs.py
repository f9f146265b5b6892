"""Whole runs of train_network.py for tests: in this process, or as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

import train_network

ROOT = Path(__file__).resolve().parents[2]
Tensors = dict[str, torch.Tensor]


def run_here(model: Path, data: Sequence[str], out: Path, *words: str) -> Tensors:
    """Trains in this process; returns the tensors of the file."""
    train_network.main([*_base_words(model, data, out), *words])
    return load_file(str(out / "last.safetensors"))


def run_process(
    model: Path, data: Sequence[str], out: Path, *words: str, processes: int = 1, with_accelerate: bool = False
) -> Tensors:
    """Trains in one process, plain or by `accelerate launch`, or in several by torchrun; returns the file's tensors."""
    launcher = ["-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"] if with_accelerate else []
    run_script_in_processes("train_network.py", [*_base_words(model, data, out), *words], processes, launcher)
    return load_file(str(out / "last.safetensors"))


def run_script_in_processes(script: str, words: Sequence[str], processes: int, launcher: Sequence[str] = ()) -> None:
    """Runs a script as one process, or as several by torchrun; it must end well."""
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *launcher, script, *words]
    # one card cannot serve two processes, and the CPU's engine (gloo) is what these tests are about
    hidden_cards = {"CUDA_VISIBLE_DEVICES": "-1"} if processes > 1 else {}
    settings = {**environment(), **hidden_cards}
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr[-4000:]


def photo_words(photos: Path) -> list[str]:
    """The words that train the photographs of the fixtures, small and in buckets."""
    assert len([p for p in photos.iterdir() if p.suffix in (".jpg", ".png", ".webp")]) >= 12
    sizes = ["--resolution", "128", "--enable_bucket", "--min_bucket_reso", "64", "--bucket_reso_steps", "32"]
    return ["--train_data_dir", str(photos), *sizes]


def environment() -> dict[str, str]:
    """The environment of test processes: offline, one thread, UTF-8."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def assert_same(first: Tensors, second: Tensors) -> None:
    """Two runs that must not differ: not in a bit on the CPU. On a card the order of its sums is not fixed."""
    tolerance = 1e-4 if os.environ.get("SD_ATELIER_TEST_DEVICE") == "cuda" else 0.0
    assert largest_difference(first, second) <= tolerance


def largest_difference(first: Tensors, second: Tensors) -> float:
    """Largest absolute difference of two files with the same keys."""
    assert set(first) == set(second)
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def _base_words(model: Path, data: Sequence[str], out: Path) -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out)),
        *("--learning_rate", "1e-3", "--max_data_loader_n_workers", "0"),
    ]
