"""Hypernetworks through train_network.py and fine_tune.py, read by a reader of another make."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fine_tune
import train_network
from library.core.errors import UserError
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.stable_diffusion import StableDiffusion
from networks.hypernetwork import create_network_from_weights
from tests.networks.hypernetwork_reader import Reader
from tests.training.styles import CAPTION_FILES, style_words

MODULE = ["--network_module", "networks.hypernetwork"]


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, "mira", photos, tmp_path / "data")


def words_of(model: Path, data: list[str], out: Path, *words: str) -> list[str]:
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out), "--learning_rate", "1e-2"]
    return [*base, "--max_data_loader_n_workers", "0", "--max_train_steps", "2", *words]


def train(model: Path, data: list[str], out: Path, *words: str) -> dict[Any, Any]:
    """The content of the trained file."""
    train_network.main(words_of(model, data, out, *MODULE, *words))
    return content_of(out / "last.pt")


def content_of(file: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = torch.load(file, weights_only=True)
    return content


def tensors_of(content: dict[Any, Any]) -> dict[str, Tensor]:
    pairs = {width: pair for width, pair in content.items() if type(width) is int}
    return {
        f"{width}.{which}.{name}": value
        for width, pair in pairs.items()
        for which, states in enumerate(pair)
        for name, value in states.items()
    }


@cache
def loaded(model: Path) -> StableDiffusion:
    return load_stable_diffusion(identify(model), "epsilon")


@torch.no_grad()
def predict(model: StableDiffusion) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    width = model.text_encoder.config.hidden_size
    latents, states = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 77, width, generator=generator)
    return model.unet(latents, torch.tensor([300]), states).sample


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        pytest.param("sd1", ("layer_structure=1,1.5,2,1", "use_dropout=true"), marks=pytest.mark.slow),
        ("sd2", ("activation_func=relu", "is_layer_norm=true", "weight_initialization=XavierNormal")),
    ],
)
def test_a_trained_file_does_elsewhere_what_it_does_here(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, kind: str, arguments: tuple[str, ...]
) -> None:
    words = ["--network_args", *arguments] if arguments else []
    content = train(tiny_models[kind], data, tmp_path / "out", *words, *(["--v2"] if kind == "sd2" else []))
    base = loaded(tiny_models[kind])
    plain = predict(base)
    file = tmp_path / "out" / "last.pt"
    network, _ = create_network_from_weights(1.0, file, None, None, base.unet, for_inference=True)
    network.apply_to(None, base.unet)
    ours = predict(base)
    network.detach()
    usual = base.unet.attn_processors
    base.unet.set_attn_processor(Reader(file))  # type: ignore[arg-type]
    theirs = predict(base)
    base.unet.set_attn_processor(usual)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-3)
    # every width has learned: biases start at zero
    moved = [name for name, value in tensors_of(content).items() if name.endswith("linear.0.bias") and value.any()]
    assert len(moved) == 6
    assert (content["step"], content["name"], content["sd_checkpoint_name"]) == (2, "last", kind)
    assert len(content["sd_checkpoint"]) == 10


def test_checkpointing_and_the_way_to_start_change_nothing(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    """Gradient checkpointing, training with the text encoder named, and fine_tune.py as older guides have it."""
    model, arguments = tiny_models["sd1"], ["--network_args", "use_dropout=true", "--optimizer_args", "eps=1e-3"]
    arguments += ["--max_train_steps", "1"]
    plain = tensors_of(train(model, data, tmp_path / "a", *arguments, "--network_train_unet_only"))
    again = tensors_of(train(model, data, tmp_path / "b", *arguments, "--gradient_checkpointing"))
    assert all((again[name] - value).abs().max() < 1e-5 for name, value in plain.items())
    old = ["--hypernetwork_module", "networks.hypernetwork", "--hypernetwork_weights", str(tmp_path / "a" / "last.pt")]
    fine_tune.main(words_of(model, data, tmp_path / "c", *old, "--learning_rate", "1e-9"))
    on = tensors_of(content_of(tmp_path / "c" / "last.pt"))
    assert all((on[name] - value).abs().max() < 1e-7 for name, value in plain.items())


def test_network_dropout_is_the_share(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    words = ["--network_dropout", "0.5", "--max_train_steps", "1"]
    assert train(tiny_models["sd1"], data, tmp_path, *words)["dropout_structure"] == [0, 0.5, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network_train_text_encoder_only"], "a hypernetwork changes the U-Net alone"),
        (["--network_args", "layer_structur=1,2,1"], "did you mean layer_structure"),
        (["--network_dim", "16"], "a hypernetwork has no rank"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_models["sd1"], data, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
