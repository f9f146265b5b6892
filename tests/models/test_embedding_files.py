"""Embedding files: what we write loads elsewhere, what others wrote loads here, and the rest is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from library.core.errors import UserError
from library.models.embedding_files import (
    LAYERS,
    check_width,
    read_embedding,
    read_layered_embedding,
    text_width,
    write_embedding,
    write_layered_embedding,
)
from library.models.extras import ModelExtras
from library.models.files.weights import open_weights
from library.models.forms import SaveTarget
from library.models.identify import identify
from library.models.recognise import EMBEDDING, recognise
from library.models.save import Precisions, save_model
from library.models.tiny import make_tiny_model

VECTORS = torch.linspace(-1, 1, 2 * 768).reshape(2, 768)


@pytest.mark.parametrize("name", ["zu.safetensors", "zu.pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_read(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    path = tmp_path / name
    write_embedding(path, VECTORS.requires_grad_(), dtype, {"ss_steps": "3"})
    theirs = load_file(str(path)) if name.endswith("safetensors") else torch.load(path, weights_only=True)
    assert set(theirs) == {"emb_params"} and theirs["emb_params"].dtype == dtype
    assert torch.equal(theirs["emb_params"], VECTORS.to(dtype))
    assert torch.equal(read_embedding(path), VECTORS.to(dtype).float())
    assert recognise(open_weights(path).shapes).kind == EMBEDDING
    assert open_weights(path).metadata.get("ss_steps") == ("3" if name.endswith("safetensors") else None)


def test_a_value_beyond_the_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="emb_params holds 100000"):
        write_embedding(tmp_path / "zu.pt", torch.full((1, 768), 1e5), torch.float16, {})
    assert not list(tmp_path.iterdir())


def web_ui_file(vectors: torch.Tensor) -> dict[str, object]:
    """As AUTOMATIC1111's Web UI saves embeddings."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "zu",
        "step": 500,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": "v1-5",
    }


def original_file(vectors: torch.Tensor) -> dict[str, object]:
    """As the first implementation of the paper saved them, with torch's own container."""
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": vectors})}


@pytest.mark.parametrize("make", [web_ui_file, original_file])
@pytest.mark.parametrize("rows", [1, 4])
def test_files_of_the_web_ui_are_read(tmp_path: Path, make: object, rows: int) -> None:
    vectors = torch.randn(rows, 768, generator=torch.Generator().manual_seed(rows))
    torch.save(make(nn.Parameter(vectors.clone())), tmp_path / "zu.pt")  # type: ignore[operator]
    found = read_embedding(tmp_path / "zu.pt")
    assert torch.equal(found, vectors) and not found.requires_grad


def test_files_of_diffusers_are_read(tmp_path: Path) -> None:
    save_file({"<zu-mira>": VECTORS[0].clone()}, tmp_path / "zu.safetensors")
    torch.save({"<zu-mira>": VECTORS.clone()}, tmp_path / "zu.bin")
    assert torch.equal(read_embedding(tmp_path / "zu.safetensors"), VECTORS[:1])
    assert torch.equal(read_embedding(tmp_path / "zu.bin"), VECTORS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_a.lora_down.weight": torch.ones(4, 8)}, "this is a LoRA, no embedding"),
        (
            {"IN01": torch.ones(1, 768), "MID": torch.ones(1, 768)},
            "Extended Textual Inversion, with vectors for each layer",
        ),
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, "embedding for SDXL, with 2"),
        ({"emb_params": torch.ones(2, 3, 768)}, r"its tensor has the shape \(2, 3, 768\)"),
        ({"emb_params": torch.ones(0, 768)}, r"its tensor has the shape \(0, 768\)"),
        ({"emb_params": torch.ones(2, 768, dtype=torch.int64)}, "and a row for each vector is needed"),
        ({"emb_params": torch.full((1, 768), float("nan"))}, "its vectors are not finite"),
        ({"a": torch.ones(3), "b": torch.ones(3)}, "this is nothing known; its first tensors: a, b, no embedding"),
    ],
)
def test_other_files_are_named(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        read_embedding(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_the_width_of_a_model_is_told_by_its_files(tmp_path: Path, tiny_models: dict[str, Path], kind: str) -> None:
    model = make_tiny_model(kind, seed=0)
    width = model.text_encoder.config.hidden_size
    assert text_width(identify(tiny_models[kind])) == width
    save_model(model, SaveTarget(tmp_path / "m", "diffusers_safetensors"), Precisions(), ModelExtras(), {}, {})
    identity = identify(tmp_path / "m")
    assert text_width(identity) == width
    check_width(torch.ones(1, width), tmp_path / "zu.pt", identity)
    with pytest.raises(UserError, match=rf"zu.pt: its vectors have 768 numbers, and those of m .* have {width}"):
        check_width(VECTORS, tmp_path / "zu.pt", identity)


OF_LAYERS = torch.randn(16 * 3, 768, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["zu.safetensors", "zu.pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vectors_of_layers_are_written_and_read(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    path = tmp_path / name
    write_layered_embedding(path, OF_LAYERS, dtype, {"ss_steps": "3"})
    theirs = load_file(str(path)) if name.endswith("safetensors") else torch.load(path, weights_only=True)
    names = [
        "IN01",
        "IN02",
        "IN04",
        "IN05",
        "IN07",
        "IN08",
        "MID",
        "OUT03",
        "OUT04",
        "OUT05",
        "OUT06",
        "OUT07",
        "OUT08",
        "OUT09",
        "OUT10",
        "OUT11",
    ]
    assert sorted(theirs) == names
    for number, layer in enumerate(names):
        assert theirs[layer].dtype == dtype
        assert torch.equal(theirs[layer], OF_LAYERS[3 * number : 3 * number + 3].to(dtype))
    assert torch.equal(read_layered_embedding(path), OF_LAYERS.to(dtype).float())
    with pytest.raises(UserError, match="train with --xti as well"):
        read_embedding(path)


def test_an_ordinary_embedding_is_given_to_every_layer(tmp_path: Path) -> None:
    write_embedding(tmp_path / "zu.pt", VECTORS, torch.float32, {})
    assert torch.equal(read_layered_embedding(tmp_path / "zu.pt"), VECTORS.repeat(16, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MID": None}, "not those of Stable Diffusion: MID missing"),
        ({"IN03": torch.ones(1, 768)}, "IN03 too many"),
        ({"OUT11": torch.ones(2, 768)}, "different numbers of vectors"),
        ({"OUT11": torch.ones(1, 1024)}, "different numbers of vectors"),
        ({"OUT11": torch.full((1, 768), float("inf"))}, "not finite"),
    ],
)
def test_layers_that_do_not_fit_are_told(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {**dict.fromkeys(LAYERS, torch.ones(1, 768)), **change}
    save_file({name: value.clone() for name, value in tensors.items() if value is not None}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        read_layered_embedding(tmp_path / "x.safetensors")
