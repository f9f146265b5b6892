"""Folders whose networks are laid out otherwise than Stable Diffusion's are refused, instead of training wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from library.core.errors import UserError
from library.models.identify import identify
from library.models.layouts import check_layout, check_text_layers
from library.models.load import faults_of, load_stable_diffusion


def changed(model_files: Path, tmp_path: Path, file: str, **settings: Any) -> Path:
    """A copy of the SD1 folder with other settings in one of its configuration files."""
    folder = Path(shutil.copytree(model_files / "sd1", tmp_path / "model"))
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("file", "settings", "said"),
    [
        ("unet/config.json", {"attention_head_dim": 4}, "attention_head_dim is 4 instead of 8"),
        ("unet/config.json", {"act_fn": "gelu"}, "act_fn is 'gelu' instead of 'silu'"),
        ("vae/config.json", {"scaling_factor": 0.13025}, "scaling_factor is 0.13025 instead of 0.18215"),
        ("text_encoder/config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu' instead of 'quick_gelu'"),
    ],
)
def test_settings_that_no_tensor_tells(
    model_files: Path, tmp_path: Path, file: str, settings: dict[str, Any], said: str
) -> None:
    identity = identify(changed(model_files, tmp_path, file, **settings))
    with pytest.raises(UserError, match=said):
        load_stable_diffusion(identity, "epsilon")
    assert any(said in fault for fault in faults_of(identity))


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd2_v"])
def test_the_published_layouts_pass(model_files: Path, kind: str) -> None:
    assert faults_of(identify(model_files / kind)) == []


def test_settings_that_change_no_number_are_free(model_files: Path, tmp_path: Path) -> None:
    settings = {"sample_size": 8, "upcast_attention": True, "attention_head_dim": [8, 8, 8, 8]}
    assert faults_of(identify(changed(model_files, tmp_path, "unet/config.json", **settings))) == []


def test_another_noise_schedule_is_refused_and_zero_terminal_snr_is_told(model_files: Path, tmp_path: Path) -> None:
    config = "scheduler/scheduler_config.json"
    with pytest.raises(UserError, match=r"a noise schedule of its own: beta_end is 0\.02"):
        identify(changed(model_files, tmp_path / "a", config, beta_end=0.02))
    identity = identify(changed(model_files, tmp_path / "b", config, rescale_betas_zero_snr=True))
    assert "zero terminal SNR" in identity.notes[0]


def test_text_encoders_of_another_depth_are_refused() -> None:
    with pytest.raises(UserError, match="11 layers instead of the 12"):
        check_text_layers("sd1", 11, "here")
    check_text_layers("sd2", 23, "here")


def test_all_settings_are_compared_that_the_published_layout_names() -> None:
    check_layout({"a": 1, "b": [2, 2], "_c": 3}, {"a": 1, "b": 2, "_c": 4, "sample_size": 5}, "here")
    with pytest.raises(UserError, match="a is None instead of 1; b is 3 instead of 2"):
        check_layout({"b": 3}, {"a": 1, "b": 2}, "here")
