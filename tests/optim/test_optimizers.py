"""Every optimizer by its name: it learns, its state survives, its mistakes are told, its rate is known."""

from __future__ import annotations

import copy
import io
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from library.core.errors import Problems, UserError
from library.optim.optimizers import (
    check_optimizer,
    describe_optimizer,
    eval_mode,
    finds_rate_itself,
    has_own_schedule,
    idle_updates,
    make_optimizer,
    optimizer_name,
    rates_in_force,
    rates_told,
    steps_apart,
    train_mode,
)
from library.optim.registry import KNOWN, chosen_path, is_adafactor
from library.options.optimizer import OptimizerOptions

BITS = [name for name, known in KNOWN.items() if known.path.startswith("bitsandbytes")]
DISTANCE = [name for name in KNOWN if finds_rate_itself(OptimizerOptions(optimizer_type=name)) and name != "AdaFactor"]
SCHEDULE_FREE = [name for name in KNOWN if "ScheduleFree" in name]
FROM_TORCH = ["Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "Rprop", "SGD", "Muon"]
BY_PATH = ["bitsandbytes.optim.lamb.LAMB", "torch.optim.Adafactor", "torch.optim.adamw.AdamW"]
ALL = [*KNOWN, *FROM_TORCH, *BY_PATH]

# rates at which the problem below is learned within 40 updates, where 0.02 is not one
RATES = {"AdaFactor": 1.0, "SGDScheduleFree": 0.5, "Adadelta": 10.0, "torch.optim.Adafactor": 0.1, "Adagrad": 0.1}
# what makes the slow finders quick enough for a test; d0 is their first guess of the rate
ARGUMENTS = {name: ("d0=0.003",) for name in DISTANCE} | {"ASGD": ("lambd=0",), "SGD": ("momentum=0.9",)}

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def options(name: str | None = None, *words: str, **others: Any) -> OptimizerOptions:
    return OptimizerOptions(optimizer_type=name, optimizer_args=words, **others)


def model() -> nn.Sequential:
    """Two parts without biases (Muon takes matrices only); the first is large enough for 8-bit state."""
    made = nn.Sequential(nn.Linear(64, 80, bias=False), nn.Tanh(), nn.Linear(80, 1, bias=False))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def groups_of(made: nn.Sequential, first: float, second: float | None = None) -> list[dict[str, Any]]:
    rates = {"text_encoder": (made[0], first), "unet": (made[2], first if second is None else second)}
    return [{"params": list(part.parameters()), "lr": rate, "name": name} for name, (part, rate) in rates.items()]


def loss_of(made: nn.Module, update: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(update % 4)
    x = torch.randn(32, 64, generator=generator)
    return (made(x) - x[:, :1] - 0.5 * x[:, 1:2]).square().mean()


def learn(made: nn.Module, optimizer: torch.optim.Optimizer, updates: range) -> None:
    train_mode(optimizer)
    for update in updates:
        optimizer.zero_grad()
        loss_of(made, update).backward()
        optimizer.step()


def mean_loss(made: nn.Module) -> float:
    with torch.no_grad():
        return sum(float(loss_of(made, update)) for update in range(4)) / 4


def made_for(name: str) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    made = model()
    rate = RATES.get(name, 1.0 if finds_rate_itself(options(name)) else 0.02)
    return made, make_optimizer(options(name, *ARGUMENTS.get(name, ())), groups_of(made, rate))


@pytest.mark.parametrize("name", ALL)
def test_the_loss_falls(name: str) -> None:
    made, optimizer = made_for(name)
    before = mean_loss(made)
    learn(made, optimizer, range(40))
    eval_mode(optimizer)
    assert mean_loss(made) < 0.8 * before


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_goes_on_from_a_saved_state_has_the_same_bits(name: str) -> None:
    straight, optimizer = made_for(name)
    learn(straight, optimizer, range(6))
    file = io.BytesIO()
    torch.save({"weights": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    learn(straight, optimizer, range(6, 9))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, its_optimizer = made_for(name)
    resumed.load_state_dict(saved["weights"])
    its_optimizer.load_state_dict(saved["optimizer"])
    learn(resumed, its_optimizer, range(6, 9))
    for expected, weight in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, weight)


@pytest.mark.parametrize("name", ALL)
def test_names_pass_the_check_in_any_case_and_give_their_class(name: str) -> None:
    for spelt in (name,) if "." in name else (name, name.lower(), name.upper()):
        problems = Problems()
        check_optimizer(options(spelt), {"unet": None}, problems, (2,) if name == "Muon" else (1, 2, 4))
        assert not list(problems)
    if name in KNOWN:
        assert type(made_for(name)[1]).__name__ == KNOWN[name].path.rsplit(".", 1)[1]


def test_eight_bit_names_hold_eight_bit_state() -> None:
    for name in BITS:
        made, optimizer = made_for(name)
        learn(made, optimizer, range(1))
        state = optimizer.state[made[0].weight]["state1"]
        assert state.dtype == (torch.uint8 if "8bit" in name else torch.float32), name


def test_plain_adamw_is_torchs_and_groups_keep_their_rates_and_keys() -> None:
    ours, theirs = model(), model()
    groups = groups_of(ours, 1e-2, 1e-3)
    groups[1]["weight_decay"] = 0.5
    optimizer = make_optimizer(options(None, "betas=.8,.9"), groups)
    peer_groups = [{"params": theirs[0].parameters(), "lr": 1e-2}, {"params": theirs[2].parameters(), "lr": 1e-3}]
    peer_groups[1]["weight_decay"] = 0.5
    peer = torch.optim.AdamW(peer_groups, betas=(0.8, 0.9), foreach=False)
    learn(ours, optimizer, range(5))
    learn(theirs, peer, range(5))
    assert optimizer.defaults["fused"] and optimizer.param_groups[0]["name"] == "text_encoder"
    for our, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize(("switch", "name"), [("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")])
def test_old_switches_are_names(switch: str, name: str) -> None:
    assert chosen_path(options(**{switch: True})) == KNOWN[name].path
    assert complaints(options(name.lower(), **{switch: True})) == ""
    assert "they name different optimizers" in complaints(options("Prodigy", **{switch: True}))


# --- filled in, described, kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGDNesterov", "SGDNesterov8bit"])
def test_nesterov_is_filled_in_told_and_gives_way_to_what_is_given(name: str) -> None:
    made = model()
    optimizer = make_optimizer(options(name), groups_of(made, 0.1))
    if name == "SGDNesterov":
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)
    assert f"optimizer: {name} filled in momentum=0.9, nesterov=True" in describe_optimizer(options(name), optimizer)
    given = options(name, "momentum=0.5")
    optimizer = make_optimizer(given, groups_of(made, 0.1))
    assert optimizer.param_groups[0].get("momentum", optimizer.defaults.get("betas", (0,))[0]) == 0.5
    first, second, *others = describe_optimizer(given, optimizer)
    assert "momentum=0.5" in first and "nesterov=True" in first and others == []
    assert second == f"optimizer: {name} filled in nesterov=True"


def test_nesterov_of_eight_bits_looks_ahead_though_its_package_does_not() -> None:
    """Up to the digits of 8-bit state; small tensors have 32-bit state."""
    ours, theirs, plain = model(), model(), model()
    words = ("momentum=0.8", "weight_decay=0.1")
    learn(ours, make_optimizer(options("SGDNesterov8bit", *words), groups_of(ours, 0.1, 0.2)), range(4))
    learn(theirs, make_optimizer(options("SGDNesterov", *words), groups_of(theirs, 0.1, 0.2)), range(4))
    learn(plain, make_optimizer(options("SGD", *words), groups_of(plain, 0.1, 0.2)), range(4))
    for our, their, other in zip(ours.parameters(), theirs.parameters(), plain.parameters(), strict=True):
        moved = (their - other).norm()
        assert (our - their).norm() < 0.02 * moved


def test_all_arguments_in_force_are_told() -> None:
    asked = options("RMSprop", "alpha=0.9")
    (line,) = describe_optimizer(asked, make_optimizer(asked, groups_of(model(), 0.1)))
    assert line.startswith("optimizer: torch.optim.rmsprop.RMSprop(") and "alpha=0.9" in line and "momentum=0" in line


def test_metadata_names_the_class_and_what_it_was_given() -> None:
    assert optimizer_name(options()) == "torch.optim.adamw.AdamW"
    assert optimizer_name(options("adamw", "weight_decay=.01")) == "torch.optim.adamw.AdamW(weight_decay=0.01)"
    assert optimizer_name(options("SGDNesterov", "momentum=0.8")) == "torch.optim.sgd.SGD(momentum=0.8,nesterov=True)"
    assert optimizer_name(options("AdamW8bit")) == "bitsandbytes.optim.adamw.AdamW8bit"


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    check_optimizer(options("DAdaptAdam", "decouple=True"), {"unet": 1.0}, Problems())
    make_optimizer(options("Prodigy", "weight_decay=0.1"), groups_of(model(), 1.0))
    assert capsys.readouterr().out == ""


# --- mistakes ---------------------------------------------------------------------------------------------------------


def complaints(asked: OptimizerOptions, rates: dict[str, float | None] | None = None) -> str:
    problems = Problems()
    check_optimizer(asked, rates or {"unet": None}, problems)
    return "\n".join(map(str, problems))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AdamW8bits", "did you mean AdamW8bit?"),
        ("DAdapt", "there is no optimizer named DAdapt"),
        ("LBFGS", "asks for the loss several times"),
        ("schedulefree.AdamWScheduleFreeClosure", "asks for the loss several times"),
        ("SparseAdam", "sparse gradients only"),
        ("torch.optim.Optimizer", "what all optimizers share"),
        ("torch.optim.AdanW", "torch.optim has no AdanW\n    -> did you mean AdamW?"),
        ("collections.OrderedDict", "is not a subclass of torch.optim.optimizer.Optimizer"),
        ("no_such_package.Best", "the package no_such_package is not installed\n    -> pip install no_such_package"),
        ("bitsandbytes.optim.lam.LAMB", "bitsandbytes has no module bitsandbytes.optim.lam"),
        ("bitsandbytes.optim.SGD8bit", "SGD without momentum is not supported!"),
    ],
)
def test_names_that_cannot_be_used_are_told_with_the_reason(name: str, said: str) -> None:
    assert said in complaints(options(name))


@pytest.fixture
def missing_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without the optional packages: None in sys.modules is how Python itself says so."""
    packages = ("bitsandbytes", "lion_pytorch", "dadaptation", "prodigyopt", "schedulefree")
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    yield


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("AdamW8bit", "bitsandbytes"),
        ("Lion", "lion-pytorch"),
        ("DAdaptation", "dadaptation"),
        ("Prodigy", "prodigyopt"),
        ("AdamWScheduleFree", "schedulefree"),
    ],
)
def test_a_missing_package_is_named_as_pip_knows_it(missing_packages: None, name: str, package: str) -> None:
    assert f"the package {package} is not installed\n    -> pip install {package};" in complaints(options(name))


def test_every_bad_word_is_told_and_nothing_is_run() -> None:
    said = complaints(options(None, "wieght_decay=1", "lr=1", "eps=__import__('os').getcwd()", "betas", "fused=True"))
    assert "did you mean weight_decay?" in said and "use --learning_rate" in said
    assert "is no value for eps" in said and "'betas' is not an argument" in said and "fused is not set here" in said


def test_values_that_a_class_refuses_are_told_before_a_model_is_there() -> None:
    assert "Invalid beta parameter at index 1: 2" in complaints(options("AdamW", "betas=.9,2"))
    assert "warmup_init=True` requires" in complaints(options("AdaFactor", "relative_step=False", "warmup_init=True"))


def test_an_optimizer_of_matrices_is_refused_by_name_where_other_weights_train() -> None:
    said = complaints(options("muon"))
    assert "muon does not take weights with 1 and 4 dimensions" in said and said.startswith("--optimizer_type: ")
    problems = Problems()
    check_optimizer(options("Muon"), {"unet": None}, problems, dimensions=(2, 4))
    assert "with 4 dimensions" in str(next(iter(problems)))


def test_unequal_rates_are_refused_by_what_finds_one_rate_for_all() -> None:
    for name in DISTANCE:
        said = complaints(options(name), {"text_encoder": 0.5, "unet": 1.0})
        assert ("cannot use unequal ones, and they are: text_encoder 0.5, unet 1" in said) == (name != "DAdaptAdam"), (
            name
        )
        assert complaints(options(name), {"text_encoder": 0.5, "unet": 0.5}) == ""
        if name != "DAdaptAdam":  # groups of a network differ where its options say so, which no check of options sees
            with pytest.raises(UserError, match="cannot use unequal ones"):
                make_optimizer(options(name), groups_of(model(), 0.5, 1.0))
    assert complaints(options("AdamW"), {"text_encoder": 0.5, "unet": 1.0}) == ""


def test_unequal_rates_become_the_scale_that_one_class_has() -> None:
    full, half = model(), model()
    for made, rate in ((full, 1.0), (half, 0.5)):
        asked = options("DAdaptAdam", "d0=0.01", "growth_rate=1.0")  # d stays, so that only the rates differ
        optimizer = make_optimizer(asked, groups_of(made, rate, 1.0))
        learn(made, optimizer, range(1))
    assert "optimizer: unequal rates of the parts became its layer_scale: text_encoder 0.5" in describe_optimizer(
        asked, optimizer
    )
    assert rates_in_force(optimizer) == {"text_encoder": pytest.approx(0.005), "unet": pytest.approx(0.01)}
    start = model()
    torch.testing.assert_close(half[0].weight - start[0].weight, 0.5 * (full[0].weight - start[0].weight))
    torch.testing.assert_close(half[2].weight, full[2].weight)


def test_adafactor_takes_a_rate_only_without_its_own() -> None:
    assert "finds the rate itself" in complaints(options("AdaFactor"), {"unet": 1e-4})
    assert complaints(options("AdaFactor"), {"unet": 1.0, "text_encoder": 1.0}) == ""
    manual = options("AdaFactor", "relative_step=False")
    assert complaints(manual, {"unet": 1e-4}) == "" and not finds_rate_itself(manual)
    assert finds_rate_itself(options("transformers.Adafactor", "scale_parameter=True", "relative_step=true"))


@pytest.mark.parametrize(
    ("word", "own"),
    [("True", True), ("1", True), ("false", False), ("0", False), ("0.0", False), ("None", False), ("none", False)],
)
def test_relative_step_is_understood_in_one_way(word: str, own: bool) -> None:
    asked = options("AdaFactor", f"relative_step = {word}")
    optimizer = make_optimizer(asked, groups_of(model(), 1e-3))
    assert has_own_schedule(asked) == finds_rate_itself(asked) == own
    assert (optimizer.param_groups[0]["lr"] is None) == own
    lines = describe_optimizer(asked, optimizer)
    assert ("optimizer: it finds its rate at every update; no learning rate and no schedule apply" in lines) == own


def test_what_finds_the_rate_is_known() -> None:
    finders = {name for name in ALL if finds_rate_itself(options(name))}
    assert finders == {name for name in KNOWN if name.startswith("DAdapt")} | {"Prodigy", "AdaFactor"}
    assert is_adafactor("transformers.optimization.Adafactor") and not is_adafactor("torch.optim.Adafactor")


# --- rates ------------------------------------------------------------------------------------------------------------


def test_plain_rates_are_those_of_the_groups() -> None:
    optimizer = make_optimizer(options(), groups_of(model(), 1e-3, 1e-5))
    assert rates_in_force(optimizer) == {"text_encoder": 1e-3, "unet": 1e-5}
    assert rates_in_force(optimizer)["unet"] is optimizer.param_groups[1]["lr"]
    assert rates_in_force(make_optimizer(options("torch.optim.Adafactor"), groups_of(model(), 0.5)))["unet"] == 0.5


@pytest.mark.parametrize("name", DISTANCE)
def test_a_found_rate_counts_with_its_factor(name: str) -> None:
    made = model()
    optimizer = make_optimizer(options(name), groups_of(made, 0.5))
    assert rates_in_force(optimizer)["unet"] == optimizer.param_groups[1]["d"] * 0.5
    jumped = False
    for update in range(60):
        before = optimizer.param_groups[0]["d"]
        learn(made, optimizer, range(update, update + 1))
        found = optimizer.param_groups[0]["d"]
        jumped = jumped or found != before
        assert rates_in_force(optimizer) == {"text_encoder": before * 0.5, "unet": before * 0.5}
    assert jumped and found > 1e-6  # the first guess
    assert rates_told(optimizer) == {"text_encoder": found * 0.5, "unet": found * 0.5}


@pytest.mark.parametrize("corrected", [True, False])
def test_the_rate_in_force_is_what_moved_the_weights_with_the_correction(corrected: bool) -> None:
    """Prodigy's first update moves each weight by rate (1 - beta1) / sqrt(1 - beta2), whatever its gradient."""
    weight = nn.Parameter(torch.ones(8))
    groups = [{"params": [weight], "lr": 0.5, "name": "unet"}]
    asked = options("Prodigy", "d0=0.01", "eps=1e-12", f"use_bias_correction={corrected}")
    optimizer = make_optimizer(asked, groups)
    weight.grad = torch.linspace(1, 2, 8)
    optimizer.step()
    moved = float(1 - weight.detach().double().mean())
    told = rates_in_force(optimizer)["unet"]
    assert told == pytest.approx(moved * math.sqrt(1 - 0.999) / (1 - 0.9), rel=1e-4)
    assert told == pytest.approx(0.005 * (math.sqrt(0.001) / 0.1 if corrected else 1.0))


def test_what_is_told_of_a_run_is_where_its_rate_began() -> None:
    for asked, start in ((options(), 1e-3), (options("Prodigy", "d0=0.01", "growth_rate=1.0"), 1.0)):
        made = model()
        optimizer = make_optimizer(asked, groups_of(made, start))
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 4)
        for update in range(4):
            learn(made, optimizer, range(update, update + 1))
            scheduler.step()
        expected = start * (0.01 if asked.optimizer_type else 1.0)
        assert optimizer.param_groups[0]["lr"] == 0
        assert rates_told(Accelerator(cpu=True).prepare(optimizer)) == {
            "text_encoder": pytest.approx(expected),
            "unet": pytest.approx(expected),
        }
    made = model()
    found = make_optimizer(options("AdaFactor", "scale_parameter=False"), groups_of(made, 1.0))
    learn(made, found, range(1))
    assert rates_told(found)["unet"] == pytest.approx(1e-2)
    scaled = make_optimizer(options("DAdaptAdam", "d0=0.01", "growth_rate=1.0"), groups_of(model(), 0.5, 1.0))
    assert rates_told(scaled) == {"text_encoder": pytest.approx(0.005), "unet": pytest.approx(0.01)}


@pytest.mark.parametrize("words", [(), ("betas=0.9,0.99",), ("betas=0.9,0.9",), ("silent_sgd_phase=False",)])
def test_updates_that_only_measure_are_counted_and_told(words: tuple[str, ...]) -> None:
    asked = options("RAdamScheduleFree", *words)
    made = model()
    optimizer = make_optimizer(asked, groups_of(made, 0.1))
    idle, start = idle_updates(asked), made[0].weight.detach().clone()
    assert (idle == 0) == ("silent_sgd_phase=False" in words)
    for update in range(int(idle) + 1):
        assert torch.equal(made[0].weight, start)
        learn(made, optimizer, range(update, update + 1))
    assert not torch.equal(made[0].weight, start)
    said = f"optimizer: its first {idle:g} updates only measure gradients and change no weight"
    assert any(line.startswith(said) for line in describe_optimizer(asked, optimizer)) == (idle > 0)


def test_others_move_at_once_and_a_short_memory_never_does() -> None:
    assert not any(idle_updates(options(name)) for name in ALL if name != "RAdamScheduleFree")
    assert idle_updates(options("schedulefree.RAdamScheduleFree", "betas=0.9,0.5")) == math.inf


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_adafactors_rate_is_what_moved_the_weights(relative: bool, scaled: bool) -> None:
    made = model()
    words = (f"relative_step={relative}", f"scale_parameter={scaled}", "clip_threshold=1e9")
    optimizer = make_optimizer(options("AdaFactor", *words), groups_of(made, 1.0 if relative else 1e-3))
    for update in range(3):
        before = made[0].weight.detach().clone()
        learn(made, optimizer, range(update, update + 1))
        told = float(rates_in_force(optimizer)["text_encoder"])
    size = float(before.square().mean().sqrt()) if scaled else 1.0
    assert told == pytest.approx((0.01 if relative else 1e-3) * size, rel=1e-5)
    assert optimizer.param_groups[0]["lr"] == (None if relative else 1e-3)
    warming = make_optimizer(options("AdaFactor", "warmup_init=True", "scale_parameter=False"), groups_of(made, 1.0))
    learn(made, warming, range(5))
    assert rates_in_force(warming)["unet"] == pytest.approx(5e-6)


def test_the_warm_up_of_a_schedule_free_rate_counts() -> None:
    made = model()
    optimizer = make_optimizer(options("AdamWScheduleFree", "warmup_steps=10"), groups_of(made, 0.1))
    learn(made, optimizer, range(3))
    assert rates_in_force(optimizer)["unet"] == pytest.approx(0.03)


# --- modes, wrappers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_looking_at_the_average_changes_nothing_that_is_learned(name: str) -> None:
    straight, optimizer = made_for(name)
    looked, its_optimizer = made_for(name)
    learn(straight, optimizer, range(10))
    learn(looked, its_optimizer, range(7))
    at_work = looked[0].weight.detach().clone()
    wrapped = Accelerator(cpu=True).prepare(its_optimizer)
    eval_mode(wrapped)
    eval_mode(wrapped)  # twice is once
    assert not torch.equal(looked[0].weight, at_work)
    train_mode(wrapped)
    assert torch.equal(looked[0].weight, at_work)
    learn(looked, its_optimizer, range(7, 10))
    assert torch.equal(looked[0].weight, straight[0].weight)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SCHEDULE_FREE])
def test_modes_are_nothing_to_all_others(name: str) -> None:
    made, optimizer = made_for(name)
    learn(made, optimizer, range(2))
    before = made[0].weight.detach().clone()
    eval_mode(optimizer)
    train_mode(optimizer)
    assert torch.equal(made[0].weight, before)


@pytest.mark.parametrize("name", ALL)
def test_stepping_apart_is_promised_only_where_it_is_the_same(name: str) -> None:
    together, optimizer = made_for(name)
    assert steps_apart(Accelerator(cpu=True).prepare(optimizer)) == (name not in (*DISTANCE, *SCHEDULE_FREE))
    if not steps_apart(optimizer):
        return
    alone = copy.deepcopy(together)
    rate = RATES.get(name, 1.0 if finds_rate_itself(options(name)) else 0.02)
    each = [make_optimizer(options(name, *ARGUMENTS.get(name, ())), [group]) for group in groups_of(alone, rate)]
    learn(together, optimizer, range(4))
    for update in range(4):
        alone.zero_grad()
        loss_of(alone, update).backward()
        for single in each:
            single.step()
    for expected, weight in zip(together.parameters(), alone.parameters(), strict=True):
        assert torch.equal(expected, weight) and math.isfinite(float(weight.detach().sum()))
