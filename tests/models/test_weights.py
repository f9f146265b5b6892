from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from library.core.errors import UserError
from library.core.tensor_files import write_safetensors
from library.models.weights import open_weights

TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "scalar": torch.tensor(2.5),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "ids": torch.arange(4),
    "empty": torch.zeros(0, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def test_safetensors_of_the_reference_library_are_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, path, {"note": "grüße"})
    opened = open_weights(path)
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        assert torch.equal(opened.read(name), tensor)
        assert opened.read(name).dtype == tensor.dtype


@pytest.mark.parametrize("suffix", (".safetensors", ".ckpt"))
def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": TENSORS}, path)
    else:
        write_safetensors(path, TENSORS, {})
    opened = open_weights(path)
    opened.read("matrix").fill_(9)
    assert torch.equal(open_weights(path).read("matrix"), TENSORS["matrix"])


def test_tensors_that_share_memory_in_a_pickle_are_separated(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save({"whole": whole, "same": whole, "part": whole[2:4]}, tmp_path / "model.ckpt")
    opened = open_weights(tmp_path / "model.ckpt")
    tensors = {name: opened.read(name) for name in ("whole", "same", "part")}
    tensors["whole"].fill_(9)
    assert tensors["same"].tolist() == [0, 1, 2, 3, 4, 5]
    assert tensors["part"].tolist() == [2, 3]


def test_pickles_of_the_time_before_zip_are_read(tmp_path: Path) -> None:
    torch.save({"matrix": TENSORS["matrix"], "epoch": 3}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    opened = open_weights(tmp_path / "a.ckpt")
    assert list(opened.shapes) == ["matrix"]
    assert torch.equal(opened.read("matrix"), TENSORS["matrix"])


class Callback:
    """Stands for the training objects that old checkpoints carry."""


def test_pickles_with_foreign_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Callback()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"Python objects besides tensors(.|\n)*\.safetensors version"):
        open_weights(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ("a.ckpt", "a.safetensors"))
@pytest.mark.parametrize("content", (b"", b"abc", b"garbage that is no model at all", b"\x10" + b"\0" * 7 + b"{]" * 8))
def test_damaged_files_are_reported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"the file is damaged(.|\n)*download or copy"):
        open_weights(tmp_path / name)


def test_a_cut_off_file_tells_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"10 of its [0-9]+ bytes are missing"):
        open_weights(path)
    torch.save(TENSORS, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        open_weights(tmp_path / "a.ckpt")


def test_sizes_that_contradict_each_other_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"matrix": TENSORS["matrix"]}, {})
    path.write_bytes(path.read_bytes().replace(b"[2,3]", b"[2,4]"))
    with pytest.raises(UserError, match="make no sense, first matrix"):
        open_weights(path)
