"""Safetensors files: readable by the reference library, deterministic, whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.core.tensor_files import (
    DTYPE_NAMES,
    HEADER_LIMIT,
    LEGACY_HASH_KEY,
    MODEL_HASH_KEY,
    data_hash,
    legacy_hash,
    with_hashes,
    write_safetensors,
)
from library.models.files.weights import open_weights


def example(size: int = 3) -> dict[str, torch.Tensor]:
    return {
        "b.weight": torch.arange(2 * size, dtype=torch.float32).view(2, size).t(),
        "a.weight": torch.linspace(-1, 1, 5).to(torch.float16),
        "c.alpha": torch.tensor(1.5, dtype=torch.bfloat16),
        "d.empty": torch.zeros(0, 4),
        "e.ids": torch.arange(4),
    }


def in_every_dtype() -> dict[str, torch.Tensor]:
    """A tensor of each number format with bytes that differ; 0 and 1 for truth values."""
    numbers = torch.arange(1, 97, dtype=torch.uint8)
    tensors = {str(dtype): numbers.view(dtype).reshape(2, -1) for dtype in DTYPE_NAMES if dtype != torch.bool}
    return {**tensors, "torch.bool": torch.tensor([True, False, True])}


def test_the_reference_library_reads_what_we_write(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", example()
    write_safetensors(path, tensors, {"ss_名前": "値", "a": "b"})
    read = load_file(str(path))
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"ss_名前": "値", "a": "b"}


def test_metadata_that_no_reader_would_take_is_refused(tmp_path: Path) -> None:
    """Readers refuse a header of 100 MB; a folder of many tags has made such files elsewhere."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, example(), {"a": "b"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"would make x\.safetensors unreadable"):
        write_safetensors(path, example(), {"ss_tag_frequency": "x" * HEADER_LIMIT})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_bytes_do_not_depend_on_order(tmp_path: Path) -> None:
    tensors = example()
    write_safetensors(tmp_path / "1", tensors, {"a": "1", "b": "2"})
    write_safetensors(tmp_path / "2", dict(reversed(tensors.items())), {"b": "2", "a": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("size", [3, 400_000])
def test_hashes_inside_describe_the_file_that_holds_them(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, example(size), with_hashes({"ss_a": "b"}))
    content = path.read_bytes()
    header = int.from_bytes(content[:8], "little")
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
    assert metadata[MODEL_HASH_KEY] == hashlib.sha256(content[8 + header :]).hexdigest() == data_hash(path)
    expected = hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert metadata[LEGACY_HASH_KEY] == expected == legacy_hash(path)


@pytest.mark.parametrize("asked", [(MODEL_HASH_KEY,), (LEGACY_HASH_KEY,), (LEGACY_HASH_KEY, MODEL_HASH_KEY)])
@pytest.mark.parametrize("given", ["", "0x1234", "f" * 64, "g" * 900, "値\n"])
def test_only_hashes_that_are_asked_for_are_filled_in(tmp_path: Path, asked: tuple[str, ...], given: str) -> None:
    path = tmp_path / "x.safetensors"
    metadata = {"ss_a": "b", **dict.fromkeys(asked, given)}
    write_safetensors(path, example(400_000), metadata)
    told = {MODEL_HASH_KEY: data_hash(path), LEGACY_HASH_KEY: legacy_hash(path)}
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"ss_a": "b", **{key: told[key] for key in asked}}
    assert torch.equal(load_file(str(path))["b.weight"], example(400_000)["b.weight"])
    assert metadata[asked[0]] == given  # the caller's dict is his own


def test_every_dtype_of_the_format_is_written(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", in_every_dtype()
    write_safetensors(path, tensors, {})
    read, ours = load_file(str(path)), open_weights(path)
    assert set(read) == set(ours.shapes) == set(tensors) and len(tensors) == 19
    for name, tensor in tensors.items():
        for found in (read[name], ours.read(name)):
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
            assert torch.equal(found.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.ones(2)}, {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot be stored"):
        write_safetensors(path, {"a": torch.ones(2, dtype=torch.complex128)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_metadata_that_would_make_the_file_unreadable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unreadable"):
        write_safetensors(tmp_path / "x", {"a": torch.ones(1)}, {"big": "x" * 50_000_001})
    assert list(tmp_path.iterdir()) == []
