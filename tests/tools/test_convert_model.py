"""tools/convert_model.py as people run it: a process of its own, from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import save_single_file, single_file_tensors
from library.models.tiny import make_tiny_model
from library.models.weights import open_weights
from tests.training.runs import ROOT, environment


def convert(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "convert_model.py"), *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8")


def converted(folder: Path, *words: str) -> str:
    result = convert(folder, *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    file = open_weights(path)
    return {name: file.read(name) for name in file.shapes}


def test_there_and_back_is_the_same_file(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    model = make_tiny_model("sd2_v", seed=1)
    own = {"betas": torch.ones(1000, dtype=torch.float64), "cond_stage_model.model.logit_scale": torch.tensor(2.5)}
    from library.models.extras import ModelExtras
    from library.models.forms import SaveTarget
    from library.models.save import Precisions, save_model

    extras = ModelExtras(own, {"modelspec.prediction_type": "v", "author": "Mira 猫"})
    save_model(model, SaveTarget(tmp_path / "a.safetensors", "safetensors"), Precisions(), extras, extras.metadata, {})
    assert "b (diffusers_safetensors" in converted(tmp_path, "a.safetensors", "b")
    converted(tmp_path, "b", "c.ckpt")
    converted(tmp_path, "c.ckpt", "d", "--save_model_as", "diffusers")
    converted(tmp_path, "d", "e.safetensors")
    assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert (
        (tmp_path / "e.yaml").read_bytes() == (tmp_path / "c.yaml").read_bytes() == (tmp_path / "a.yaml").read_bytes()
    )


def test_precision_and_vae(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    save_single_file(make_tiny_model("sd1", seed=9), tmp_path / "other.ckpt", {})
    words = ["--precision", "fp16", "--vae", "other.ckpt", "--vae_precision", "bf16"]
    converted(tmp_path, str(tiny_models["sd1"]), "out.safetensors", *words)
    found, base = tensors_of(tmp_path / "out.safetensors"), tensors_of(tiny_models["sd1"])
    other = tensors_of(tmp_path / "other.ckpt")
    for name, tensor in found.items():
        is_vae = name.startswith("first_stage_model.")
        expected = other[name].bfloat16() if is_vae else base[name].half()
        assert torch.equal(tensor, expected), name
    assert open_weights(tmp_path / "out.safetensors").metadata["ss_vae_name"] == "other.ckpt"


def test_the_open_question_is_asked_and_the_answer_is_written_down(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    result = convert(tmp_path, str(tiny_models["sd2_v"]), "out.safetensors")
    assert result.returncode == 1 and "--v_parameterization" in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
    converted(tmp_path, str(tiny_models["sd2_v"]), "out.safetensors", "--v_parameterization")
    assert identify(tmp_path / "out.safetensors").prediction_type == "v_prediction"
    converted(tmp_path, "out.safetensors", "folder")
    assert identify(tmp_path / "folder").prediction_type == "v_prediction"


def test_mistakes_are_told_at_once_and_nothing_is_lost(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.ckpt").write_text("precious")
    result = convert(tmp_path, "nowhere.safetensors", "out.ckpt", "--vae", "missing.pt")
    assert result.returncode == 1 and "3 problems" in result.stderr
    assert all(word in result.stderr for word in ("nowhere.safetensors", "missing.pt", "--overwrite"))
    assert (tmp_path / "out.ckpt").read_text() == "precious"


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_folder_becomes_the_file_it_came_from(tiny_models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    words = ["--v2"] if kind == "sd2" else []
    converted(tmp_path, str(tiny_models[kind]), "folder", *words)
    converted(tmp_path, "folder", "again.safetensors")
    again, base = tensors_of(tmp_path / "again.safetensors"), tensors_of(tiny_models[kind])
    assert again.keys() == base.keys() and all(torch.equal(again[name], base[name]) for name in base)
    model = load_stable_diffusion(identify(tmp_path / "folder"), "epsilon")
    assert single_file_tensors(model).keys() == base.keys()
