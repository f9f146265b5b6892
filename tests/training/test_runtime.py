"""Precision: refused where the device has none, and what is saved after a run in bf16."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from library.core.errors import UserError
from library.core.log import start_logging
from library.training.runtime import start_runtime
from tests.training.runs import ROOT, Tensors, environment, largest_difference, run_here, run_process


@pytest.fixture(scope="module")
def data(photos: Path) -> list[str]:
    return ["--train_data_dir", str(photos), "--resolution", "64", "--max_train_steps", "2"]


@pytest.fixture(scope="module")
def bf16_runs(
    tiny_models: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensors]:
    """The same run in bf16, saved as it comes and as float. In processes: Accelerate keeps its precision for life."""
    saved = {"default": [], "float": ["--save_precision", "float"]}

    def run(name: str) -> Tensors:
        out = tmp_path_factory.mktemp(name)
        return run_process(tiny_models["sd1"], data, out, "--mixed_precision", "bf16", *saved[name])

    with ThreadPoolExecutor() as pool:
        return dict(zip(saved, pool.map(run, saved), strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card that has fp16")
def test_fp16_without_a_card_is_refused_before_the_model_is_loaded(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"^--mixed_precision fp16: fp16 needs a CUDA card(.|\n)*use bf16 or no"):
        run_here(tiny_models["sd1"], data, tmp_path / "out", "--mixed_precision", "fp16")
    assert "loading" not in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bf16_trains_and_saves_bf16(bf16_runs: dict[str, Tensors]) -> None:
    assert {tensor.dtype for tensor in bf16_runs["default"].values()} == {torch.bfloat16}
    for part in ("lora_te_", "lora_unet_"):  # up matrices begin as zeros
        ups = [key for key in bf16_runs["default"] if key.startswith(part) and key.endswith("lora_up.weight")]
        assert any(bool(bf16_runs["default"][key].any()) for key in ups)


def test_weights_trained_in_bf16_are_kept_in_float32_and_saved_so_when_asked(bf16_runs: dict[str, Tensors]) -> None:
    as_float = bf16_runs["float"]
    assert {tensor.dtype for tensor in as_float.values()} == {torch.float32}
    rounded = {key: tensor.bfloat16() for key, tensor in as_float.items()}
    assert largest_difference(rounded, bf16_runs["default"]) == 0
    assert largest_difference({key: tensor.float() for key, tensor in rounded.items()}, as_float) > 0


def test_a_launcher_set_to_another_precision_is_overruled_aloud(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    start_logging()
    assert start_runtime("no").mixed_precision == "no"
    assert "mixed precision bf16; --mixed_precision no wins" in capsys.readouterr().err


def test_processes_wait_for_each_other_for_hours(tmp_path: Path) -> None:
    """While a cache is filled, one may have much to encode and the other nothing."""
    script = tmp_path / "wait.py"
    script.write_text(
        "import pathlib, torch.distributed as dist\n"
        "from library.training.runtime import start_runtime\n"
        "accelerator = start_runtime('no')\n"
        "engine = dist.group.WORLD._get_backend(accelerator.device)\n"
        "hours = engine.options._timeout.total_seconds() // 3600\n"
        "pathlib.Path(__file__).with_name(f'hours{accelerator.process_index}').write_text(f'{hours:.0f}')\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    settings = {**environment(), "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    hours = [int((tmp_path / f"hours{process}").read_text(encoding="utf-8")) for process in range(2)]
    assert min(hours) >= 12
