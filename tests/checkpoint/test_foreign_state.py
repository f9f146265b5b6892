"""States that Accelerate itself wrote, read without running anything in them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from library.checkpoint.foreign_state import ForeignState, is_foreign_state, read_foreign_state
from library.checkpoint.state import is_state
from library.core.errors import UserError
from library.models.tiny import make_tiny_model
from library.optim.optimizers import make_optimizer
from library.optim.registry import KNOWN
from library.options.optimizer import OptimizerOptions
from networks.lora import create_network
from tests.core.test_nested import assert_same

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def learn(models: list[nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """One update, with gradients that need no forward pass."""
    generator = torch.Generator().manual_seed(3)
    for model in models:
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def save(folder: Path, models: list[nn.Module], updates: int, safe: bool = True) -> tuple[list[Any], Any]:
    """Trains the models a little and saves as sd-scripts does; the models' weights and the optimizer's state then."""
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 1e-3} for model in models])
    schedule = LambdaLR(optimizer, [lambda step: 1 / (1 + step)] * len(models))
    *prepared, optimizer, schedule = accelerator.prepare(*models, optimizer, schedule)
    for _ in range(updates):
        learn(prepared, optimizer)
        schedule.step()
    accelerator.save_state(str(folder), safe_serialization=safe)
    return [model.state_dict() for model in models], optimizer.state_dict()


def note_progress(folder: Path, **noted: object) -> None:
    (folder / "train_state.json").write_text(json.dumps(noted), encoding="utf-8")


def tiny_network() -> nn.Module:
    model = make_tiny_model("sd1", seed=0)
    network = create_network(1.0, 2, 1.0, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet, True, True)
    return network


@pytest.mark.parametrize("safe", (True, False), ids=("safetensors", "bin"))
def test_a_network_with_its_optimizer_is_read_exactly(tmp_path: Path, safe: bool) -> None:
    (weights,), optimizer = save(tmp_path / "a-state", [tiny_network()], updates=3, safe=safe)
    note_progress(tmp_path / "a-state", current_epoch=2, current_step=3)
    assert is_foreign_state(tmp_path / "a-state") and not is_state(tmp_path / "a-state")
    found = read_foreign_state(tmp_path / "a-state")
    assert len(found.weights) == 1 and found.weights[0].keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found.weights[0][name], tensor), name
    assert_same(found.optimizer, optimizer)
    assert (found.step, found.epoch, found.scaler) == (3, 2, None)
    assert any("random numbers" in line for line in found.missing) and len(found.missing) == 3
    fresh = torch.optim.AdamW([{"params": list(tiny_network().parameters()), "lr": 1.0}])
    fresh.load_state_dict(found.optimizer)
    assert fresh.param_groups[0]["initial_lr"] == 1e-3


def test_models_come_in_the_order_in_which_they_were_prepared(tmp_path: Path) -> None:
    model = make_tiny_model("sd1", seed=0)
    weights, optimizer = save(tmp_path, [model.unet, model.text_encoder, nn.Linear(2, 2)], updates=1)
    found = read_foreign_state(tmp_path)
    assert [one.keys() for one in found.weights] == [one.keys() for one in weights]
    for read, expected in zip(found.weights, weights, strict=True):
        assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())
    assert_same(found.optimizer, optimizer)
    assert found.step == 1 and found.epoch is None
    assert any("updates done: 1, as its schedule has counted" in line for line in found.missing)
    assert any("the epoch" in line for line in found.missing)


def test_the_schedule_counts_once_per_process(tmp_path: Path) -> None:
    save(tmp_path, [nn.Linear(2, 2)], updates=6)
    (tmp_path / "random_states_1.pkl").write_bytes((tmp_path / "random_states_0.pkl").read_bytes())
    assert read_foreign_state(tmp_path).step == 3


def test_the_loss_scale_is_read(tmp_path: Path) -> None:
    save(tmp_path, [nn.Linear(2, 2)], updates=1)
    state = torch.amp.GradScaler("cpu").state_dict()
    torch.save(state, tmp_path / "scaler.pt")
    assert read_foreign_state(tmp_path).scaler == state


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", (*KNOWN, "Adagrad", "ASGD", "Muon"))
def test_the_state_of_every_optimizer_is_read_exactly(tmp_path: Path, name: str) -> None:
    model = nn.Linear(80, 60, bias=False)
    optimizer = make_optimizer(OptimizerOptions(optimizer_type=name), [{"params": list(model.parameters()), "lr": 0.1}])
    getattr(optimizer, "train", lambda: None)()
    learn([model], optimizer)
    save(tmp_path, [nn.Linear(2, 2)], updates=1)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    assert_same(read_foreign_state(tmp_path).optimizer, optimizer.state_dict())


# --- what is not there, or not what it should be ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, [nn.Linear(2, 2)], updates=1)
    note_progress(tmp_path, current_epoch=1, current_step=1)
    return tmp_path


def missing(found: ForeignState, about: str) -> str:
    """The one sentence that says what is missing of this."""
    (line,) = (line for line in found.missing if line.startswith(about))
    return line


def test_without_an_optimizer_the_weights_are_still_read(folder: Path) -> None:
    (folder / "optimizer.bin").unlink()
    found = read_foreign_state(folder)
    assert found.optimizer is None and len(found.weights) == 1
    assert "there is no optimizer.bin" in missing(found, "the optimizer's state")


def test_two_optimizers_are_none_for_us(folder: Path) -> None:
    (folder / "optimizer_1.bin").write_bytes((folder / "optimizer.bin").read_bytes())
    found = read_foreign_state(folder)
    assert found.optimizer is None and "several" in missing(found, "the optimizer's state")


class Odd:
    """A class of the one who wrote the file."""


def test_an_unknown_object_in_the_optimizer_is_named_with_its_place(folder: Path) -> None:
    torch.save({"state": {0: {"odd": Odd()}}, "param_groups": []}, folder / "optimizer.bin")
    found = read_foreign_state(folder)
    assert found.optimizer is None and "['state'][0]['odd']" in missing(found, "the optimizer's state")


@pytest.mark.parametrize("content", ([1, 2], {"state": {}}, 3))
def test_another_file_under_the_optimizers_name_is_not_taken_for_one(folder: Path, content: object) -> None:
    torch.save(content, folder / "optimizer.bin")
    found = read_foreign_state(folder)
    assert found.optimizer is None and "holds none" in missing(found, "the optimizer's state")


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("name", ("optimizer.bin", "scaler.pt", "pytorch_model.bin"))
def test_a_malicious_file_is_refused_and_not_run(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    torch.save(nn.Linear(2, 2).state_dict(), folder / "pytorch_model.bin")
    torch.save({"state": Harm()}, folder / name, pickle_module=pickle)
    with pytest.raises(UserError, match=r"tries to run os\.mkdir"):
        read_foreign_state(folder)
    assert not (folder / "harmed").exists()


@pytest.mark.parametrize("name", ("model.safetensors", "optimizer.bin", "train_state.json"))
def test_a_damaged_file_is_told(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(UserError, match=name):
        read_foreign_state(folder)


def test_nonsense_in_the_counters_is_as_none(folder: Path) -> None:
    note_progress(folder, current_epoch="two", current_step=-1)
    found = read_foreign_state(folder)
    assert (found.step, found.epoch) == (1, None)
    (folder / "scheduler.bin").unlink()
    found = read_foreign_state(folder)
    assert found.step is None and "nothing tells it" in missing(found, "the number of updates")


def test_what_is_no_state_is_told_apart(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    torch.save({}, model / "pytorch_model.bin")  # as in the folder of a text encoder
    assert not is_foreign_state(model)
    pieces = tmp_path / "pieces"
    (pieces / "pytorch_model").mkdir(parents=True)
    (pieces / "random_states_0.pkl").write_bytes(b"")
    assert not is_foreign_state(pieces)
    for folder, sentence in ((model, "no state, neither"), (pieces, "in pieces"), (tmp_path / "x", "no such folder")):
        with pytest.raises(UserError, match=sentence):
            read_foreign_state(folder)
