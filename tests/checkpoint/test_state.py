"""State folders: what goes in comes out, torn ones are known, and no kill leaves none."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from library.checkpoint.manifest import MANIFEST, TornStateError
from library.checkpoint.naming import epoch_stem, last_stem, state_folder, step_stem
from library.checkpoint.state import (
    FACTS,
    check_state,
    is_state,
    part_names,
    read_facts,
    read_part,
    read_state,
    states_of,
    write_state,
)
from library.core.atomic_io import size_on_disk
from library.core.errors import UserError
from library.models.topology import FAMILIES, FULL_WIDTHS, text_config, unet_config
from library.optim.optimizers import make_optimizer
from library.optim.registry import KNOWN
from library.options.optimizer import OptimizerOptions
from networks.lora import create_network
from tests.checkpoint.state_writer import FACT, parts_of, step_in, written

ROOT = Path(__file__).resolve().parents[2]
WRITER = ROOT / "tests" / "checkpoint" / "state_writer.py"


# --- there and back ---------------------------------------------------------------------------------------------------


def test_parts_and_facts_come_back(tmp_path: Path) -> None:
    folder = written(tmp_path / "deep" / "a-state")
    check_state(folder)
    assert read_facts(folder) == FACT and part_names(folder) == ["optimizer", "progress", "weights"]
    state = read_state(folder)
    assert state["progress"] == {"step": 5, "best": math.inf} and step_in(folder) == 5
    assert state["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.99)
    assert state["weights"]["unet"][1].dtype == torch.bfloat16
    assert read_part(folder, "progress") == state["progress"]
    assert is_state(folder) and not is_state(folder.parent)


def test_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one"), written(tmp_path / "another name")
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_what_was_read_has_memory_of_its_own(tmp_path: Path) -> None:
    """A state can be replaced or deleted while the run goes on with what it read."""
    folder = written(tmp_path / "a-state")
    state = read_state(folder)
    assert "a-state" not in Path("/proc/self/maps").read_text(encoding="utf-8")
    written(folder, 6)
    assert float(state["weights"]["unet"][0].max()) == 5


def test_a_new_state_replaces_the_old_one_and_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "a-state"
    write_state(folder, {**parts_of(3), "ema": {"averages": [torch.ones(2)]}}, {"step": 3, "epoch": 1})
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert step_in(written(folder, 4)) == 4
    assert (folder / "notes.txt").exists() and not any(path.stem == "ema" for path in folder.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["a-state"]


@pytest.mark.parametrize(
    "name", ("n" * 249 + "-state", "二" * 83 + "-state", "a b.c-state"), ids=("long", "wide", "dots")
)
def test_names_may_be_long_and_of_any_script(tmp_path: Path, name: str) -> None:
    for step in (1, 2):
        assert step_in(written(tmp_path / name, step)) == step
    assert states_of(tmp_path, name.removesuffix("-state")) == [tmp_path / name]


def learned(name: str) -> tuple[nn.Linear, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(80, 60, bias=False)
    with torch.no_grad():
        model.weight.normal_(generator=generator)
    groups = [{"params": list(model.parameters()), "lr": 1e-3, "name": "unet"}]
    optimizer = make_optimizer(OptimizerOptions(optimizer_type=name), groups)
    return model, optimizer


def learn(model: nn.Linear, optimizer: torch.optim.Optimizer, updates: range) -> None:
    getattr(optimizer, "train", lambda: None)()  # those without a schedule have two modes
    for update in updates:
        optimizer.zero_grad()
        model(torch.full((2, 80), 0.1 * update)).square().mean().backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", (*KNOWN, "Adagrad", "NAdam", "ASGD", "Muon", "torch.optim.Adafactor"))
def test_every_optimizer_goes_on_from_a_state_with_the_same_bits(tmp_path: Path, name: str) -> None:
    model, optimizer = learned(name)
    learn(model, optimizer, range(1, 4))
    parts = {"weights": list(model.parameters()), "optimizer": optimizer.state_dict()}
    write_state(tmp_path / "state", parts, {"step": 3, "epoch": 1})
    learn(model, optimizer, range(4, 6))
    state = read_state(tmp_path / "state")
    resumed, its_optimizer = learned(name)
    with torch.no_grad():
        resumed.weight.copy_(state["weights"][0])
    its_optimizer.load_state_dict(state["optimizer"])
    learn(resumed, its_optimizer, range(4, 6))
    assert torch.equal(resumed.weight, model.weight)


# --- refusals ---------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 100)


FILES = ("facts.json", "weights.json", "weights.safetensors", "optimizer.safetensors", "progress.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("harm", "sentence"),
    ((cut, "it is cut off, 1 of"), (lengthen, "has 100 bytes too many"), (Path.unlink, "is missing")),
)
def test_a_torn_file_is_found_at_once(tmp_path: Path, name: str, harm: Any, sentence: str) -> None:
    folder = written(tmp_path / "a-state")
    harm(folder / name)
    for look in (read_facts, check_state, read_state, part_names):
        with pytest.raises(TornStateError, match=sentence) as raised:
            look(folder)
        assert name in str(raised.value)
    assert states_of(tmp_path, "a") == [] and is_state(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_by_the_checksums(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "a-state")
    flip(folder / name)
    for look in (check_state, read_state):
        with pytest.raises(TornStateError, match="checksum is another") as raised:
            look(folder)
        assert name in str(raised.value)


def test_a_damaged_manifest_and_a_lost_one_are_told_apart_from_no_state(tmp_path: Path) -> None:
    folder = written(tmp_path / "a-state")
    (folder / MANIFEST).write_bytes(b"\0" * 300)
    with pytest.raises(TornStateError, match="its manifest is damaged"):
        read_facts(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(TornStateError, match="its manifest is missing"):
        read_facts(folder)
    assert not is_state(folder) and states_of(tmp_path, "a") == []


def test_what_is_no_state_is_told_in_words_for_each_case(tmp_path: Path) -> None:
    written(tmp_path / "out" / "a-state")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    cases = {
        "nowhere": "no such folder",
        "file": "a file; a state is a folder",
        "empty": "this folder is no state\n.*give a folder",
        "out": "this folder is no state\n.*give one of them, such as .*a-state",
    }
    for name, sentence in cases.items():
        with pytest.raises(UserError, match=sentence) as raised:
            read_facts(tmp_path / name)
        assert not isinstance(raised.value, TornStateError), name


def test_files_of_others_in_a_state_do_no_harm(tmp_path: Path) -> None:
    folder = written(tmp_path / "a-state")
    for name in (".DS_Store", ".gitattributes", "model.safetensors"):
        (folder / name).write_text("x", encoding="utf-8")
    check_state(folder)
    assert step_in(folder) == 5 and part_names(folder) == ["optimizer", "progress", "weights"]


@pytest.mark.parametrize(
    "facts", ({}, {"step": 1}, {"step": -1, "epoch": 1}, {"step": 1.0, "epoch": 1}, {"step": 1, "epoch": 0})
)
def test_a_state_must_say_where_the_run_stood(tmp_path: Path, facts: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="facts"):
        write_state(tmp_path / "a-state", {}, facts)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ("", "A", "../x", "facts", "manifest"))
def test_parts_have_plain_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="parts"):
        write_state(tmp_path / "a-state", {name: 1}, FACT)


@pytest.mark.parametrize("value", (object(), torch.ones(1, dtype=torch.complex128)))
def test_what_cannot_be_kept_is_told_with_its_place_and_leaves_the_old_state(tmp_path: Path, value: object) -> None:
    folder = written(tmp_path / "a-state")
    with pytest.raises(UserError, match=r"state of the run, optimizer: \['groups'\]\[1\]: a"):
        write_state(folder, {"optimizer": {"groups": [0, value]}}, FACT)
    assert step_in(folder) == 5 and [path.name for path in tmp_path.iterdir()] == ["a-state"]


# --- which states there are -------------------------------------------------------------------------------------------


def test_states_are_found_latest_first_and_only_those_of_the_name(tmp_path: Path) -> None:
    steps = {epoch_stem("a", 1): 10, step_stem("a", 25): 25, epoch_stem("a", 2): 20, last_stem("a"): 30}
    for stem, step in steps.items():
        written(state_folder(tmp_path, stem), step)
    others = (last_stem("ab"), epoch_stem("a b", 1), last_stem("a-x"), epoch_stem("a.", 1), epoch_stem(None, 3))
    for stem in (*others, last_stem(None), step_stem(None, 7)):
        written(state_folder(tmp_path, stem), 99)
    (tmp_path / "a-000009-state").mkdir()
    assert [read_facts(path)["step"] for path in states_of(tmp_path, "a")] == [30, 25, 20, 10]
    assert {path.name for path in states_of(tmp_path, None)} == {
        "epoch-000003-state",
        "last-state",
        "at-step00000007-state",
    }
    assert states_of(tmp_path / "nowhere", "a") == []


def test_names_are_no_patterns(tmp_path: Path) -> None:
    for name in ("a[1]", "a*", "(x|y)"):
        written(state_folder(tmp_path, epoch_stem(name, 1)))
        assert [path.name for path in states_of(tmp_path, name)] == [f"{name}-000001-state"]


def test_a_state_of_a_newer_version_is_not_taken_for_the_latest(tmp_path: Path) -> None:
    written(tmp_path / "a-000001-state", 1)
    manifest = written(tmp_path / "a-state", 2) / MANIFEST
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"version": 1', '"version": 2'), encoding="utf-8")
    assert [path.name for path in states_of(tmp_path, "a")] == ["a-000001-state"]


def test_a_state_that_lies_aside_is_found_and_put_back_when_nobody_is_at_it_any_more(tmp_path: Path) -> None:
    aside = tmp_path / ".tmp-00000000-00000000-1.old"  # of another machine: nobody knows whether that process lives
    written(aside / "a-state", 7)
    written(tmp_path / "a-000001-state", 3)
    assert states_of(tmp_path, "a") == [aside / "a-state", tmp_path / "a-000001-state"]
    assert step_in(states_of(tmp_path, "a")[0]) == 7
    os.utime(aside, (1, 1))
    assert states_of(tmp_path, "a") == [tmp_path / "a-state", tmp_path / "a-000001-state"]
    assert step_in(tmp_path / "a-state") == 7 and not aside.exists()


# --- sizes ------------------------------------------------------------------------------------------------------------


def state_of_training(folder: Path, weights: list[nn.Parameter]) -> int:
    """Bytes of a state with these weights, AdamW's numbers after an update, and averages."""
    optimizer = make_optimizer(OptimizerOptions(), [{"params": weights, "lr": 1e-4, "name": "unet"}])
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    averages = [weight.detach().clone() for weight in weights]
    parts = {"weights": {"unet": weights}, "optimizer": optimizer.state_dict(), "ema": {"averages": averages}}
    write_state(folder, parts, FACT)
    return size_on_disk(folder)


def test_a_lora_state_of_a_full_model_stays_small(tmp_path: Path) -> None:
    """Rank 4 on Stable Diffusion 1.5: its true shapes, without its weights."""
    widths = FULL_WIDTHS["sd1"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config("sd1", widths.unet, widths.text))
        text_encoder = CLIPTextModel(CLIPTextConfig(**text_config("sd1", widths.text, widths.text_intermediate)))
        network = create_network(1.0, 4, 1.0, None, text_encoder, unet)
    weights = [nn.Parameter(torch.zeros(parameter.shape)) for parameter in network.parameters()]
    assert len(weights) == 2 * 264 and FAMILIES["sd1"].text_layers == 12
    assert 20e6 < state_of_training(tmp_path / "a-state", weights) < 40e6


def test_an_embedding_state_stays_small(tmp_path: Path) -> None:
    assert state_of_training(tmp_path / "a-state", [nn.Parameter(torch.zeros(1, 768))]) < 1e6


# --- killed, and on a full disk ---------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="processes are not forked there")
@pytest.mark.parametrize("rounds", (15, pytest.param(300, marks=pytest.mark.slow)))
def test_a_state_is_there_whenever_the_run_is_killed(tmp_path: Path, rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pipe = subprocess.PIPE
    command = [sys.executable, str(WRITER), "without end", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        done, lost, pace = 0, 0, 0.0
        for number in range(rounds):
            writer.stdin.write(f"{done}\n")
            writer.stdin.flush()
            child = int(writer.stdout.readline().split()[1])
            if number % 3 == 0:  # so that the run gets on, and the moments are spread over a write however slow it is
                began = time.monotonic()
                done = int(writer.stdout.readline())
                pace = time.monotonic() - began
            time.sleep(float(torch.rand(1, generator=generator)) * 2 * pace)
            os.kill(child, 9)
            while (line := writer.stdout.readline()) != "ended\n":
                done = max(done, int(line))
            lost += look_after_a_kill(tmp_path / "out", done)
        writer.stdin.close()
    assert done >= rounds // 3 and lost > 0  # it wrote, and some kill came in the midst of it


def look_after_a_kill(output: Path, done: int) -> int:
    """Every folder of a state is whole, and the latest is not older than the last one that was done.

    Returns 1 where a write was cut off.
    """
    was_cut_off = any(path.name.startswith(".tmp-") for path in output.iterdir())
    states = states_of(output, "a")
    assert bool(states) or done == 0
    folders = [path for path in output.iterdir() if path.name.endswith("-state")]
    assert {path for path in states if path.parent == output} == set(folders)
    for path in states:
        check_state(path)
        step_in(path)
    assert not states or read_facts(states[0])["step"] >= done
    return int(was_cut_off)


@pytest.mark.parametrize("number", range(7))
def test_what_a_disk_did_not_keep_is_noticed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A disk that alters one file while it is brought there: each of the seven in turn."""
    folder, flush, flushed = written(tmp_path / "a-state", 1), os.fsync, []

    def alter(handle: int) -> None:
        flush(handle)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            flushed.append(handle)
            if len(flushed) == number + 1:
                os.pwrite(handle, b"9", os.fstat(handle).st_size - 3)

    monkeypatch.setattr(os, "fsync", alter)
    with pytest.raises(OSError, match="was not written as asked"):
        written(folder, 2)
    monkeypatch.undo()
    assert step_in(folder) == 1 and [path.name for path in tmp_path.iterdir()] == ["a-state"]


@pytest.mark.skipif(os.name == "nt", reason="the size of files cannot be limited there")
def test_a_disk_that_takes_no_more_leaves_the_old_state(tmp_path: Path) -> None:
    command = [sys.executable, str(WRITER), "on a full disk", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    refused, names, after = result.stdout.splitlines()
    assert refused.startswith("refused") and names == "a-state" and after == "3"


def test_a_state_survives_a_copy_to_another_place(tmp_path: Path) -> None:
    folder = written(tmp_path / "a-state")
    shutil.copytree(folder, tmp_path / "elsewhere" / "renamed")
    assert step_in(tmp_path / "elsewhere" / "renamed") == 5
    assert json.loads((folder / FACTS).read_text(encoding="utf-8"))["step"] == 5
