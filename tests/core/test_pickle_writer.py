"""Files of tensors as torch.save writes them: torch reads them, scanners let them pass, the bytes never vary."""

from __future__ import annotations

import os
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from library.core.pickle_writer import write_pickled, write_pickled_content
from library.core.pickled import read_pickled
from library.core.tensor_files import DTYPE_NAMES, Deferred

ROOT = Path(__file__).resolve().parents[2]
TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(3, 0, 2),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "half": torch.ones(3, dtype=torch.float16),
    "bfloat": torch.linspace(0, 1, 3).to(torch.bfloat16),
    "ids": torch.arange(4),
    "int": torch.arange(4, dtype=torch.int32),
    "short": torch.arange(4, dtype=torch.int16),
    "char": torch.arange(4, dtype=torch.int8),
    "byte": torch.arange(4, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "名前.weight": torch.ones(1),
}
BYTES = torch.arange(1, 97, dtype=torch.uint8)
NEWER = {str(dtype): BYTES.clone().view(dtype).reshape(2, -1) for dtype in DTYPE_NAMES if dtype != torch.bool}
BESIDE = {"epoch": 3, "global_step": 123_456, "large": 2**40, "metadata": {"ss_名前": "値", "b": "x", "negative": -1}}


@pytest.mark.parametrize("mmap", (True, False))
@pytest.mark.parametrize("beside", (None, {}, BESIDE))
def test_torch_reads_what_we_write(tmp_path: Path, beside: dict[str, object] | None, mmap: bool) -> None:
    write_pickled(tmp_path / "a.ckpt", TENSORS, beside)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=mmap)
    tensors = content if beside is None else content.pop("state_dict")
    assert beside is None or content == beside
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name
        assert tensors[name].is_contiguous() and not tensors[name].requires_grad


@pytest.mark.parametrize("mmap", (True, False))
def test_every_number_format_that_is_read_is_written(tmp_path: Path, mmap: bool) -> None:
    tensors = {**NEWER, "empty": torch.zeros(0, 2).to(torch.float8_e5m2)}
    write_pickled(tmp_path / "a.ckpt", tensors, None)
    theirs, ours = torch.load(tmp_path / "a.ckpt", weights_only=True, mmap=mmap), read_pickled(tmp_path / "a.ckpt")
    assert list(theirs) == list(ours.content) == sorted(tensors) and len(NEWER) == 18
    for name, tensor in tensors.items():
        for found in (theirs[name], ours.read(ours.content[name])):
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
            assert torch.equal(found.flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name


def test_newer_formats_are_written_as_torch_does(tmp_path: Path) -> None:
    write_pickled(tmp_path / "ours.ckpt", NEWER, None)
    torch.save(dict(sorted(NEWER.items())), tmp_path / "archive.ckpt")
    assert names_in(tmp_path / "ours.ckpt") == names_in(tmp_path / "archive.ckpt")


def names_in(path: Path) -> set[object]:
    with zipfile.ZipFile(path) as archive:
        return {word for code, word, _ in pickletools.genops(archive.read("archive/data.pkl")) if code.name == "GLOBAL"}


def test_the_layout_is_that_of_torch(tmp_path: Path) -> None:
    write_pickled(tmp_path / "ours.ckpt", TENSORS, None)
    torch.save(TENSORS, tmp_path / "archive.ckpt")
    with zipfile.ZipFile(tmp_path / "ours.ckpt") as ours, zipfile.ZipFile(tmp_path / "archive.ckpt") as theirs:
        assert ours.testzip() is None  # every checksum is right
        assert set(ours.namelist()) <= set(theirs.namelist())
        assert ours.namelist()[0] == "archive/data.pkl"
        for record in ("archive/version", "archive/byteorder"):
            assert ours.read(record) == theirs.read(record)
        stored = [entry for entry in ours.infolist() if "/data/" in entry.filename]
    assert len(stored) == len(TENSORS)
    content = (tmp_path / "ours.ckpt").read_bytes()
    for entry in stored:
        assert entry.compress_type == zipfile.ZIP_STORED
        name, extra = (int.from_bytes(content[entry.header_offset + i :][:2], "little") for i in (26, 28))
        assert (entry.header_offset + 30 + name + extra) % 64 == 0


def test_a_safety_scanner_sees_only_harmless_names(tmp_path: Path) -> None:
    write_pickled(tmp_path / "a.ckpt", TENSORS, BESIDE)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        objects = archive.read("archive/data.pkl")
    opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(objects)]
    assert opcodes[0] == ("PROTO", 2)
    names = {argument for opcode, argument in opcodes if "GLOBAL" in opcode or opcode == "INST"}
    storages = {name for name in names if name.startswith("torch ") and name.endswith("Storage")}
    assert names - storages == {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
    assert len(storages) == 10


def test_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    write_pickled(tmp_path / "a.ckpt", TENSORS, BESIDE)
    write_pickled(tmp_path / "b.ckpt", dict(reversed(TENSORS.items())), BESIDE)
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()
    program = (
        "import sys, pathlib; sys.path.insert(0, '.')\n"
        "from tests.core.test_pickle_writer import *\n"
        "write_pickled(pathlib.Path(sys.argv[1]), TENSORS, BESIDE)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "c.ckpt")]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"})
    assert (tmp_path / "c.ckpt").read_bytes() == (tmp_path / "a.ckpt").read_bytes()


def test_deferred_tensors_are_made_one_after_the_other(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(torch.Tensor):
        pass

    most = 0

    def make(number: int) -> torch.Tensor:
        nonlocal most
        made = torch.full((4,), float(number)).as_subclass(Counted)
        weak = __import__("weakref").finalize(made, alive.remove, number)
        weak.atexit = False
        alive.append(number)
        most = max(most, len(alive))
        return made

    tensors = {f"t{number}": Deferred(torch.float32, (4,), lambda n=number: make(n)) for number in range(9)}
    write_pickled(tmp_path / "a.ckpt", tensors, {})
    assert 1 <= most <= 2  # the one being written, and the next
    read = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {name: tensor[0].item() for name, tensor in read.items()} == {f"t{n}": float(n) for n in range(9)}


def test_broken_promises_and_odd_values_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    with pytest.raises(ValueError, match=r"x: torch.float32 \(2,\) instead of"):
        write_pickled(path, {"x": Deferred(torch.float32, (3,), lambda: torch.ones(2))}, None)
    with pytest.raises(ValueError, match=r"x: torch\.complex128 cannot be stored"):
        write_pickled(path, {"x": torch.ones(2, dtype=torch.complex128)}, None)
    for value in (1.5, [1], True, None):
        with pytest.raises(ValueError, match=r"metadata\.a: a .* is neither text"):
            write_pickled(path, {}, {"metadata": {"a": value}})
    assert list(tmp_path.iterdir()) == []


def test_what_we_write_we_read(tmp_path: Path) -> None:
    write_pickled(tmp_path / "a.ckpt", TENSORS, BESIDE)
    read = read_pickled(tmp_path / "a.ckpt")
    assert {key: value for key, value in read.content.items() if key != "state_dict"} == BESIDE
    for name, tensor in TENSORS.items():
        assert torch.equal(read.read(read.content["state_dict"][name]), tensor)


@pytest.mark.slow
def test_files_beyond_four_gigabytes(tmp_path: Path) -> None:
    def make() -> torch.Tensor:
        tensor = torch.zeros(1_100_000_000, dtype=torch.int16)  # larger than 2 GiB, which alone needs wide sizes
        tensor[-1] = 7
        return tensor

    tensors = {name: Deferred(torch.int16, (1_100_000_000,), make) for name in ("a", "b")}
    path = tmp_path / "large.ckpt"
    write_pickled(path, {**tensors, "z": torch.arange(3)}, None)
    assert path.stat().st_size > 2**32
    content = torch.load(path, weights_only=True, mmap=True)
    assert content["b"][-1] == 7 and content["z"].tolist() == [0, 1, 2]
    read = read_pickled(path)
    assert read.read(read.content["z"]).tolist() == [0, 1, 2]
    assert read.read(read.content["b"])[-1] == 7
    path.unlink()


NESTED: dict[str | int, object] = {
    768: ({"linear.0.weight": torch.ones(2, 3)}, {"linear.0.weight": torch.zeros(2, 3)}),
    "layer_structure": [1, 1.5, 1],
    "is_layer_norm": True,
    "off": False,
    "sd_checkpoint": None,
    "name": "名前",
    "step": 12,
    "empty": [],
    "more": {"ids": torch.arange(3)},
}


def test_nested_content_is_read_by_torch_and_by_us(tmp_path: Path) -> None:
    write_pickled_content(tmp_path / "a.pt", NESTED)
    theirs, ours = torch.load(tmp_path / "a.pt", weights_only=True), read_pickled(tmp_path / "a.pt")
    plain = {key: value for key, value in NESTED.items() if key not in (768, "more")}
    for found in (theirs, ours.content):
        assert list(found) == list(NESTED)
        assert {key: found[key] for key in plain} == plain
        assert type(found["is_layer_norm"]) is bool and type(found["layer_structure"][0]) is int
        assert isinstance(found[768], tuple)
    assert torch.equal(theirs[768][0]["linear.0.weight"], torch.ones(2, 3))
    assert torch.equal(theirs[768][1]["linear.0.weight"], torch.zeros(2, 3))
    assert torch.equal(ours.read(ours.content["more"]["ids"]), torch.arange(3))


def test_nested_content_has_the_same_bytes_each_time_and_refuses_odd_values(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        write_pickled_content(tmp_path / name, NESTED)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    with pytest.raises(ValueError, match=r"a\.1: a set is neither"):
        write_pickled_content(tmp_path / "c.pt", {"a": [1, {2}]})
    assert not (tmp_path / "c.pt").exists()
