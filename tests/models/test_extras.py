from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from library.core.errors import UserError
from library.core.tensor_files import Deferred, made, write_safetensors
from library.models.convert import text_encoder
from library.models.extras import EXTRAS_FILE, ModelExtras, read_extras
from library.models.identify import ModelIdentity, identify
from library.models.load import load_stable_diffusion

TEXT = "cond_stage_model.model."
EXTRA: dict[str, Tensor] = {
    "betas": torch.linspace(0, 1, 1000, dtype=torch.float64),
    "model_ema.decay": torch.tensor(0.9999),
    "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
    "model_ema.diffusion_modelout2bias": torch.ones(4),
    "first_stage_model.loss.logvar": torch.zeros(()),
    "somebodys.own.tensor": torch.arange(3, dtype=torch.uint8),
}


def write_model(path: Path, source: Path, extra: dict[str, Tensor]) -> Path:
    tensors = {**load_file(source), **extra}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "metadata": {"note": "kept"}, "epoch": 3}, path)
    else:
        write_safetensors(path, tensors, {"note": "kept"})
    return path


def assert_same(found: ModelExtras, expected: dict[str, Tensor]) -> None:
    assert set(found.tensors) == set(expected)
    for name, tensor in expected.items():
        promised, read = found.tensors[name], made(found.tensors[name])
        assert (promised.dtype, tuple(promised.shape)) == (tensor.dtype, tuple(tensor.shape)), name
        assert read.dtype == tensor.dtype and torch.equal(read, tensor), name


@pytest.mark.parametrize("suffix", (".safetensors", ".ckpt"))
def test_all_that_no_network_uses_is_an_extra(model_files: Path, tmp_path: Path, suffix: str) -> None:
    position_ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    extra = {**EXTRA, position_ids: torch.arange(77)[None]}
    path = write_model(tmp_path / f"model{suffix}", model_files / "sd1.safetensors", extra)
    extras = read_extras(identify(path))
    assert_same(extras, extra)
    assert all(isinstance(tensor, Deferred) for tensor in extras.tensors.values())
    assert extras.metadata["note"] == "kept"


def test_a_text_encoder_deeper_than_used_is_an_extra(model_files: Path, tmp_path: Path) -> None:
    source = load_file(model_files / "sd2.safetensors")
    unused = [f"{TEXT}transformer.resblocks.23.", f"{TEXT}text_projection", f"{TEXT}logit_scale"]
    deeper = {name: torch.randn(t.shape) for name, t in source.items() if name.startswith(tuple(unused))}
    assert len(deeper) == 14
    deeper[f"{TEXT}attn_mask"] = torch.ones(77, 77)
    path = write_model(tmp_path / "deep.safetensors", model_files / "sd2.safetensors", deeper)
    assert_same(read_extras(identify(path)), deeper)


@pytest.mark.parametrize("kind", ("sd1", "sd2"))
def test_networks_and_extras_share_no_tensor_and_leave_none_out(model_files: Path, tmp_path: Path, kind: str) -> None:
    path = write_model(tmp_path / "model.safetensors", model_files / f"{kind}.safetensors", EXTRA)
    model, extras = load_stable_diffusion(identify(path), "epsilon"), read_extras(identify(path))
    text_names = text_encoder.to_single_file(model.text_encoder.state_dict(), model.family).keys()
    used = {name for name in load_file(path) if name not in extras.tensors}
    assert len(used) == len(model.unet.state_dict()) + len(model.vae.state_dict()) + len(text_names & used)
    assert all(name in text_names or name.startswith(("model.", "first_stage_model.")) for name in used)


def test_loaded_extras_do_not_depend_on_the_file(model_files: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors", model_files / "sd1.safetensors", EXTRA)
    extras = read_extras(identify(path)).loaded()
    path.unlink()
    assert all(isinstance(tensor, Tensor) for tensor in extras.tensors.values())
    assert_same(extras, EXTRA)
    assert extras.metadata == {"note": "kept"}


def test_deferred_extras_read_when_they_are_made(model_files: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors", model_files / "sd1.safetensors", EXTRA)
    extras = read_extras(identify(path))
    path.unlink()
    with pytest.raises((UserError, FileNotFoundError)):
        made(extras.tensors["betas"])


def test_the_running_average_can_be_left_out(model_files: Path, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors", model_files / "sd1.safetensors", EXTRA)
    kept = read_extras(identify(path)).without_ema()
    assert set(kept.tensors) == {name for name in EXTRA if not name.startswith("model_ema.")}
    assert kept.metadata == {"note": "kept"}


def test_a_folder_keeps_its_extras_in_a_file_of_its_own(model_files: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_files / "sd1", tmp_path / "model"))
    identity = ModelIdentity(folder, "sd1", "diffusers", "epsilon")
    (folder / EXTRAS_FILE).unlink(missing_ok=True)
    found = read_extras(identity)
    assert (found.tensors, found.metadata) == ({}, {}) and found.scheduler is not None
    write_safetensors(folder / EXTRAS_FILE, {}, {"note": "alone"})
    found = read_extras(identity)
    assert (found.tensors, found.metadata) == ({}, {"note": "alone"})
    write_safetensors(folder / EXTRAS_FILE, EXTRA, {"note": "kept"})
    assert_same(read_extras(identity), EXTRA)
    assert read_extras(identity).metadata == {"note": "kept"}
