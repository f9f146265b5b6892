from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import make_tiny_model as make_tiny_model_script
from library.core.errors import EXIT_USER_ERROR, run_script
from library.models.identify import identify
from library.models.save import save_diffusers, save_single_file
from library.models.tiny import make_tiny_model
from library.text.tokenizer import tokenizer_files

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "make_tiny_model.py"


def run(*arguments: str, folder: Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) or [path]
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file.relative_to(path.parent).as_posix().encode() + file.read_bytes())
    return hashed.hexdigest()


def test_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    result = run("sd2_v", "model.safetensors", "--seed", "3", folder=tmp_path)
    assert (result.returncode, result.stdout) == (0, "model.safetensors\n")
    told = {"format": "pt", "modelspec.prediction_type": "v"}
    save_single_file(make_tiny_model("sd2_v", seed=3), tmp_path / "again.safetensors", told)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_same_seed_gives_the_same_bytes_in_every_form(tmp_path: Path) -> None:
    files = tokenizer_files("sd2")
    for name in ("a", "b"):
        model = make_tiny_model("sd2", seed=3)
        save_single_file(model, tmp_path / name / "m.ckpt", {})
        save_diffusers(model, tmp_path / name / "m", files)
    for out in ("m.ckpt", "m"):
        assert digest(tmp_path / "a" / out) == digest(tmp_path / "b" / out)


def test_other_names_become_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_tiny_model.py", "sd1", str(tmp_path / "models" / "tiny")])
    assert run_script(make_tiny_model_script.main) == 0
    identity = identify(tmp_path / "models" / "tiny")
    assert (identity.family, identity.layout) == ("sd1", "diffusers")


def test_help_and_usage_errors_come_at_once(tmp_path: Path) -> None:
    for arguments, code in ((("--help",), 0), ((), 2), (("sd3", "x"), 2)):
        result = run(*arguments, folder=tmp_path, options=("-X", "importtime"))
        assert result.returncode == code
        assert " torch" not in result.stderr
        assert "usage: make_tiny_model.py" in result.stdout + result.stderr


def test_a_folder_in_use_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat.png").touch()
    monkeypatch.setattr(sys, "argv", ["make_tiny_model.py", "sd1", str(tmp_path)])
    assert run_script(make_tiny_model_script.main) == EXIT_USER_ERROR
    assert "exists and is not a Diffusers model" in capsys.readouterr().err
