"""Steps that need less memory: the same numbers where nothing is rounded, exact on average where it is."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from library.core.errors import Problems, UserError
from library.optim import stepping
from library.optim.optimizers import check_optimizer, finds_rate_itself, make_optimizer, rates_in_force, train_mode
from library.optim.registry import KNOWN
from library.optim.schedulers import make_scheduler
from library.optim.stepping import (
    FusedBackward,
    SinglySteppingOptimizer,
    check_low_precision,
    describe_stepping,
    learns_in_low_precision,
    make_stepping,
)
from library.options.memory import MemoryOptions
from library.options.optimizer import OptimizerOptions
from library.options.training import TrainingOptions

APART = [
    "AdamW",
    "AdamW8bit",
    "PagedAdamW",
    "Lion",
    "Lion8bit",
    "SGDNesterov",
    "SGDNesterov8bit",
    "AdaFactor",
    "RMSprop",
]
TOGETHER = ["Prodigy", "DAdaptAdam", "DAdaptLion"]
FROM_TORCH = ["Adam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "ASGD", "Rprop", "SGD"]
ALL = [*KNOWN, *FROM_TORCH, "bitsandbytes.optim.lamb.LAMB", "torch.optim.Adafactor"]

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def options(name: str, *words: str) -> OptimizerOptions:
    return OptimizerOptions(optimizer_type=name, optimizer_args=words)


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made.to(dtype)


def groups_of(made: nn.Sequential, rate: float = 0.01) -> list[dict[str, Any]]:
    parts = {"text_encoder": made[0], "unet": made[2]}
    return [{"params": list(part.parameters()), "lr": rate, "name": name} for name, part in parts.items()]


def optimizer_for(made: nn.Sequential, name: str, rate: float = 0.01) -> torch.optim.Optimizer:
    optimizer = make_optimizer(options(name), groups_of(made, 1.0 if finds_rate_itself(options(name)) else rate))
    train_mode(optimizer)
    return optimizer


def go_back(made: nn.Module, update: int) -> None:
    generator = torch.Generator().manual_seed(update)
    x = torch.randn(8, 64, generator=generator).to(next(made.parameters()).dtype)
    (made(x).float() - x[:, :1].float()).square().mean().backward()


def learn(made: nn.Module, optimizer: torch.optim.Optimizer, updates: range) -> None:
    for update in updates:
        optimizer.zero_grad()
        go_back(made, update)
        optimizer.step()


def assert_same_bits(first: nn.Module, second: nn.Module) -> None:
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


# --- stepping singly --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", APART + TOGETHER)
def test_float32_weights_get_the_bits_of_the_optimizer_inside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "TOGETHER", 100)  # so that even these weights are stepped in several portions
    plain, singly = model(), model()
    learn(plain, optimizer_for(plain, name), range(5))
    learn(singly, SinglySteppingOptimizer(optimizer_for(singly, name), seed=1), range(5))
    assert_same_bits(plain, singly)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updates_too_small_for_the_format_are_kept_on_average(dtype: torch.dtype) -> None:
    """200 updates of 1e-5 on weights of about 1, whose steps are 2^-8 and 2^-11: plain rounding loses every one."""
    start = torch.linspace(0.6, 0.9, 20_000).to(dtype)
    rounded, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    exact = nn.Parameter(start.float())
    optimizers = [
        SinglySteppingOptimizer(torch.optim.SGD([rounded], lr=1e-5), seed=3),
        torch.optim.SGD([plain], lr=1e-5),
        torch.optim.SGD([exact], lr=1e-5),
    ]
    for _ in range(200):
        for parameter in (rounded, plain, exact):
            parameter.grad = torch.ones_like(parameter)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, start)
    step = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    moved = float((rounded.detach().double() - start.double()).mean())
    expected = float((exact.detach().double() - start.double()).mean())
    # each update moves a weight by a whole step with odds 1e-5/step: the mean of 20,000 weights is that close
    assert abs(moved - expected) < 5 * math.sqrt(200 * 1e-5 * step / 20_000)
    assert expected == pytest.approx(-2e-3, rel=0.01)


@pytest.mark.parametrize("name", [name for name in ALL if "ScheduleFree" not in name])
def test_half_precision_weights_learn_and_state_stays_float32(name: str) -> None:
    made = model(torch.bfloat16)
    optimizer = SinglySteppingOptimizer(optimizer_for(made, name, 0.1), seed=1)
    learn(made, optimizer, range(12))
    assert made[0].weight.dtype == torch.bfloat16
    if not name.startswith("DAdapt"):  # their first guess of a rate is small
        assert not torch.equal(made[0].weight, model(torch.bfloat16)[0].weight)
    assert_no_halves(optimizer)
    assert set(optimizer.state) <= set(made.parameters())
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in made.parameters()]


def assert_no_halves(optimizer: torch.optim.Optimizer) -> None:
    values = [value for state in optimizer.state.values() for value in state.values()]
    formats = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    assert not formats & {torch.bfloat16, torch.float16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_that_is_made_before_the_first_update_is_float32(dtype: torch.dtype) -> None:
    """Adagrad's sum of 2000 squares of 1 would stop at 256 in bf16."""
    weight = nn.Parameter(torch.ones(4, dtype=dtype))
    inside = make_optimizer(options("Adagrad"), [{"params": [weight], "lr": 1e-3, "name": "unet"}])
    in_half = inside.state_dict()
    optimizer = SinglySteppingOptimizer(inside, seed=1)
    assert_no_halves(optimizer)
    for _ in range(2000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert optimizer.state[weight]["sum"].tolist() == [2000.0] * 4
    optimizer.load_state_dict({**in_half, "updates_done": 0})
    assert_no_halves(optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_the_rounding_is_the_same_after_a_resume(name: str, dtype: torch.dtype) -> None:
    straight = model(dtype)
    optimizer = SinglySteppingOptimizer(optimizer_for(straight, name, 0.1), seed=1)
    learn(straight, optimizer, range(7))
    file = io.BytesIO()
    torch.save({"weights": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = model(dtype)
    its_optimizer = SinglySteppingOptimizer(optimizer_for(resumed, name, 0.1), seed=1)
    resumed.load_state_dict(saved["weights"])
    its_optimizer.load_state_dict(saved["optimizer"])
    assert_same_state(optimizer, its_optimizer)
    learn(straight, optimizer, range(7, 10))
    learn(resumed, its_optimizer, range(7, 10))
    assert_same_bits(straight, resumed)
    assert_same_state(optimizer, its_optimizer)


def assert_same_state(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
    assert_same_content(first.state_dict()["state"], second.state_dict()["state"])


def assert_same_content(ours: Any, theirs: Any) -> None:
    """Every number and its format; bitsandbytes has dicts within the state of a weight."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same_content(value, theirs[key])
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", APART + TOGETHER)
def test_another_seed_rounds_otherwise(name: str) -> None:
    first, second = model(torch.bfloat16), model(torch.bfloat16)
    for made, seed in ((first, 1), (second, 2)):
        learn(made, SinglySteppingOptimizer(optimizer_for(made, name), seed), range(8))
    assert not torch.equal(first[0].weight, second[0].weight)


def test_accelerate_and_schedules_take_it() -> None:
    made = model(torch.bfloat16)
    memory, asked = MemoryOptions(full_bf16=True), OptimizerOptions(lr_scheduler="linear")
    optimizer = make_stepping(make_optimizer(asked, groups_of(made)), memory, 1)
    assert isinstance(optimizer, torch.optim.Optimizer)
    scheduler = make_scheduler(asked, optimizer, 4)
    prepared = Accelerator(cpu=True).prepare(optimizer)
    seen = []
    for update in range(4):
        seen.append(rates_in_force(prepared)["unet"])
        learn(made, prepared, range(update, update + 1))
        scheduler.step()
    assert seen == pytest.approx([0.01, 0.0075, 0.005, 0.0025]) and optimizer.updates_done == 4
    extra = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer.add_param_group({"params": [extra], "lr": 0.1, "name": "extra"})
    extra.grad = torch.ones_like(extra)
    optimizer.step()
    assert bool(extra.any())
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_only_what_the_options_want_is_wrapped_and_told() -> None:
    made = model()
    plain, shared = optimizer_for(made, "AdamW"), optimizer_for(made, "Prodigy")
    for memory in (MemoryOptions(), MemoryOptions(fused_backward_pass=True)):
        assert make_stepping(plain, memory, 0) is plain and not learns_in_low_precision(memory)
        assert describe_stepping(plain) == []
    for memory in (MemoryOptions(full_bf16=True), MemoryOptions(full_fp16=True)):
        assert isinstance(make_stepping(plain, memory, 0), SinglySteppingOptimizer) and learns_in_low_precision(memory)
    assert len(describe_stepping(Accelerator(cpu=True).prepare(SinglySteppingOptimizer(plain, 0)))) == 1
    assert "all weights at once" in describe_stepping(SinglySteppingOptimizer(shared, 0))[1]


# --- the fused backward pass ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", APART)
def test_applying_gradients_in_the_backward_pass_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    after, during = model(dtype), model(dtype)
    plain = optimizer_for(after, name)
    if dtype != torch.float32:
        plain = SinglySteppingOptimizer(plain, seed=0)
    learn(after, plain, range(4))
    optimizer = optimizer_for(during, name)
    fused = FusedBackward(SinglySteppingOptimizer(optimizer, seed=0) if dtype != torch.float32 else optimizer)
    for update in range(4):
        go_back(during, update)
        assert all(parameter.grad is None for parameter in during.parameters())
        fused.finish_update()
    assert_same_bits(after, during)
    assert fused.idle_parts() == []


def test_gradients_are_never_all_there() -> None:
    made = nn.Sequential(*(nn.Linear(16, 16) for _ in range(6)))
    groups = [{"params": list(made.parameters()), "lr": 0.1, "name": "unet"}]
    FusedBackward(make_optimizer(options("SGD"), groups))
    alive = []
    for parameter in made.parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in made.parameters()))
        )
    made(torch.ones(2, 16)).sum().backward()
    assert len(alive) == 12 and max(alive) == 0  # these hooks run behind ours, which have freed what was there


def test_the_norm_is_that_of_all_gradients_and_hooks_can_go() -> None:
    plain, made = model(), model()
    go_back(plain, 0)
    expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in plain.parameters()])
    fused = FusedBackward(optimizer_for(made, "AdamW"))
    go_back(made, 0)
    torch.testing.assert_close(fused.finish_update(), expected)
    fused.remove()
    before = made[0].weight.detach().clone()
    go_back(made, 1)
    assert torch.equal(made[0].weight, before) and made[0].weight.grad is not None


def test_a_gradient_that_is_not_finite_stops_before_its_weight_changes() -> None:
    made = model()
    FusedBackward(optimizer_for(made, "AdamW"))
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    made[0].register_full_backward_hook(lambda *_: None)
    loss = made(torch.full((2, 64), math.nan)).sum()
    with pytest.raises(UserError, match=r"a gradient of (unet|text_encoder) is no longer finite"):
        loss.backward()
    assert torch.equal(made[2].weight, before["2.weight"]) and torch.equal(made[0].weight, before["0.weight"])


def test_parts_without_gradient_are_known() -> None:
    made = model()
    fused = FusedBackward(optimizer_for(made, "AdamW"))
    made[2](torch.ones(1, 80)).sum().backward()
    fused.finish_update()
    assert fused.idle_parts() == ["text_encoder"]
    with pytest.raises(UserError, match="no weight of text_encoder and unet received a gradient"):
        fused.finish_update()


@pytest.mark.parametrize("name", [*TOGETHER, "AdamWScheduleFree"])
def test_optimizers_that_share_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="step each weight alone"):
        FusedBackward(optimizer_for(model(), name))


# --- options ----------------------------------------------------------------------------------------------------------


def complaints(memory: MemoryOptions, name: str = "AdamW", **training: Any) -> str:
    problems = Problems()
    check_low_precision(memory, TrainingOptions(**training), options(name), problems)
    return "\n".join(map(str, problems))


def test_formats_must_agree() -> None:
    for wanted in ("fp16", "bf16"):
        memory = MemoryOptions(**{f"full_{wanted}": True})
        assert complaints(memory, mixed_precision=wanted) == ""
        for other in {"no", "fp16", "bf16"} - {wanted}:
            assert f"give --mixed_precision {wanted}" in complaints(memory, mixed_precision=other)
    both = MemoryOptions(full_fp16=True, full_bf16=True)
    assert "--full_fp16, --full_bf16: weights have one format" in complaints(both, mixed_precision="bf16")
    full = MemoryOptions(full_bf16=True)
    assert "derives weights from weights" in complaints(full, "AdamWScheduleFree", mixed_precision="bf16")


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"gradient_accumulation_steps": 2}, "none can be added up"),
        ({"max_grad_norm": 1.0}, "give --max_grad_norm 0"),
        ({"mixed_precision": "fp16"}, "the scaler of fp16 must see all gradients"),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused_with_the_fused_pass(training: dict[str, Any], said: str) -> None:
    fused = MemoryOptions(fused_backward_pass=True)
    assert said in complaints(fused, **{"max_grad_norm": 0.0, **training})
    assert complaints(MemoryOptions(), **training) == "" and complaints(fused, max_grad_norm=0.0) == ""


def test_the_fused_pass_wants_an_optimizer_that_can() -> None:
    fused = MemoryOptions(fused_backward_pass=True)
    for name in KNOWN:
        shares = name.startswith("DAdapt") or "ScheduleFree" in name or name == "Prodigy"
        assert ("step each weight alone" in complaints(fused, name, max_grad_norm=0.0)) == shares, name
    assert complaints(fused, "NoSuchOne", max_grad_norm=0.0) == ""  # told once, by the check of the optimizer
    problems = Problems()
    check_optimizer(options("NoSuchOne"), {}, problems)
    assert len(problems) == 1
