"""Optimizers, schedules and low-memory steps through the real scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.core.errors import UserError
from tests.training.runs import ROOT, assert_same, environment, largest_difference, run_here


def data(photos: Path) -> list[str]:
    return ["--train_data_dir", str(photos), "--resolution", "64", "--max_train_steps", "3"]


def logged(out: Path) -> list[dict[str, Any]]:
    (log,) = out.glob("*.jsonl")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss/current" in row]


def test_optimizer_arguments_and_schedule_reach_the_run(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    words = ["--optimizer_type", "lion", "--optimizer_args", "weight_decay=0.1", "betas=.8,.9"]
    words += ["--lr_scheduler", "polynomial", "--lr_scheduler_args", "lr_end=0", "--lr_warmup_steps", "1"]
    run_here(tiny_models["sd1"], data(photos), tmp_path, *words)
    assert [row["lr/unet"] for row in logged(tmp_path)] == pytest.approx([0.0, 1e-3, 5e-4])
    with safe_open(str(tmp_path / "last.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["ss_optimizer"] == "lion_pytorch.lion_pytorch.Lion(weight_decay=0.1,betas=(0.8, 0.9))"
    assert metadata["ss_lr_scheduler"] == "polynomial"


def test_a_found_rate_is_logged(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    words = ["--optimizer_type", "Prodigy", "--learning_rate", "0.5", "--optimizer_args", "d0=1e-4"]
    run_here(tiny_models["sd1"], data(photos), tmp_path, *words)
    for row in logged(tmp_path):
        assert row["lr/unet"] == 0.5 and row["lr/d*lr/unet"] >= 0.5e-4


def test_mistakes_of_optimizer_schedule_and_memory_are_told_together(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    words = ["--optimizer_type", "prodigi", "--lr_scheduler", "cosin", "--full_bf16"]
    with pytest.raises(UserError) as caught:
        run_here(tiny_models["sd1"], data(photos), tmp_path, *words)
    text = str(caught.value)
    assert "did you mean Prodigy?" in text and "did you mean cosine?" in text and "give --mixed_precision bf16" in text


def test_the_fused_backward_pass_gives_the_same_file(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    plain = run_here(tiny_models["sd1"], data(photos), tmp_path / "a", "--max_grad_norm", "0")
    fused = run_here(tiny_models["sd1"], data(photos), tmp_path / "b", "--max_grad_norm", "0", "--fused_backward_pass")
    assert_same(plain, fused)
    for one, other in zip(logged(tmp_path / "a"), logged(tmp_path / "b"), strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


@pytest.mark.slow  # precision belongs to a process
def test_whole_models_learn_in_bf16(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    """At a rate far below a step of bf16 some weights move by a whole step, and all are bf16 numbers."""
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data(photos), "--learning_rate", "1e-6"]
    words += ["--mixed_precision", "bf16", "--full_bf16", "--save_precision", "float", "--output_dir", str(tmp_path)]
    command = [sys.executable, "train_db.py", *words, "--max_data_loader_n_workers", "0"]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr[-4000:]
    assert "rounded at random" in result.stderr
    before, after = load_file(str(tiny_models["sd1"])), load_file(str(tmp_path / "last.safetensors"))
    names = [name for name in before if name.startswith("model.diffusion_model.")]
    rounded = {name: before[name].bfloat16().float() for name in names}
    trained = {name: after[name].float() for name in names}
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in trained.values())
    assert largest_difference(rounded, trained) > 1e-4
    moved = [float((rounded[name] != trained[name]).float().mean()) for name in names if rounded[name].numel() > 100]
    assert 0 < sum(moved) / len(moved) < 0.2
