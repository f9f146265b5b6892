"""A small pickle cannot ask for much memory or time, and honest objects of Python's library do no harm."""

from __future__ import annotations

import array
import dataclasses
import inspect
import io
import operator
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from library.core import pickle_machine
from library.core.errors import UserError
from library.core.pickle_machine import read_pickle
from library.core.pickle_names import INERT, MalformedPickle
from library.core.pickled import read_pickled

ROOT = Path(__file__).resolve().parents[2]
ITEMS, CALLS = 100_000, 8_000
KEEP, TAKE_0, TAKE_1 = b"q\x01", b"h\x00", b"h\x01"  # memo: 0 is what is multiplied, 1 what multiplies it
LIST = b"](" + b"K\x01" * ITEMS + b"e"
TUPLE = b"(" + b"K\x01" * ITEMS + b"t"
PAIRS = b"](" + b"".join(b"J" + struct.pack("<i", n) + b"K\x01\x86" for n in range(ITEMS)) + b"e"
DICT = b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"K\x01" for n in range(ITEMS)) + b"u"
SET = b"\x8f(" + b"".join(b"J" + struct.pack("<i", n) for n in range(ITEMS)) + b"\x90"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def bomb(function: str, source: bytes, call: bytes = TAKE_1 + TAKE_0 + b"\x85R", calls: int = CALLS) -> bytes:
    """A list of what `calls` calls of one function on one source give."""
    return b"\x80\x04" + source + b"q\x00" + f"c{function}\n".encode() + KEEP + b"00](" + call * calls + b"e."


BOMBS = {
    "list": bomb("builtins\nlist", LIST),
    "list of a tuple": bomb("builtins\nlist", TUPLE),
    "tuple": bomb("builtins\ntuple", LIST),
    "size": bomb("torch\nSize", LIST),
    "set": bomb("builtins\nset", SET),
    "frozenset": bomb("builtins\nfrozenset", LIST),  # few results, much time
    "dict of pairs": bomb("builtins\ndict", PAIRS),
    "ordered dict": bomb("collections\nOrderedDict", PAIRS),
    "new object": bomb("builtins\nlist", LIST, TAKE_1 + TAKE_0 + b"\x85\x81"),
    "new object with keywords": bomb("builtins\nlist", LIST, TAKE_1 + TAKE_0 + b"\x85}\x92"),
    "object": bomb("builtins\nlist", LIST, b"(" + TAKE_1 + TAKE_0 + b"o"),
    "instance": bomb("builtins\nlist", LIST, b"(" + TAKE_0 + b"ibuiltins\nlist\n"),
    "by way of another type": bomb(
        "torch._tensor\n_rebuild_from_type_v2", LIST, TAKE_1 + b"cbuiltins\nlist\nN" + TAKE_0 + b"\x85\x87R"
    ),
    "bytes": bomb("_codecs\nencode", text("x" * 1_600_000), TAKE_1 + TAKE_0 + text("latin1") + b"\x86R"),
    "a state": bomb("collections\nOrderedDict", b"}" + text("_parameters") + DICT + b"s", b"}" + TAKE_0 + b"b"),
}  # fmt: skip

READ_WITH_LITTLE = """
import resource, sys, pathlib
sys.path.insert(0, ".")
from library.core import pickle_machine
from library.core.errors import UserError
from library.core.pickled import read_pickled
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 600 * 2**20,) * 2)
try:
    read_pickled(pathlib.Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


def write(path: Path, objects: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", objects)
    return path


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_pickle_cannot_unfold_without_end(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(pickle_machine, "_MOST_ITEMS", 10 * ITEMS)  # for speed; that of the program is used below
    started = time.monotonic()
    with pytest.raises(MalformedPickle, match="copies more than 1,000,000 items"):
        read_pickle(io.BytesIO(BOMBS[name]))
    assert time.monotonic() - started < 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_bomb_is_refused_within_little_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", BOMBS["list"])
    assert path.stat().st_size < 2000
    command = [sys.executable, "-c", READ_WITH_LITTLE, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "10,000,000 items" in result.stdout and str(path) in result.stdout


def test_the_refusal_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than 10,000,000 items") as caught:
        read_pickled(write(tmp_path / "a.ckpt", BOMBS["tuple"]))
    assert caught.value.problems[0].where == str(tmp_path / "a.ckpt")


def test_what_honest_files_copy_is_far_below_the_limit() -> None:
    objects = bomb("builtins\nlist", LIST, calls=99)
    assert [len(copy) for copy in read_pickle(io.BytesIO(objects)).value] == [ITEMS] * 99
    shared = b"\x80\x02](K\x01K\x01eq\x00" + b"](h\x00h\x00eq\x00" * 200 + b"."  # 2**200 items if it were copied
    assert len(read_pickle(io.BytesIO(shared)).value) == 2


def test_long_keys_cost_no_time() -> None:
    # each use of a tuple as a key computes its hash anew
    objects = b"\x80\x02" + TUPLE + b"q\x00}q\x010h\x01(" + b"h\x00N" * 200_000 + b"u."
    started = time.monotonic()
    assert read_pickle(io.BytesIO(objects)).value == {INERT: None}
    assert time.monotonic() - started < 20
    short = pickle.dumps({(1, "a", None): "short"}, 2)
    assert read_pickle(io.BytesIO(short)).value == {(1, "a", None): "short"}


def test_honest_objects_of_pythons_library_are_left_out(tmp_path: Path) -> None:
    content = {
        "state_dict": {"a": torch.ones(2)},
        "random": random.Random(0),
        "time": time.gmtime(0),
        "missing": dataclasses.MISSING.__class__,
        "empty": inspect.Parameter.empty,
        "getter": operator.itemgetter(1),
        "signal": signal.Signals.SIGTERM,
        "buffer": io.BytesIO(b"x"),
        "array": array.array("d", [1.0]),
    }
    torch.save(content, tmp_path / "a.ckpt")
    read = read_pickled(tmp_path / "a.ckpt")
    assert torch.equal(read.read(read.content["state_dict"]["a"]), torch.ones(2))
    assert read.content["random"] is INERT and read.content["array"] is INERT
    expected = {"random.Random", "time.struct_time", "dataclasses._MISSING_TYPE", "inspect._empty"}
    assert expected | {"operator.itemgetter", "signal.Signals", "_io.BytesIO"} <= set(read.foreign)
