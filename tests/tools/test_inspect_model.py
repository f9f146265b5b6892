"""tools/inspect_model.py: what it says of files and folders is what they hold."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import inspect_model
from library.core.errors import UserError
from library.models.extras import ModelExtras
from library.models.forms import SaveTarget
from library.models.save import Precisions, save_model
from library.models.tiny import make_tiny_model
from library.text.tokenizer import tokenizer_files
from tests.training.runs import ROOT, environment


def test_a_model_is_described_in_a_process_of_its_own(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "inspect_model.py"), str(tiny_models["sd2"]), "--json"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert (result.returncode, result.stderr) == (0, "")
    told: dict[str, Any] = json.loads(result.stdout)
    content = tiny_models["sd2"].read_bytes()
    assert told["hashes"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert told["hashes"]["web_ui"] == told["hashes"]["sha256"][:10]
    assert (told["kind"], told["family"], told["prediction_type"], told["faults"]) == ("model", "sd2", None, [])
    assert [(part["name"], part["tensors"]) for part in told["parts"]] == [
        ("U-Net", 686),
        ("text encoder", 294),
        ("VAE", 248),
    ]
    data = sum(part["bytes"] for part in told["parts"])
    assert len(content) - data < 200_000 and all(
        part["precisions"] == {"float32": part["tensors"]} for part in told["parts"]
    )


@pytest.mark.parametrize("form", ["ckpt", "diffusers", "diffusers_safetensors"])
def test_every_form_tells_precisions_extras_and_metadata(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("model.ckpt" if form == "ckpt" else "model")
    extras = ModelExtras({"somebody.elses": torch.ones(7, dtype=torch.int64)})
    precisions, told = Precisions(torch.float16, torch.bfloat16), {"author": "Mira 猫", "long": "x" * 5000}
    save_model(make_tiny_model("sd1", 0), SaveTarget(path, form), precisions, extras, told, tokenizer_files("sd1"))
    report = inspect_model.inspect(path)
    assert (report.form, report.prediction_type, report.faults) == (form, "epsilon", [])
    assert {name for part in report.parts for name in part.precisions} == {"float16", "bfloat16", "int64"}
    assert [part.weights for part in report.parts if "int64" in part.precisions] == [7]
    assert report.metadata["author"] == "Mira 猫"
    shown = "\n".join(inspect_model.lines_of(report))
    assert "complete: yes" in shown and "(5,000 characters)" in shown and len(shown) < 3000


def test_what_is_missing_is_named(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(str(tiny_models["sd1"]))
    gone = "model.diffusion_model.out.2.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, str(tmp_path / "a.safetensors"))
    report = inspect_model.inspect(tmp_path / "a.safetensors")
    assert report.faults is not None and len(report.faults) == 1 and "conv_out.weight" in report.faults[0]
    assert "complete: no, 1 faults" in inspect_model.lines_of(report)


def test_other_kinds_are_told(tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 768)}, str(tmp_path / "cat.safetensors"))
    report = inspect_model.inspect(tmp_path / "cat.safetensors")
    assert (report.kind, report.family, report.faults) == ("embedding", "sd1", None)
    assert inspect_model.lines_of(report)[0].endswith("this is a Textual Inversion embedding")


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        inspect_model.inspect(tmp_path / "nowhere")


def test_texts_out_of_a_file_command_no_terminal(tmp_path: Path) -> None:
    path, evil = tmp_path / "a.safetensors", "\x1b]0;owned\x07\x9b2J\x7f\r\u202e"
    metadata = {f"key{evil}": f"value\ncomplete: yes{evil}", "long" * 99: "猫"}
    save_file({f"tensor{evil}": torch.zeros(3)}, str(path), metadata)
    report = inspect_model.inspect(path)
    lines = inspect_model.lines_of(report)
    assert all(line.isprintable() for line in lines)
    shown = r"\x1b]0;owned\x07\x9b2J\x7f\r\u202e"
    assert f"  key{shown}: value\\ncomplete: yes{shown}" in lines
    assert any("(396 characters): 猫" in line for line in lines)
    assert "tensor?]0;owned" in lines[0]
    command = [sys.executable, str(ROOT / "tools" / "inspect_model.py"), str(path)]
    told = subprocess.run(command, env=environment(), capture_output=True, text=True, encoding="utf-8", check=True)
    assert told.stdout.splitlines() == lines
    told = subprocess.run([*command, "--json"], env=environment(), capture_output=True, encoding="utf-8", check=True)
    assert all(line.isprintable() for line in told.stdout.replace("\x7f", "").split("\n"))
    assert json.loads(told.stdout)["metadata"] == metadata
