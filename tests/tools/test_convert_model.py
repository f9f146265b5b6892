"""tools/convert_model.py: every form into every other, nothing lost, mistakes told before anything is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import convert_model
from library.core.errors import UserError
from library.core.tensor_files import data_hash
from library.models.extras import ModelExtras
from library.models.files.weights import open_weights
from library.models.forms import SaveTarget
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import Precisions, save_model, save_single_file, single_file_tensors
from library.models.tiny import make_tiny_model
from tests.models.full_size import write_full_size
from tests.training.runs import ROOT, environment

Convert = Callable[..., None]
MEMORY_LIMIT = 1.15


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Convert:
    """Converts in this process, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: convert_model.main(words)


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    file = open_weights(path)
    return {name: file.read(name) for name in file.shapes}


# Peak memory is that of the process: the same conversion of a tiny model tells what is there without any weights.
_PEAK = """
import sys
sys.path.insert(0, "tools")
import convert_model
sys.argv = ["convert_model.py", *sys.argv[1:]]
convert_model.main()
with open("/proc/self/status") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024)
"""


def peak_of_converting(*words: str) -> int:
    command = [sys.executable, "-c", _PEAK, *words]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    return int(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_full_size_models_go_round_within_the_memory_bound(
    tiny_models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    start = write_full_size(family, tmp_path / "a.safetensors")
    (tmp_path / "tiny").mkdir()
    tiny = shutil.copy(tiny_models[family], tmp_path / "tiny" / "a.safetensors")
    size, answer = start.stat().st_size, ["--v2"] if family == "sd2" else []
    steps = [("a.safetensors", "b", *answer), ("b", "c.ckpt"), ("c.ckpt", "d.safetensors")]
    try:
        for source, out, *words in steps:
            bare = peak_of_converting(str(tiny.parent / source), str(tiny.parent / out), *words)
            peak = peak_of_converting(str(tmp_path / source), str(tmp_path / out), *words)
            print(f"{family} {source} to {out}: peak {(peak - bare) / size:.3f} of the file")
            assert 0.8 < (peak - bare) / size < MEMORY_LIMIT
        assert data_hash(tmp_path / "d.safetensors") == data_hash(start)
    finally:
        for path in (start, tmp_path / "c.ckpt", tmp_path / "d.safetensors"):
            path.unlink(missing_ok=True)  # gigabytes that pytest would keep
        shutil.rmtree(tmp_path / "b", ignore_errors=True)


def test_there_and_back_is_the_same_file(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny_model("sd2_v", seed=1)
    own = {"betas": torch.ones(1000, dtype=torch.float64), "cond_stage_model.model.logit_scale": torch.tensor(2.5)}
    extras = ModelExtras(own, {"modelspec.prediction_type": "v", "author": "Mira 猫"})
    save_model(model, SaveTarget(tmp_path / "a.safetensors", "safetensors"), Precisions(), extras, extras.metadata, {})
    convert("a.safetensors", "b")
    assert "b (diffusers_safetensors" in capsys.readouterr().out
    convert("b", "c.ckpt")
    convert("c.ckpt", "d", "--save_model_as", "diffusers")
    convert("d", "e.safetensors")
    assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert (
        (tmp_path / "e.yaml").read_bytes() == (tmp_path / "c.yaml").read_bytes() == (tmp_path / "a.yaml").read_bytes()
    )


def test_precision_and_vae(convert: Convert, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    save_single_file(make_tiny_model("sd1", seed=9), tmp_path / "other.ckpt", {})
    words = ["--precision", "fp16", "--vae", "other.ckpt", "--vae_precision", "bf16"]
    convert(str(tiny_models["sd1"]), "out.safetensors", *words)
    found, base = tensors_of(tmp_path / "out.safetensors"), tensors_of(tiny_models["sd1"])
    other = tensors_of(tmp_path / "other.ckpt")
    for name, tensor in found.items():
        is_vae = name.startswith("first_stage_model.")
        expected = other[name].bfloat16() if is_vae else base[name].half()
        assert torch.equal(tensor, expected), name
    assert open_weights(tmp_path / "out.safetensors").metadata["ss_vae_name"] == "other.ckpt"


def test_the_open_question_is_asked_and_the_answer_is_written_down(
    convert: Convert, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--v_parameterization"):
        convert(str(tiny_models["sd2_v"]), "out.safetensors")
    assert list(tmp_path.iterdir()) == []
    convert(str(tiny_models["sd2_v"]), "out.safetensors", "--v_parameterization")
    assert identify(tmp_path / "out.safetensors").prediction_type == "v_prediction"
    convert("out.safetensors", "folder")
    assert identify(tmp_path / "folder").prediction_type == "v_prediction"


def test_mistakes_are_told_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "out.ckpt").write_text("precious")
    words = ["nowhere.safetensors", "out.ckpt", "--vae", "missing.pt"]
    command = [sys.executable, str(ROOT / "tools" / "convert_model.py"), *words]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 1 and "3 problems" in result.stderr and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in ("nowhere.safetensors", "missing.pt", "--overwrite"))
    assert (tmp_path / "out.ckpt").read_text() == "precious"


def test_a_yaml_in_the_way_is_not_lost(convert: Convert, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.yaml").write_text("my notes")
    with pytest.raises(UserError, match=r"out.yaml: exists already and would be lost"):
        convert(str(tiny_models["sd2"]), "out.ckpt", "--v2")
    assert (tmp_path / "out.yaml").read_text() == "my notes"
    convert(str(tiny_models["sd2"]), "out.ckpt", "--v2", "--overwrite")
    assert "LatentDiffusion" in (tmp_path / "out.yaml").read_text()


def test_a_folder_of_somebody_else_and_a_wrong_name_are_told_before_anything_is_read(
    convert: Convert, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="exists and is not a Diffusers model") as caught:
        convert("nowhere.ckpt", "mine", "--overwrite")
    assert len(caught.value.problems) == 2
    with pytest.raises(UserError, match="does not fit the form diffusers") as caught:
        convert("nowhere.ckpt", "a.safetensors", "--save_model_as", "diffusers")
    assert len(caught.value.problems) == 2


def test_bf16_becomes_fp16_in_a_ckpt_only(
    convert: Convert, tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(tiny_models["sd1"]), "a.safetensors", "--precision", "bf16")
    convert("a.safetensors", "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    convert("a.safetensors", "c.ckpt")
    assert "weights: bf16 becomes fp16, for the Web UI refuses a .ckpt that holds bf16" in capsys.readouterr().out
    assert torch.bfloat16 not in open_weights(tmp_path / "c.ckpt").dtypes.values()
    convert("a.safetensors", "d.ckpt", "--precision", "bf16")
    assert torch.bfloat16 in open_weights(tmp_path / "d.ckpt").dtypes.values()


def test_hashes_of_the_weights_go_where_the_weights_change(convert: Convert, tmp_path: Path) -> None:
    told = {"modelspec.hash_sha256": "0x12", "sshs_model_hash": "", "author": "Mira"}
    save_single_file(make_tiny_model("sd1", seed=0), tmp_path / "a.ckpt", told)
    convert("a.ckpt", "b.safetensors")
    assert open_weights(tmp_path / "b.safetensors").metadata["modelspec.hash_sha256"] == "0x12"
    convert("a.ckpt", "c.safetensors", "--precision", "fp16")
    assert open_weights(tmp_path / "c.safetensors").metadata == {"author": "Mira"}


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_folder_becomes_the_file_it_came_from(
    convert: Convert, tiny_models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    words = ["--v2"] if kind == "sd2" else []
    convert(str(tiny_models[kind]), "folder", *words)
    convert("folder", "again.safetensors")
    again, base = tensors_of(tmp_path / "again.safetensors"), tensors_of(tiny_models[kind])
    assert again.keys() == base.keys() and all(torch.equal(again[name], base[name]) for name in base)
    model = load_stable_diffusion(identify(tmp_path / "folder"), "epsilon")
    assert single_file_tensors(model).keys() == base.keys()
