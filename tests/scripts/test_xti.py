"""train_textual_inversion.py --xti: vectors for each layer learn, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import train_textual_inversion
from library.core.errors import UserError
from library.models.embedding_files import LAYERS, read_embedding, write_embedding
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from tests.training.styles import CAPTION_FILES, style_words

WORD = "zumira"


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, WORD, photos, tmp_path / "data")


def train(model: Path, data: list[str], out: Path, *words: str) -> None:
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out), "--token_string", WORD]
    train_textual_inversion.main([*base, "--max_data_loader_n_workers", "0", "--max_train_steps", "1", "--xti", *words])


def test_each_layer_learns_vectors_of_its_own(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--init_word", "grey cat", "--num_vectors_per_token", "2", "--resolution", "128"]
    train(tiny_models["sd1"], data, tmp_path, *words)
    assert "zumira, 2 vectors for each of 16 layers, starting as 'grey cat'" in capsys.readouterr().err
    found = load_file(str(tmp_path / "last.safetensors"))
    assert sorted(found) == sorted(LAYERS) and {value.shape for value in found.values()} == {(2, 32)}
    start = load_stable_diffusion(identify(tiny_models["sd1"]), "epsilon").text_encoder.get_input_embeddings().weight
    changes = {name: value - start[[5046, 2368]] for name, value in found.items()}  # grey, cat
    for name, change in changes.items():
        # AdamW moves each number by the rate at first, unless it has no gradient
        assert 0 < float(change.abs().max()) < 5.5e-4, name
        assert float((change.abs() > 1e-5).float().mean()) > 0.8, name
    signs = torch.stack([change.sign() for change in changes.values()])
    assert len(signs.unique(dim=0)) == 16  # each has a gradient of its own


def test_training_goes_on_from_files_of_both_kinds(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    model, still = tiny_models["sd1"], ["--learning_rate", "1e-9"]
    ordinary: Tensor = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    write_embedding(tmp_path / "plain.pt", ordinary, torch.float32, {})
    train(model, data, tmp_path / "a", "--weights", str(tmp_path / "plain.pt"), *still)
    first = load_file(str(tmp_path / "a" / "last.safetensors"))
    assert all(torch.allclose(value, ordinary, atol=1e-6) for value in first.values()) and len(first) == 16
    words = ["--weights", str(tmp_path / "a" / "last.safetensors"), "--save_model_as", "pt", "--gradient_checkpointing"]
    train(model, data, tmp_path / "b", *words, "--learning_rate", "0.1")
    second = torch.load(tmp_path / "b" / "last.pt", weights_only=True)
    assert all(0.05 < (second[name] - value).abs().max() < 0.11 for name, value in first.items() if name != "MID")


@pytest.mark.slow  # tests/methods shows the same without a run
def test_gradient_checkpointing_changes_nothing(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    words = ["--optimizer_args", "eps=1e-3", "--learning_rate", "0.1"]
    train(tiny_models["sd1"], data, tmp_path / "a", *words)
    train(tiny_models["sd1"], data, tmp_path / "b", *words, "--gradient_checkpointing")
    first, second = (load_file(str(tmp_path / name / "last.safetensors")) for name in "ab")
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in LAYERS)


def test_what_cannot_be_is_told_before_a_model_is_loaded(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="cache_text_encoder_outputs"):
        train(tiny_models["sd1"], data, tmp_path / "out", "--cache_text_encoder_outputs")
    write_embedding(tmp_path / "plain.pt", torch.ones(3, 32), torch.float32, {})
    with pytest.raises(UserError, match=r"plain\.pt holds 3 vectors, not 2"):
        train(tiny_models["sd1"], data, tmp_path / "out", "--weights", str(tmp_path / "plain.pt"),
              "--num_vectors_per_token", "2")  # fmt: skip
    write_embedding(tmp_path / "wide.pt", torch.ones(3, 768), torch.float32, {})
    with pytest.raises(UserError, match="its vectors have 768 numbers"):
        train(tiny_models["sd1"], data, tmp_path / "out", "--weights", str(tmp_path / "wide.pt"))
    assert not (tmp_path / "out").exists() and read_embedding(tmp_path / "plain.pt").shape == (3, 32)
