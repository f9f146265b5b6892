"""Files of named tensors: facts without reading weights, one tensor at a time, clear words on what is wrong."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from library.core.errors import UserError
from library.core.pickle_writer import write_pickled
from library.core.tensor_files import write_safetensors
from library.models.files.weights import open_weights, open_weights_or_metadata

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


def test_facts_stand_beside_the_tensors(tmp_path: Path) -> None:
    metadata = {"ss_epoch": "2", "note": "grüße"}
    write_safetensors(tmp_path / "a.safetensors", TENSORS, metadata)
    counters = {"epoch": 5, "global_step": 70, "metadata": {**metadata, "number": 3}}
    torch.save({"state_dict": TENSORS, **counters}, tmp_path / "a.ckpt")
    opened = [open_weights(tmp_path / name) for name in ("a.safetensors", "a.ckpt")]
    for file in opened:
        assert file.path.parent == tmp_path
        assert file.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
        assert file.dtypes == {name: tensor.dtype for name, tensor in TENSORS.items()}
        assert file.notes == ()
    assert opened[0].metadata == metadata
    assert opened[1].metadata == {"ss_epoch": "2", "ss_steps": "70", "note": "grüße"}  # what was written down wins


def test_offsets_lead_to_the_values_in_the_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", TENSORS, {})
    torch.save(TENSORS, tmp_path / "a.ckpt")
    torch.save(TENSORS, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.ckpt", "old.ckpt"):
        opened, content = open_weights(tmp_path / name), (tmp_path / name).read_bytes()
        for key in ("matrix", "scalar", "ids"):
            offset, expected = opened.offset(key), TENSORS[key].numpy().tobytes()
            assert offset is not None and content[offset : offset + len(expected)] == expected
    assert open_weights(tmp_path / "a.ckpt").offset("turned") is None
    torch.save({"a": TENSORS["matrix"], "b": TENSORS["matrix"], "c": TENSORS["ids"]}, tmp_path / "a.ckpt")
    opened = open_weights(tmp_path / "a.ckpt")
    assert opened.offset("a") is None and opened.offset("b") is None  # one memory for two tensors would not do
    assert opened.offset("c") is not None


def test_counters_that_are_no_whole_numbers_are_no_facts(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "epoch": True, "global_step": 1.5, "metadata": "x"}, tmp_path / "a.ckpt")
    assert open_weights(tmp_path / "a.ckpt").metadata == {}


@pytest.mark.parametrize("suffix", (".ckpt", ".bin", ".pt", ".pth", ".PT"))
def test_all_names_of_pickled_files_are_known(tmp_path: Path, suffix: str) -> None:
    torch.save(TENSORS, tmp_path / f"a{suffix}")
    assert torch.equal(open_weights(tmp_path / f"a{suffix}").read("turned"), TENSORS["turned"])


def test_tensors_inside_other_things_get_dotted_names(tmp_path: Path) -> None:
    one, two = torch.ones(1), torch.ones(2)
    hypernetwork = {"step": 3, 768: ({"linear.0.weight": one}, {"linear.0.weight": two}), "name": "x"}
    torch.save(hypernetwork, tmp_path / "a.pt")
    assert open_weights(tmp_path / "a.pt").shapes == {"768.0.linear.0.weight": (1,), "768.1.linear.0.weight": (2,)}
    embedding = {"string_to_token": {"*": 265}, "string_to_param": torch.nn.ParameterDict({"*": two}), "step": 9}
    torch.save(embedding, tmp_path / "a.pt")
    opened = open_weights(tmp_path / "a.pt")
    assert opened.shapes == {"string_to_param.*": (2,)}
    assert torch.equal(opened.read("string_to_param.*"), two)
    torch.save([one, [two]], tmp_path / "a.pt")
    assert open_weights(tmp_path / "a.pt").shapes == {"0": (1,), "1.0": (2,)}


def test_only_the_state_dict_counts_where_there_is_one(tmp_path: Path) -> None:
    content = {"optimizer_states": [{"exp_avg": torch.ones(3)}], "state_dict": {"a": torch.ones(1)}}
    torch.save(content, tmp_path / "a.ckpt")
    assert list(open_weights(tmp_path / "a.ckpt").shapes) == ["a"]


def test_containers_without_end_are_no_trap(tmp_path: Path) -> None:
    endless: dict[str, object] = {"a": torch.ones(1)}
    endless["self"] = endless
    wide: list[object] = [torch.ones(1)]
    for _ in range(40):
        wide = [wide] * 10
    torch.save({"endless": endless, "wide": wide}, tmp_path / "a.pt")
    assert list(open_weights(tmp_path / "a.pt").shapes) == ["endless.a"]


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(2)}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"two tensors of the name a\.b"):
        open_weights(tmp_path / "a.pt")


class Callback:
    """Stands for the training objects that old checkpoints carry."""


def test_foreign_objects_are_left_out_with_a_note(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "callbacks": Callback()}, tmp_path / "a.ckpt")
    opened = open_weights(tmp_path / "a.ckpt")
    assert torch.equal(opened.read("matrix"), TENSORS["matrix"])
    (note,) = opened.notes
    assert note.startswith("objects that are no tensors were left out: ") and note.endswith(".Callback")


def test_malicious_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    objects = b"cos\nsystem\n(X" + struct.pack("<I", len(f"touch {target}")) + f"touch {target}".encode() + b"tR."
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", objects)
    (tmp_path / "b.ckpt").write_bytes(objects)
    (tmp_path / "c.pt").write_bytes(b"\x80\x04" + objects)
    for name in ("a.ckpt", "b.ckpt", "c.pt"):
        with pytest.raises(UserError, match=r"tries to run os\.system(.|\n)*delete it"):
            open_weights(tmp_path / name)
    assert not target.exists()


@pytest.mark.parametrize("name", ("a.ckpt", "a.safetensors"))
@pytest.mark.parametrize("content", (b"", b"abc", b"\x10" + b"\0" * 8 + b"{]" * 8, b"\xfe" * 50, b"\0" * 5000))
def test_damaged_files_are_reported(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"the file is damaged(.|\n)*download or copy"):
        open_weights(tmp_path / name)


def test_a_cut_off_file_tells_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, TENSORS, {})
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"10 of its [0-9]+ bytes are missing"):
        open_weights(path)
    path.write_bytes(content[:50])
    with pytest.raises(UserError, match=r"cut off inside its header"):
        open_weights(path)
    torch.save(TENSORS, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:-200])
    with pytest.raises(UserError, match="damaged"):
        open_weights(tmp_path / "a.ckpt")


def write_header(path: Path, text: str, data: int) -> Path:
    content = text.encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + b"\0" * data)
    return path


def entry(name: str, start: int, end: int, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


@pytest.mark.parametrize(
    ("header", "data", "message"),
    (
        ((entry("a", 0, 8), entry("a", 8, 16)), 16, "its header names a twice"),
        ((entry("a", 0, 8), entry("b", 4, 12)), 12, "the tensors a and b overlap"),
        ((entry("a", 0, 8), entry("b", 12, 20)), 20, "4 bytes between a and b belong to no tensor"),
        ((entry("a", 0, 8),), 7, "1 of its [0-9]+ bytes are missing"),
        ((entry("a", 0, 8),), 9, "1 bytes longer than its header says"),
        ((entry("a", -8, 0),), 8, "describes a in a way that makes no sense"),
        ((entry("a", 8, 0),), 8, "the shape .* of a needs 8 bytes, but it has -8"),
        ((entry("a", 0, 8, "[3]"),), 8, "needs 12 bytes, but it has 8"),
        ((entry("a", 0, 8, "[-2, -1]"),), 8, "describes a in a way"),
        ((entry("a", 0, 8, "[2.0]"),), 8, "describes a in a way"),
        ((entry("a", 0, 8, "[true, 2]"),), 8, "describes a in a way"),
        ((entry("a", 0, 8, str([2**62] * 60)),), 8, "of a needs"),
        ((entry("a", 0, 8, dtype="Q4_0"),), 8, "the number format Q4_0 of a is unknown"),
        (('"a":[1,2]',), 8, "describes a in a way"),
        (('"a":{"dtype":"F32"}',), 8, "describes a in a way"),
        (('"a":',), 8, "no valid JSON"),
        (('"__metadata__":{"x":"y"}',), 0, "no tensors at all"),
        ((), 0, "no tensors at all"),
    ),
)
def test_headers_that_contradict_themselves_are_reported(
    tmp_path: Path, header: tuple[str, ...], data: int, message: str
) -> None:
    path = write_header(tmp_path / "a.safetensors", f"{{{','.join(header)}}}", data)
    with pytest.raises(UserError, match=message):
        open_weights(path)


def test_odd_headers_are_reported(tmp_path: Path) -> None:
    path = write_header(tmp_path / "a.safetensors", "{" * 100_000, 0)
    with pytest.raises(UserError, match="no valid JSON"):
        open_weights(path)
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}" * 20)
    with pytest.raises(UserError, match="its header would be 1152921504606846976 bytes long"):
        open_weights(path)
    write_header(path, f'{{"__metadata__":[1],{entry("a", 0, 8)}}}', 8)
    assert open_weights(path).metadata == {}


def test_safetensors_with_odd_bytes_give_a_user_error_or_nothing_worse(tmp_path: Path) -> None:
    path, generator = tmp_path / "a.safetensors", random.Random(0)
    write_safetensors(path, TENSORS, {"a": "b"})
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        changed[generator.randrange(end)] = generator.randrange(256)
        path.write_bytes(changed)
        try:
            opened = open_weights(path)
            for name in opened.shapes:
                opened.read(name)
        except UserError:
            refused += 1
    assert refused > 150


def test_misnamed_files_are_told_their_right_name(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.ckpt", TENSORS, {})
    with pytest.raises(UserError, match=r"this is a safetensors file(.|\n)*rename it to a\.safetensors"):
        open_weights(tmp_path / "a.ckpt")
    for is_zip in (True, False):
        torch.save(TENSORS, tmp_path / "b.safetensors", _use_new_zipfile_serialization=is_zip)
        with pytest.raises(UserError, match=r"this is a file of torch\.save(.|\n)*rename it to b\.ckpt"):
            open_weights(tmp_path / "b.safetensors")
    torch.save(TENSORS, tmp_path / "a.model")
    with pytest.raises(UserError, match=r"ends in \.safetensors, \.ckpt, \.bin, \.pt, \.pth"):
        open_weights(tmp_path / "a.model")


def test_a_file_that_goes_away_or_shrinks_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"matrix": torch.ones(10_000)}, {})
    opened = open_weights(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match="ends inside the tensor matrix"):
        opened.read("matrix")
    path.unlink()
    for act in (lambda: opened.read("matrix"), lambda: open_weights(path)):
        with pytest.raises(UserError, match="no such file"):
            act()


def test_metadata_without_tensors_is_for_those_who_ask_for_it(tmp_path: Path) -> None:
    path = tmp_path / "single_file_extras.safetensors"
    write_safetensors(path, {}, {"author": "Mira"})
    file = open_weights_or_metadata(path)
    assert (dict(file.shapes), dict(file.metadata)) == ({}, {"author": "Mira"})
    with pytest.raises(UserError, match="holds no tensors at all"):
        open_weights(path)
    write_safetensors(path, {"a": torch.ones(2)}, {})
    assert torch.equal(open_weights_or_metadata(path).read("a"), torch.ones(2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"1 of its [0-9]+ bytes are missing"):
        open_weights_or_metadata(path)
    write_pickled(tmp_path / "a.ckpt", {}, {"metadata": {"author": "Mira"}})
    assert open_weights_or_metadata(tmp_path / "a.ckpt").metadata == {"author": "Mira"}


def test_metadata_can_always_be_written_again(tmp_path: Path) -> None:
    texts = r'"__metadata__":{"half \ud83d":"a\udc00b","whole \ud83d\ude00":"\u732b\u0000"},'
    path = write_header(tmp_path / "a.safetensors", f"{{{texts}{entry('x', 0, 8)}}}", 8)
    metadata = open_weights(path).metadata
    assert metadata == {"half \ufffd": "a\ufffdb", "whole \U0001f600": "猫\0"}
    write_safetensors(tmp_path / "b.safetensors", {"x": torch.ones(2)}, metadata)
    write_pickled(tmp_path / "b.ckpt", {"x": torch.ones(2)}, {"metadata": dict(metadata)})
    for name in ("b.safetensors", "b.ckpt"):
        assert open_weights(tmp_path / name).metadata == metadata
    write_pickled(tmp_path / "c.ckpt", {"x": torch.ones(2)}, {"metadata": {"half \ud83d": "a\udc00b"}})
    assert open_weights(tmp_path / "c.ckpt").metadata == {"half \ufffd": "a\ufffdb"}


def test_names_that_no_file_can_hold_are_refused(tmp_path: Path) -> None:
    header = "{" + entry(r"x\ud800", 0, 8) + "}"
    paths = [write_header(tmp_path / "a.safetensors", header, 8), tmp_path / "a.ckpt"]
    write_pickled(paths[1], {"x\ud800": torch.ones(2)}, None)
    for path in paths:
        with pytest.raises(UserError, match=r"the name x\? of a tensor is no valid text"):
            open_weights(path)


def test_number_formats_that_cannot_be_written_again_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2, dtype=torch.complex128)}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"number format torch\.complex128 of x cannot be kept"):
        open_weights(tmp_path / "a.ckpt")
    for name in ("F4", "F6_E2M3", "F8_E3M4", "C128"):
        write_header(tmp_path / "a.safetensors", f"{{{entry('x', 0, 8, '[8]', name)}}}", 8)
        with pytest.raises(UserError, match=f"the number format {name} of x is unknown"):
            open_weights(tmp_path / "a.safetensors")
