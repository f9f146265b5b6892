"""Learning rates step by step: as Transformers', Diffusers' and torch's own, ending where the run ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler as diffusers_scheduler
from transformers.optimization import get_scheduler as transformers_scheduler

from library.core.errors import Problems, UserError
from library.optim.curves import CURVES
from library.optim.optimizers import idle_updates, make_optimizer, rates_told
from library.optim.schedulers import (
    check_scheduler,
    describe_scheduler,
    make_scheduler,
    scheduler_name,
    warmup_updates,
)
from library.options.optimizer import OptimizerOptions

RATE = 3e-4
Made = Callable[[torch.optim.Optimizer], Any]


def options(name: str | None = None, *words: str, **others: Any) -> OptimizerOptions:
    return OptimizerOptions(lr_scheduler=name, lr_scheduler_args=words, **others)


def optimizer_at(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate, "name": str(rate)} for rate in rates]
    return torch.optim.AdamW(groups, lr=rates[0])


def rates(make: Made, updates: int, *starts: float) -> list[list[float]]:
    """The rates of each update, and those after the last."""
    optimizer = optimizer_at(*(starts or (RATE,)))
    scheduler = make(optimizer)
    found = []
    for _ in range(updates + 1):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def ours(asked: OptimizerOptions, updates: int) -> Made:
    return lambda optimizer: make_scheduler(asked, optimizer, updates)


def assert_equal_rates(mine: list[list[float]], theirs: list[list[float]]) -> None:
    assert len(mine) == len(theirs)
    for our, their in zip(mine, theirs, strict=True):
        assert our == pytest.approx(their, rel=1e-9, abs=1e-18)


PEERS: dict[str, tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]] = {
    "constant": ({}, (), {}),
    "constant_with_warmup": ({}, (), {}),
    "linear": ({}, (), {}),
    "cosine": ({}, (), {}),
    "cosine, two waves": ({}, ("num_cycles=2",), {"num_cycles": 2.0}),
    "cosine_with_restarts": ({}, (), {}),
    "cosine_with_restarts, three": ({"lr_scheduler_num_cycles": 3}, (), {"num_cycles": 3}),
    "polynomial": ({}, (), {}),
    "polynomial, square": ({"lr_scheduler_power": 2.0}, ("lr_end=1e-5",), {"power": 2.0, "lr_end": 1e-5}),
    "inverse_sqrt": ({}, (), {}),
    "inverse_sqrt, 25": ({"lr_scheduler_timescale": 25}, (), {"timescale": 25}),
    "cosine_with_min_lr": ({"lr_scheduler_min_lr_ratio": 0.1}, (), {"min_lr_rate": 0.1}),
    "warmup_stable_decay": ({"lr_decay_steps": 5}, (), {"num_decay_steps": 5}),
    "warmup_stable_decay, more": (
        {"lr_decay_steps": 7, "lr_scheduler_min_lr_ratio": 0.2},
        ("warmup_type=cosine", "decay_type=1-sqrt"),
        {"num_decay_steps": 7, "min_lr_ratio": 0.2, "warmup_type": "cosine", "decay_type": "1-sqrt"},
    ),
    "warmup_stable_decay, linear": (
        {"lr_decay_steps": 7},
        ("warmup_type=1-sqrt", "decay_type=linear"),
        {"num_decay_steps": 7, "warmup_type": "1-sqrt", "decay_type": "linear"},
    ),
    "warmup_stable_decay, waves": (
        {"lr_decay_steps": 7},
        ("num_cycles=1.5",),
        {"num_decay_steps": 7, "num_cycles": 1.5},
    ),
}


@pytest.mark.parametrize("case", PEERS)
@pytest.mark.parametrize(("updates", "warmup"), [(20, 0), (37, 5), (200, 13), (12, 1)])
def test_rates_are_those_of_transformers(case: str, updates: int, warmup: int) -> None:
    name, (others, words, theirs) = case.split(",")[0], PEERS[case]
    if name == "constant":
        warmup = 0
    asked = options(name, *words, lr_warmup_steps=float(warmup), **others)
    peer = rates(
        lambda optimizer: transformers_scheduler(name, optimizer, warmup, updates, scheduler_specific_kwargs=theirs),
        updates,
    )
    assert_equal_rates(rates(ours(asked, updates), updates), peer)


def test_steps_are_those_of_diffusers() -> None:
    rules = "1:10,0.1:20,0.5:30,0.005"
    peer = rates(lambda optimizer: diffusers_scheduler("piecewise_constant", optimizer, step_rules=rules), 40)
    assert_equal_rates(rates(ours(options("piecewise_constant", f"step_rules={rules}"), 40), 40), peer)


def test_every_name_is_compared() -> None:
    assert {case.split(",")[0] for case in PEERS} | {"piecewise_constant"} == set(CURVES)


@pytest.mark.parametrize("updates", [1, 2, 9, 100])
def test_a_schedule_ends_exactly_at_the_last_update(updates: int) -> None:
    for name in ("linear", "cosine", "cosine_with_restarts"):
        found = rates(ours(options(name), updates), updates)
        assert found[-1] == [pytest.approx(0, abs=1e-12 * RATE)] and found[-2][0] > 0 and found[0] == [RATE]
    end = rates(ours(options("polynomial"), updates), updates)[-1]
    assert end == [pytest.approx(1e-7)]
    low = options("cosine_with_min_lr", lr_scheduler_min_lr_ratio=0.25)
    assert rates(ours(low, updates), updates)[-1] == [pytest.approx(0.25 * RATE)]


def test_parts_keep_their_rates_relative_to_each_other_and_polynomial_its_end() -> None:
    found = rates(ours(options("cosine"), 10), 10, 1e-3, 1e-5)
    assert all(pair[0] == pytest.approx(100 * pair[1], abs=1e-15) for pair in found)
    assert rates(ours(options("polynomial"), 10), 10, 1e-3, 1e-5)[-1] == [pytest.approx(1e-7)] * 2
    with pytest.raises(UserError, match=r"polynomial falls to 1e-07, and 1e-08 begins at 1e-08"):
        make_scheduler(options("polynomial"), optimizer_at(1e-3, 1e-8), 10)
    assert rates(ours(options("polynomial", "lr_end=0"), 10), 10, 1e-8)[-1] == [0.0]


def test_a_share_of_the_run_is_a_number_of_updates() -> None:
    for share, updates, expected in ((0.1, 50, 5), (0.29, 100, 29), (0.5, 3, 2), (7.0, 50, 7), (1.0, 50, 1)):
        assert warmup_updates(options("linear", lr_warmup_steps=share), updates) == expected
    as_share = rates(ours(options("warmup_stable_decay", lr_warmup_steps=0.1, lr_decay_steps=0.25), 40), 40)
    as_count = rates(ours(options("warmup_stable_decay", lr_warmup_steps=4.0, lr_decay_steps=10.0), 40), 40)
    assert as_share == as_count and as_share[3][0] < as_share[4][0] == as_share[29][0] > as_share[32][0]


def test_a_resumed_schedule_goes_on() -> None:
    asked = options("cosine", lr_warmup_steps=3.0)
    straight = rates(ours(asked, 12), 12)
    optimizer = optimizer_at(RATE)
    scheduler = make_scheduler(asked, optimizer, 12)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    state, groups = scheduler.state_dict(), optimizer.state_dict()
    resumed = optimizer_at(RATE)
    its_scheduler = make_scheduler(asked, resumed, 12)
    resumed.load_state_dict(groups)
    its_scheduler.load_state_dict(state)
    found = []
    for _ in range(5, 13):
        found.append([group["lr"] for group in resumed.param_groups])
        resumed.step()
        its_scheduler.step()
    assert found == straight[5:]


# --- Adafactor's own, schedule-free, classes of others ----------------------------------------------------------------


def adafactor(*words: str, **others: Any) -> OptimizerOptions:
    return OptimizerOptions(optimizer_type="AdaFactor", optimizer_args=words, **others)


@pytest.mark.parametrize("name", [None, "adafactor"])
def test_adafactor_keeps_its_own_schedule(name: str | None) -> None:
    asked = adafactor(lr_scheduler=name)
    assert scheduler_name(asked) == "adafactor" and complaints(asked) == ""
    group = {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1.0, "name": "unet"}
    optimizer = make_optimizer(asked, [group])
    scheduler = make_scheduler(asked, optimizer, 5)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is None


def complaints(asked: OptimizerOptions, updates: int | None = 100, rates: dict[str, float] | None = None) -> str:
    problems = Problems()
    check_scheduler(asked, rates or {}, updates, problems)
    return "\n".join(map(str, problems))


def test_a_schedule_beside_the_optimizers_own_is_an_error_that_says_what_to_do() -> None:
    for others in ({"lr_scheduler": "cosine"}, {"lr_scheduler_type": "CosineAnnealingLR"}):
        said = complaints(adafactor(**others))
        assert "is its own schedule" in said and "--optimizer_args relative_step=False" in said
    assert complaints(adafactor("relative_step=False", lr_scheduler="constant_with_warmup")) == ""
    assert "the schedule adafactor does not use it" in complaints(adafactor(lr_warmup_steps=10.0))
    assert "AdaFactor makes itself" in complaints(options("adafactor"))
    assert "AdaFactor makes itself" in complaints(adafactor("relative_step=False", lr_scheduler="adafactor"))


def test_what_an_optimizer_cannot_live_with_is_told() -> None:
    said = complaints(options("cosine", optimizer_type="AdamWScheduleFree"))
    assert "in place of a schedule" in said and "warmup_steps=100" in said
    assert complaints(options(optimizer_type="AdamWScheduleFree")) == ""
    warming = options("linear", optimizer_type="DAdaptSGD", lr_warmup_steps=0.1)
    assert "divides by the rate of the first update" in complaints(warming)
    assert complaints(options("linear", optimizer_type="DAdaptSGD")) == ""


def test_a_class_by_its_path_is_the_class() -> None:
    for path in ("CosineAnnealingLR", "torch.optim.lr_scheduler.CosineAnnealingLR"):
        asked = options(None, "T_max=10", "eta_min=1e-6", lr_scheduler_type=path)
        assert complaints(asked) == "" and scheduler_name(asked) == "torch.optim.lr_scheduler.CosineAnnealingLR"
        peer = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10, eta_min=1e-6), 10)
        assert rates(ours(asked, 10), 10) == peer


@pytest.mark.parametrize(
    ("path", "words", "said"),
    [
        ("CosineAnnealingLR", (), "cannot do without T_max"),
        ("CosineAnnealingLR", ("T_mux=3",), "did you mean T_max?"),
        ("CosineAnnealingLR", ("T_max=3", "last_epoch=2"), "last_epoch is not set here"),
        ("StepLR", ("step_size=often",), "torch.optim.lr_scheduler.StepLR does not work with step_size=often"),
        ("OneCycleLR", ("max_lr=0.1", "total_steps=99"), "Tried to step 100 times"),
        ("CosineAnnealingWarmRestarts", ("T_0=0",), "Expected positive integer T_0"),
        ("ReduceLROnPlateau", (), "each of its steps asks for metrics"),
        ("CosineAnealingLR", (), "did you mean CosineAnnealingLR?"),
        ("torch.optim.AdamW", (), "is not a subclass of torch.optim.lr_scheduler.LRScheduler"),
        ("no_such_package.Schedule", (), "the package no_such_package is not installed"),
    ],
)
def test_classes_that_cannot_be_used_are_told(path: str, words: tuple[str, ...], said: str) -> None:
    assert said in complaints(options(None, *words, lr_scheduler_type=path))


OWN_RATES = {
    "OneCycleLR": (("max_lr=0.1", "total_steps=10"), 0.1),
    "CyclicLR": (("base_lr=0.01", "max_lr=0.05", "step_size_up=4"), 0.05),
}


@pytest.mark.parametrize("name", OWN_RATES)
def test_a_schedule_that_sets_the_rates_itself_says_so_and_what_they_are(name: str) -> None:
    words, highest = OWN_RATES[name]
    asked = options(None, *words, lr_scheduler_type=name)
    assert complaints(asked, 10, {"text_encoder": 1e-4, "unet": 1e-4}) == ""
    optimizer = optimizer_at(1e-4, 1e-4)
    scheduler = make_scheduler(asked, optimizer, 10)
    assert [group["asked_lr"] for group in optimizer.param_groups] == [1e-4, 1e-4]
    first, second = describe_scheduler(asked, optimizer)
    assert first.startswith(f"schedule: {name} sets the rates itself, the learning rates given do not apply")
    assert f"{highest:g}" in first and "cycle_momentum=False" in second
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates_told(optimizer) == {"0.0001": pytest.approx(max(seen))}
    assert max(seen) == pytest.approx(highest, rel=0.05)
    calm = options(None, *words, "cycle_momentum=False", lr_scheduler_type=name)
    optimizer = optimizer_at(1e-4)
    make_scheduler(calm, optimizer, 10)
    assert len(describe_scheduler(calm, optimizer)) == 1


@pytest.mark.parametrize("name", OWN_RATES)
@pytest.mark.parametrize("updates", [None, 10])
def test_a_schedule_that_sets_the_rates_itself_refuses_unequal_ones(name: str, updates: int | None) -> None:
    asked = options(None, *OWN_RATES[name][0], lr_scheduler_type=name)
    said = complaints(asked, updates, {"text_encoder": 1e-5, "unet": 1e-4})
    assert f"{name} sets the rates itself, and would ignore those of the parts: text_encoder 1e-05, unet 0.0001" in said
    with pytest.raises(UserError, match="sets the rates itself"):
        make_scheduler(asked, optimizer_at(1e-4, 1e-5), 10)


def test_a_schedule_may_have_a_rate_for_each_part() -> None:
    asked = options(None, "max_lr=0.1,0.01", "total_steps=11", lr_scheduler_type="OneCycleLR")
    assert complaints(asked, 10, {"text_encoder": 1e-4, "unet": 1e-4}) == ""
    assert "does not work with max_lr=0.1,0.01" in complaints(asked, 10, {"unet": 1e-4})
    assert [pair[0] / pair[1] for pair in rates(ours(asked, 10), 10, 1e-4, 1e-4)] == [pytest.approx(10)] * 11


def test_schedules_that_move_the_given_rates_keep_them() -> None:
    for name, words in (("CosineAnnealingLR", ("T_max=5", "eta_min=1e-6")), ("StepLR", ("step_size=2",))):
        asked = options(None, *words, lr_scheduler_type=name)
        assert complaints(asked, 5, {"text_encoder": 1e-5, "unet": 1e-4}) == ""
        optimizer = optimizer_at(1e-4, 1e-5)
        make_scheduler(asked, optimizer, 5)
        assert describe_scheduler(asked, optimizer) == [] and "asked_lr" not in optimizer.param_groups[0]
        assert rates_told(optimizer) == {"0.0001": 1e-4, "1e-05": 1e-5}
    plain = optimizer_at(1e-4)
    make_scheduler(options("linear"), plain, 5)
    assert describe_scheduler(options("linear"), plain) == []


# --- runs that would change nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "zeros", "said"),
    [
        (options("piecewise_constant", "step_rules=0:100,1"), 100, "give a factor above 0 before update {}"),
        (options("constant_with_warmup", lr_warmup_steps=1.0), 1, "remove the warm-up"),
        (options("cosine", lr_warmup_steps=1.0), 1, "remove the warm-up"),
        (
            options(None, "base_lr=0", "max_lr=0.1", lr_scheduler_type="CyclicLR"),
            1,
            "choose a schedule that does not begin with a rate of 0",
        ),
    ],
)
def test_a_run_whose_rate_is_always_zero_is_refused(asked: OptimizerOptions, zeros: int, said: str) -> None:
    for updates in {1, zeros}:
        found = complaints(asked, updates)
        assert f"the rate is 0 at every update of the run, which has {updates}" in found
        assert said.format(updates) in found
        with pytest.raises(UserError, match="nothing would change"):
            make_scheduler(asked, optimizer_at(RATE), updates)
    assert complaints(asked, zeros + 1) == "" and complaints(asked, None) == ""


def test_a_run_within_the_updates_that_only_measure_is_refused() -> None:
    asked = options(optimizer_type="RAdamScheduleFree")
    idle = int(idle_updates(asked))
    said = complaints(asked, idle)
    assert f"changes no weight in its first {idle} updates, and the run has {idle}" in said
    assert "silent_sgd_phase=False" in said
    assert complaints(asked, idle + 1) == "" and complaints(asked, None) == ""
    never = options(optimizer_type="RAdamScheduleFree", optimizer_args=("betas=0.9,0.5",))
    assert "never changes a weight" in complaints(never) and "never changes a weight" in complaints(never, None)
    moving = options(optimizer_type="RAdamScheduleFree", optimizer_args=("silent_sgd_phase=False",))
    assert complaints(moving, 1) == ""


def test_the_end_of_polynomial_is_compared_with_the_rates_before_anything_is_made() -> None:
    said = complaints(options("polynomial", "lr_end=1e-5"), None, {"unet": 1e-4, "text_encoder": 1e-6})
    assert "polynomial falls to 1e-05, and text_encoder begins at 1e-06" in said and "unet" not in said
    assert complaints(options("polynomial", "lr_end=1e-5"), 10, {"unet": 1e-4}) == ""


# --- mistakes ---------------------------------------------------------------------------------------------------------

SHAPING = {
    "lr_warmup_steps": 5.0,
    "lr_decay_steps": 5.0,
    "lr_scheduler_num_cycles": 2,
    "lr_scheduler_power": 2.0,
    "lr_scheduler_min_lr_ratio": 0.1,
    "lr_scheduler_timescale": 9,
}
NEEDED: dict[str, dict[str, Any]] = {
    "warmup_stable_decay": {"lr_decay_steps": 5.0},
    "cosine_with_min_lr": {"lr_scheduler_min_lr_ratio": 0.2},
    "piecewise_constant": {"lr_scheduler_args": ("step_rules=1:10,0.1",)},
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("field", SHAPING)
def test_an_option_changes_the_rates_or_is_refused(name: str, field: str) -> None:
    plain = OptimizerOptions(lr_scheduler=name, **NEEDED.get(name, {}))
    asked = OptimizerOptions(lr_scheduler=name, **{**NEEDED.get(name, {}), field: SHAPING[field]})
    said = complaints(asked, 40)
    if not said:
        assert asked == plain or rates(ours(asked, 40), 40) != rates(ours(plain, 40), 40)
        return
    assert f"--{field}: the schedule {name} does not use it" in said
    with pytest.raises(UserError, match="does not use it"):
        make_scheduler(asked, optimizer_at(RATE), 40)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (options("cosin"), "did you mean cosine?"),
        (options("cosine", lr_scheduler_type="StepLR"), "each names a schedule"),
        (options("warmup_stable_decay"), "how long the fall lasts"),
        (options("cosine_with_min_lr"), "the lowest rate"),
        (options("piecewise_constant"), "must know the steps"),
        (options("piecewise_constant", "step_rules=1:20,0.1:10,0"), "is no value for step_rules"),
        (options("piecewise_constant", "step_rules=1:20,-1"), "is no value for step_rules"),
        (options("polynomial", "lr_and=0"), "did you mean lr_end?"),
        (options("polynomial", "lr_end=low"), "'low' is no value for lr_end"),
        (options("linear", "lr_end=0"), "is not an argument of linear"),
        (options("linear", lr_warmup_steps=200.0), "the warm-up over 200 updates does not fit into the run of 100"),
        (options("warmup_stable_decay", lr_warmup_steps=0.5, lr_decay_steps=0.6), "and the fall over 60"),
        (options("linear", lr_warmup_steps=0.001), "0.001 of 100 updates is less than one"),
        (options("linear", lr_warmup_steps=2.5), "2.5 is no number of updates"),
    ],
)
def test_mistakes_are_told(asked: OptimizerOptions, said: str) -> None:
    assert said in complaints(asked)
    with pytest.raises(UserError):
        make_scheduler(asked, optimizer_at(RATE), 100)


def test_what_depends_on_the_length_waits_until_it_is_known() -> None:
    asked = options("linear", lr_warmup_steps=200.0)
    assert complaints(asked, None) == "" and complaints(asked, 199) != "" and complaints(asked, 200) == ""
    found = rates(ours(asked, 200), 200)
    assert found[199][0] == pytest.approx(RATE * 199 / 200) and math.isfinite(found[200][0])
