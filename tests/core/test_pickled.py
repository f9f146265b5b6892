"""Files of torch.save: all that torch wrote is read, nothing that a file names is ever run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from library.core.errors import UserError
from library.core.pickle_names import INERT, Named, StoredTensor
from library.core.pickled import LEGACY_MAGIC, PickledContent, read_pickled

FORMS = (True, False)  # zip or not, as torch.save is told
BASE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    "matrix": BASE,
    "turned": BASE.T,
    "part": BASE[1:3, 2:5],
    "steps": BASE[:, ::2],
    "repeated": torch.ones(1).expand(3, 4),
    "channels_last": torch.arange(60.0).reshape(1, 3, 4, 5).to(memory_format=torch.channels_last),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "half": torch.ones(3, dtype=torch.float16),
    "bfloat": torch.linspace(0, 1, 3).to(torch.bfloat16),
    "double": torch.ones(2, dtype=torch.float64),
    "float8": torch.ones(5).to(torch.float8_e4m3fn),
    "complex": torch.ones(2, dtype=torch.complex64) * 1j,
    "ids": torch.arange(4),
    "small": torch.arange(4, dtype=torch.int8),
    "unsigned": torch.ones(4, dtype=torch.uint16),
    "flags": torch.tensor([True, False, True]),
}


def text(value: str) -> bytes:
    content = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    return (
        b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + b"J" + struct.pack("<i", numel) + b"tQ"
    )


def tensor(offset: int = 0, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), **given: Any) -> bytes:
    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(f"I{value}\n".encode() for value in values) + b"t"

    hooks = name("collections", "OrderedDict") + b")R"
    arguments = storage(**given), f"I{offset}\n".encode(), numbers(shape), numbers(stride), pickle.NEWFALSE, hooks
    return call("torch._utils", "_rebuild_tensor_v2", *arguments)


def write_zip(path: Path, objects: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> Path:
    """An archive as torch writes it, around a pickle made by hand; storage 0 has four floats."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", objects)
        archive.writestr("archive/byteorder", more.pop("byteorder", b"little"))
        archive.writestr("archive/data/0", torch.arange(4.0).numpy().tobytes())
        archive.writestr("archive/version", b"3\n")
    return path


def write_legacy(path: Path, objects: bytes) -> Path:
    """A file of the time before zip around a pickle made by hand."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, facts)]
    keys = ["0"] if b"storage" in objects else []
    numbers = struct.pack("<q", 4) + torch.arange(4.0).numpy().tobytes() if keys else b""
    path.write_bytes(b"".join([*head, objects, pickle.dumps(keys, 2), numbers]))
    return path


WRITERS = (write_zip, write_legacy)
Write = Callable[[Path, bytes], Path]


# --- what torch wrote -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_zip", FORMS)
def test_every_kind_of_tensor_is_read(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=is_zip)
    read = read_pickled(path)
    assert read.foreign == ()
    assert list(read.content) == list(TENSORS)
    for key, expected in TENSORS.items():
        found = read.read(read.content[key])
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), key
        assert torch.equal(
            found.double() if key == "float8" else found, expected.double() if key == "float8" else expected
        )
        assert found.is_contiguous() and found.untyped_storage().nbytes() == found.nbytes, key


@pytest.mark.parametrize("is_zip", FORMS)
def test_tensors_of_one_storage_get_memory_of_their_own(tmp_path: Path, is_zip: bool) -> None:
    torch.save({"a": BASE, "b": BASE, "part": BASE[0]}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=is_zip)
    read = read_pickled(tmp_path / "a.ckpt")
    assert read.content["a"].storage == read.content["part"].storage
    read.read(read.content["a"]).fill_(9)
    assert torch.equal(read.read(read.content["b"]), BASE)
    assert torch.equal(read.read(read.content["part"]), BASE[0])


@pytest.mark.parametrize("is_zip", FORMS)
def test_what_stands_beside_tensors_is_data(tmp_path: Path, is_zip: bool) -> None:
    content = {
        "epoch": 3,
        "large": 2**70,
        "rate": 0.5,
        "name": "grüße",
        "bytes": b"\x00\xff",
        "nested": [1, (2, None), {"x": True}],
        768: "by number",
        "ordered": collections.OrderedDict(a=1, b=2),
        "set": {1, 2},
        "size": torch.Size([2, 3]),
        "parameters": torch.nn.ParameterDict({"*": torch.ones(2)}),
        "device": torch.device("cpu"),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=is_zip)
    found = read_pickled(tmp_path / "a.pt").content
    same = ("epoch", "large", "rate", "name", "nested", 768, "ordered", "set", "size")
    assert {key: found[key] for key in same} == {key: content[key] for key in same}
    assert isinstance(found["parameters"]["*"], StoredTensor)
    assert found["device"] is INERT


@pytest.mark.parametrize("protocol", (2, 3, 4, 5))
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    torch.save({"a": BASE, "n": [1, 2.0, "x", b"y"]}, tmp_path / "a.pt", pickle_protocol=protocol)
    read = read_pickled(tmp_path / "a.pt")
    assert torch.equal(read.read(read.content["a"]), BASE)
    assert read.content["n"] == [1, 2.0, "x", b"y"]


def test_an_archive_packed_anew_is_read(tmp_path: Path) -> None:
    torch.save({"a": BASE, "turned": BASE.T, "later": BASE[2:]}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as old,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.namelist():
            new.writestr(entry.split("/", 1)[1], old.read(entry))  # and without its folder
    read = read_pickled(tmp_path / "b.ckpt")
    for key, expected in (("a", BASE), ("turned", BASE.T), ("later", BASE[2:])):
        assert torch.equal(read.read(read.content[key]), expected)


def test_views_of_old_files_begin_where_they_say(tmp_path: Path) -> None:
    view = b"(" + text("view") + b"I1\nI3\nt"
    stored = storage()[:-2] + view + b"tQ"
    objects = call("torch._utils", "_rebuild_tensor", stored, b"I1\n", b"(I2\nt", b"(I1\nt") + b"."
    read = read_pickled(write_legacy(tmp_path / "a.pt", objects))
    assert read.read(read.content).tolist() == [2, 3]


# --- malicious files --------------------------------------------------------------------------------------------------


class Runs:
    """Runs a command when an ordinary unpickler meets it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def attacks(target: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would make `target`, by how they try; with the name that the message must tell."""
    command = f"touch '{target}'"
    python = f"open({str(target)!r}, 'w')"
    os_system = "os.system"
    found: dict[str, tuple[bytes, str]] = {
        f"reduce, protocol {protocol}": (pickle.dumps({"state_dict": {"x": Runs(command)}}, protocol), os_system)
        for protocol in range(6)
    }
    import_os = call("builtins", "__import__", text("os"))
    found |= {
        "eval": (call("builtins", "eval", text(python)) + b".", "builtins.eval"),
        "Python 2": (call("__builtin__", "execfile", text("x")) + b".", "builtins.execfile"),
        "exec, new opcode": (stack_name("builtins", "exec") + text(python) + b"\x85R.", "builtins.exec"),
        "getattr": (call("builtins", "getattr", import_os, text("system")) + b".", "builtins.getattr"),
        "import": (import_os + b".", "builtins.__import__"),
        "instance": (b"(" + text(command) + b"ios\nsystem\n.", os_system),
        "object": (b"(" + name("os", "system") + text(command) + b"o.", os_system),
        "new object": (name("subprocess", "Popen") + text(command) + b"\x85\x81.", "subprocess.Popen"),
        "run a module": (call("runpy", "run_path", text("x")) + b".", "runpy.run_path"),
        "Windows": (call("nt", "system", text(command)) + b".", os_system),
        "a function of a harmless class": (stack_name("pathlib", "Path.touch") + b".", "pathlib.Path.touch"),
        "through another module": (stack_name("torch.hub", "os.system") + b".", "torch.hub.os.system"),
        "named only": (b"]" + name("shutil", "rmtree") + b"a.", "shutil.rmtree"),
        "hidden in a foreign object": (
            call("lightning.callbacks", "Callback", call("posix", "system", text(command))) + b".",
            os_system,
        ),
        "thrown away": (call("os", "system", text(command)) + b"0}.", os_system),
        "ended in garbage": (call("os", "system", text(command)) + b"\xff\xff", os_system),
    }  # fmt: skip
    return found


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("how", attacks(Path("x")))
def test_malicious_files_are_named_and_nothing_runs(tmp_path: Path, write: Write, how: str) -> None:
    target = tmp_path / "ran"
    objects, named = attacks(target)[how]
    modules = set(sys.modules)
    with pytest.raises(UserError) as caught:
        read_pickled(write(tmp_path / "a.ckpt", objects))
    problem = caught.value.problems[0]
    assert f"tries to run {named}" in problem.what and "nothing was run" in problem.what
    assert "delete it" in problem.fix
    assert not target.exists()
    assert all(module.startswith("encodings.") for module in set(sys.modules) - modules)  # for texts of protocol 0


def test_a_bare_pickle_is_looked_through_too(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    for protocol in (0, 2, 4):
        (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Runs(f"touch '{target}'"), protocol))
        with pytest.raises(UserError, match=r"tries to run os\.system"):
            read_pickled(tmp_path / "a.ckpt")
    assert not target.exists()


def test_the_attack_works_on_an_ordinary_unpickler(tmp_path: Path) -> None:
    """Without this the tests above could pass with attacks that are none."""
    objects, _ = attacks(tmp_path / "ran")["hidden in a foreign object"]
    start = objects.index(b"cposix")
    # the letter R alone may also be a byte of the path, or its length
    call = next(at for op, _, at in pickletools.genops(objects) if op.name == "REDUCE" and at > start)
    pickle.loads(objects[start : call + 1] + b".")
    assert (tmp_path / "ran").exists()


def with_state(target: bytes) -> bytes:
    """BUILD with a slot state, which an ordinary unpickler sets by setattr, then with a plain state."""
    slots = (
        b"N}("
        + text("read")
        + text("evil")
        + text("__setstate__")
        + text("evil")
        + text("dotted")
        + text("evil")
        + b"u"
    )
    plain = b"}(" + text("__class__") + text("evil") + text("__dict__") + text("evil") + b"u"
    return target + slots + pickle.TUPLE2 + b"b" + plain + b"b"


def state_of_the_world() -> list[dict[str, Any]]:
    ours = (Named, StoredTensor, type(INERT), PickledContent, sys.modules[__name__])
    theirs = (torch, torch._utils, torch._utils._rebuild_tensor_v2, torch.FloatStorage, torch.Size, os, pickle)
    things = (*ours, *theirs, collections.OrderedDict, dict)
    return [dict(getattr(thing, "__dict__", {})) for thing in things]


@pytest.mark.parametrize("write", WRITERS)
def test_setting_a_state_changes_nothing_that_outlives_the_reading(tmp_path: Path, write: Write) -> None:
    targets = [
        name("torch._utils", "_rebuild_tensor_v2"),
        name("torch", "FloatStorage"),
        name("torch", "float32"),
        name("torch", "Size"),
        name("torch", "nn"),
        name("collections", "OrderedDict"),
        name("collections", "OrderedDict") + b")R",
        name("argparse", "Namespace") + b")\x81",
        name("foreign", "Thing"),
        name("foreign", "Thing") + b")\x81",
        storage(),
        tensor(),
        call("copyreg", "_reconstructor", name("foreign", "Thing"), name("builtins", "object"), b"N"),
    ]
    before = state_of_the_world()
    objects = b"(" + b"".join(map(with_state, targets)) + b"l."
    content = read_pickled(write(tmp_path / "a.ckpt", objects)).content
    assert state_of_the_world() == before
    assert content[2] == Named("torch", "float32")
    assert content[6] == {}
    assert content[9] is INERT
    assert content[11] == StoredTensor(torch.float32, (4,), (1,), content[10], 0)
    with pytest.raises((AttributeError, TypeError)):
        INERT.anything = 1  # nor could a state be kept
    with pytest.raises(AttributeError):
        content[11].offset = 1


@pytest.mark.parametrize("write", WRITERS)
def test_foreign_objects_take_anything_and_do_nothing(tmp_path: Path, write: Write) -> None:
    thing = call("foreign.module", "Thing", text("x"))
    objects = b"".join(
        [
            b"(",
            thing + b"(" + text("called again") + b"tR",
            thing + text("appended") + b"a",
            thing + b"(" + text("extended") + b"e",
            thing + text("key") + text("item") + b"s",
            thing + b"(" + text("key") + text("item") + b"u",
            b"}" + thing + text("thing as a key") + b"s",
            b"}" + name("foreign", "Class") + text("class as a key") + b"s",
            name("numpy.core.multiarray", "scalar") + b"(" + name("numpy", "dtype") + text("f8") + b"tR",
            name("foreign", "Keywords") + b")}\x92",
            b"l.",
        ]
    )
    read = read_pickled(write(tmp_path / "a.ckpt", objects))
    classes = Named("foreign", "Class")
    assert read.content == [*[INERT] * 5, {INERT: "thing as a key"}, {classes: "class as a key"}, INERT, INERT]
    names = ("foreign.Class", "foreign.Keywords", "foreign.module.Thing", "numpy.core.multiarray.scalar", "numpy.dtype")
    assert read.foreign == names


@pytest.mark.parametrize("is_zip", FORMS)
def test_community_files_with_callbacks_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool) -> None:
    source = "class Checkpoint:\n    def __init__(self):\n        self.best, self.weights = {'a': 1}, [1, 2]\n"
    module = types.ModuleType("lightning_of_old")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "lightning_of_old", module)
    made = module.Checkpoint()
    content = {"state_dict": {"a": BASE}, "callbacks": {module.Checkpoint: {"object": made}}, "global_step": 7}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=is_zip)
    monkeypatch.delitem(sys.modules, "lightning_of_old")
    read = read_pickled(tmp_path / "a.ckpt")
    assert torch.equal(read.read(read.content["state_dict"]["a"]), BASE)
    assert read.content["global_step"] == 7
    assert read.foreign == ("lightning_of_old.Checkpoint",)


# --- damaged files ----------------------------------------------------------------------------------------------------


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_pickled(path)
    assert caught.value.problems[0].where == str(path)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("objects", "message"),
    (
        (tensor(offset=1), "reaches beyond its storage"),
        (tensor(shape=(2, 2), stride=(3, 1)), "reaches beyond its storage"),
        (tensor(numel=3), "reaches beyond its storage"),
        (tensor(shape=(2**62, 2), stride=(0, 0)), "make no sense"),
        (tensor(shape=(2**40,), stride=(0,)), "more memory than the whole file"),
        (tensor(shape=(-1,)), "make no sense"),
        (tensor(stride=(1, 1)), "make no sense"),
        (tensor() + tensor(kind="HalfStorage"), "in two ways"),
        (b"r" + struct.pack("<I", 2**32 - 2), "makes no sense"),  # a plain unpickler reserves 64 GiB for it
        (b"j" + struct.pack("<I", 7), "makes no sense"),
        (b"\x8e" + struct.pack("<Q", 2**40) + b"x", "cut off"),
        (b"}" + b"a" * 3, "makes no sense"),
        (b"tttt", "makes no sense"),
    ),
)  # fmt: skip
def test_pickles_that_make_no_sense_are_refused(tmp_path: Path, write: Write, objects: bytes, message: str) -> None:
    path = write(tmp_path / "a.ckpt", b"\x80\x02" + objects + b".")
    # without zip nothing marks the end of the pickle, so a damaged one may take what follows for its own
    assert_refused(path, message if write is write_zip else "damaged")


def test_a_deep_key_does_not_overflow_the_interpreter(tmp_path: Path) -> None:
    objects = b"})" + pickle.TUPLE1 * 300_000 + text("value") + b"s."
    assert read_pickled(write_zip(tmp_path / "a.ckpt", objects)).content == {INERT: "value"}


def test_storages_must_be_there_and_large_enough(tmp_path: Path) -> None:
    assert_refused(write_zip(tmp_path / "a.ckpt", tensor(key="1") + b"."), "storage 1 is missing")
    assert_refused(write_zip(tmp_path / "a.ckpt", tensor(numel=5) + b"."), "storage 0 should have 20 bytes")
    assert_refused(write_legacy(tmp_path / "a.ckpt", tensor(numel=5) + b"."), "4 of its [0-9]+ bytes are missing")
    assert_refused(write_legacy(tmp_path / "a.ckpt", tensor(numel=3) + b"."), "storage 0 has another size")
    assert_refused(write_legacy(tmp_path / "a.ckpt", tensor(key="1") + b"."), "storages that no tensor uses")


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.ckpt", b"}.", byteorder=b"big")
    assert_refused(tmp_path / "a.ckpt", "big endian")
    content = write_legacy(tmp_path / "a.ckpt", b"}.").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(content.replace(pickle.NEWTRUE, pickle.NEWFALSE, 1))
    assert_refused(tmp_path / "a.ckpt", "big endian")


def test_archives_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("notes/read\x1b[31mme.txt", "x")
    assert_refused(tmp_path / "a.ckpt", r"not written by torch\.save; it holds notes/read\?\[31mme\.txt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "a.ckpt")
    assert_refused(tmp_path / "a.ckpt", "TorchScript")
    write_zip(tmp_path / "a.ckpt", b" " * (65 << 20), zipfile.ZIP_DEFLATED)
    assert_refused(tmp_path / "a.ckpt", "larger than any model needs")


@pytest.mark.parametrize("is_zip", FORMS)
def test_files_cut_off_anywhere_are_refused(tmp_path: Path, is_zip: bool) -> None:
    torch.save({"state_dict": TENSORS}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=is_zip)
    content = (tmp_path / "a.ckpt").read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        (tmp_path / "b.ckpt").write_bytes(content[:length])
        assert_refused(tmp_path / "b.ckpt", "the file is damaged")


@pytest.mark.parametrize("is_zip", FORMS)
def test_odd_bytes_give_a_user_error_or_nothing_worse(tmp_path: Path, is_zip: bool) -> None:
    torch.save(
        {"a": BASE, "b": torch.ones(2), "c": [1, "x"]}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=is_zip
    )
    content, generator = (tmp_path / "a.ckpt").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(content)
        for _ in range(generator.choice((1, 1, 4))):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        (tmp_path / "b.ckpt").write_bytes(changed)
        try:
            read = read_pickled(tmp_path / "b.ckpt")
            for value in read.content.values() if isinstance(read.content, dict) else ():
                if isinstance(value, StoredTensor):
                    read.read(value)
        except UserError:
            refused += 1
    assert refused > 100


def test_odd_bytes_within_the_pickle_give_a_user_error_or_nothing_worse(tmp_path: Path) -> None:
    """The archive's checksums hide most of them from the test above."""
    objects = b"}" + text("a") + tensor() + b"s" + text("b") + b"(I1\nG" + bytes(8) + b"ls."
    generator, refused = random.Random(0), 0
    for _ in range(600):
        changed = bytearray(objects)
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        try:
            read_pickled(write_zip(tmp_path / "a.ckpt", bytes(changed)))
        except UserError:
            refused += 1
    assert 100 < refused < 600


def test_a_file_that_goes_away_or_shrinks_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.ones(10_000)}, path)
    read = read_pickled(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match="ends inside storage 0"):
        read.read(read.content["a"])
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        read.read(read.content["a"])


def test_no_torch_load_is_involved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    torch.save({"a": BASE}, buffer)
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("must not be called")

    for owner, attribute in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, attribute, refuse)
    read = read_pickled(tmp_path / "a.ckpt")
    assert torch.equal(read.read(read.content["a"]), BASE)
