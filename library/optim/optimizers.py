"""Optimizers by the names of `--optimizer_type`: checked before a model is loaded, made, described, and asked for the
rates they really apply."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

import torch

from library.core.errors import Problems, UserError
from library.optim.arguments import missing_arguments, quietly, read_arguments, reason_of, signature_of
from library.optim.nesterov import add_nesterov, ignores_nesterov
from library.optim.registry import (
    FLAG,
    Choice,
    adapts_by_distance,
    check_switches,
    chosen_path,
    is_adafactor,
    is_schedule_free,
    path_of,
    resolve,
)
from library.options.optimizer import OptimizerOptions

Optimizer = torch.optim.Optimizer

ARGUMENTS_FLAG = "--optimizer_args"
FOUND_RATE = 1.0  # what an optimizer multiplies the rate with that it finds, where nobody says otherwise
# of a group, where a schedule sets the rates itself: the rate that was asked for, and the highest of the schedule
ASKED_RATE, PEAK_RATE = "asked_lr", "peak_lr"

_RATE_FLAGS = "--learning_rate, --unet_lr, --text_encoder_lr"
_GIVEN_BY_US = {"lr": "use --learning_rate", "layer_scale": "give the parts rates of their own"}
_SCALE = "layer_scale"  # DAdaptAdam's factor of a group, in place of unequal rates
_EACH_PARAMETER_ALONE = ("torch", "bitsandbytes", "lion_pytorch", "transformers")  # packages whose optimizers do so
_SET_ASIDE = "set_aside_weights"
_APPLIED = "applied_rates"  # of an optimizer that finds the rate: what its latest step multiplied with, by group
_RECTIFIES_SILENTLY = "RAdamScheduleFree"


def check_optimizer(
    options: OptimizerOptions,
    rates: Mapping[str, float | None],
    problems: Problems,
    dimensions: Collection[int] = (1, 2, 4),
) -> None:
    """Whether the optimizer is there, takes its arguments, and can train each part at its rate.

    Imports the one package that is asked for, and makes the optimizer over single small weights.

    Args:
        rates: of the parts that train, by name; None where nobody said one.
        problems: takes everything that was found.
        dimensions: the numbers of dimensions that the trained weights have; vectors, matrices and convolutions are
            what models and networks consist of.
    """
    known = len(problems)
    check_switches(options, problems)
    if len(problems) > known:
        return
    choice = problems.attempt(lambda: resolve(options))
    if choice is None:
        return
    arguments = _arguments(choice, options, problems)
    if len(problems) > known:
        return
    given = {name: FOUND_RATE if rate is None else rate for name, rate in rates.items()}
    if _has_own_rate(choice.kind, arguments):
        if any(rate != FOUND_RATE for rate in given.values()):
            what = "AdaFactor with relative_step=True, its default, finds the rate itself and uses none that is given"
            fix = f"remove {_RATE_FLAGS}, or give {ARGUMENTS_FLAG} relative_step=False to set the rate"
            problems.add(what, _RATE_FLAGS, fix)
        given = {}
    trial = problems.attempt(lambda: _trial(choice, arguments))
    if trial is not None:
        _check_dimensions(choice, arguments, dimensions, problems)
        reason = _why_not_unequal(trial, list(given.values()))
        if reason is not None:
            told = ", ".join(f"{name} {rate:g}" for name, rate in given.items())
            problems.add(f"{choice.name} {reason}, and they are: {told}", _RATE_FLAGS, "give all parts the same rate")


def finds_rate_itself(options: OptimizerOptions) -> bool:
    """Whether the optimizer finds the rate: then the default of `--learning_rate` is 1, a factor of what it finds."""
    path = chosen_path(options)
    return adapts_by_distance(path) or has_own_schedule(options)


def has_own_schedule(options: OptimizerOptions) -> bool:
    """Whether the optimizer sets its rate at every update (Adafactor with `relative_step`, which is its default)."""
    if not is_adafactor(chosen_path(options)):
        return False
    unread = Problems()  # told by `check_optimizer`
    choice = unread.attempt(lambda: resolve(options))
    return choice is not None and _has_own_rate(choice.kind, _arguments(choice, options, unread))


def idle_updates(options: OptimizerOptions) -> float:
    """The number of first updates that change no weight; infinite where all of them do so, 0 for most optimizers.

    RAdamScheduleFree waits until the variance of its step size is bounded (Liu et al. 2020: the length of the average
    of squared gradients must be above 4), unless it is told `silent_sgd_phase=False`.
    """
    if not chosen_path(options).endswith(f".{_RECTIFIES_SILENTLY}"):
        return 0
    unread = Problems()
    choice = unread.attempt(lambda: resolve(options))
    optimizer = None if choice is None else unread.attempt(lambda: _trial(choice, _arguments(choice, options, unread)))
    if optimizer is None or not optimizer.defaults["silent_sgd_phase"]:
        return 0
    betas = optimizer.defaults["betas"]
    if not isinstance(betas, tuple) or len(betas) != 2 or not 0 <= betas[1] < 1:
        return 0  # the class takes them, and stops at its first step
    beta = betas[1]
    longest = 2 / (1 - beta) - 1
    if longest <= 4:
        return math.inf
    return next(t for t in count(1) if longest - 2 * t * beta**t / (1 - beta**t) > 4) - 1


def make_optimizer(options: OptimizerOptions, param_groups: Sequence[dict[str, Any]]) -> Optimizer:
    """The optimizer over `param_groups`, each with `params`, `lr` and `name`; further keys go to the optimizer.

    Raises:
        UserError: for what `check_optimizer` finds, or where the groups' rates differ and the optimizer has one only.
    """
    problems = Problems()
    choice = resolve(options)
    arguments = _arguments(choice, options, problems)
    problems.raise_if_any()
    groups = [dict(group) for group in param_groups]
    if choice.kind is torch.optim.AdamW:
        # the quickest on CPU and CUDA alike, and the fp16 scaler need not wait for the device
        arguments["fused"] = True
    own_rate = _has_own_rate(choice.kind, arguments)
    rates = [group["lr"] for group in groups]
    if own_rate:
        for group in groups:
            group["lr"] = None
    elif len(set(rates)) > 1 and adapts_by_distance(path_of(choice.kind)):
        reason = _why_not_unequal(_trial(choice, arguments), rates)
        if reason is not None:
            told = ", ".join(f"{group['name']} {group['lr']:g}" for group in groups)
            what = f"{choice.name} {reason}, and they are: {told}"
            raise UserError.of(what, FLAG, "give all parts, and all blocks of a network, the same rate")
        for group in groups:
            group.update({"lr": max(rates), _SCALE: group["lr"] / max(rates)})
    optimizer = _construct(choice, arguments, groups)
    if arguments.get("nesterov") and ignores_nesterov(choice.kind):
        add_nesterov(optimizer)
    if adapts_by_distance(path_of(choice.kind)):
        optimizer.register_step_pre_hook(_remember_rates)
    return optimizer


def describe_optimizer(options: OptimizerOptions, optimizer: Optimizer) -> list[str]:
    """Lines for the start report: the class with all its arguments, and what was filled in."""
    inner, choice = unwrapped(optimizer), resolve(options)
    told = signature_of(type(inner), ARGUMENTS_FLAG, _GIVEN_BY_US).defaults
    arguments = _arguments(choice, options, Problems())  # some classes keep them under other names
    shown = {name: inner.defaults.get(name, arguments.get(name)) for name in (*told, *arguments)}
    values = ", ".join(f"{name}={value}" for name, value in shown.items() if name in {*inner.defaults, *arguments})
    lines = [f"optimizer: {path_of(type(inner))}({values})"]
    given = {word.partition("=")[0].strip() for word in options.optimizer_args}
    filled = [f"{name}={value}" for name, value in choice.fills.items() if name not in given]
    if filled:
        lines.append(f"optimizer: {choice.name} filled in {', '.join(filled)}")
    if has_own_schedule(options):
        lines.append("optimizer: it finds its rate at every update; no learning rate and no schedule apply")
    elif adapts_by_distance(path_of(type(inner))):
        lines.append("optimizer: it finds the rate d by itself; the learning rate is a factor of it (1 is usual)")
    idle = idle_updates(options)
    if idle:
        what = f"its first {idle:g} updates only measure gradients and change no weight"
        lines.append(f"optimizer: {what}, unless silent_sgd_phase=False is given")
    scales = {group["name"]: group[_SCALE] for group in inner.param_groups if group.get(_SCALE, 1.0) != 1.0}
    if scales:
        shares = ", ".join(f"{name} {scale:g}" for name, scale in scales.items())
        lines.append(f"optimizer: unequal rates of the parts became its {_SCALE}: {shares}")
    return lines


def optimizer_name(options: OptimizerOptions) -> str:
    """The class with the arguments it was given, as the metadata key `ss_optimizer` has it."""
    choice = resolve(options)
    arguments = _arguments(choice, options, Problems())
    words = ",".join(f"{name}={value}" for name, value in arguments.items())
    return path_of(choice.kind) + (f"({words})" if words else "")


def rates_in_force(optimizer: Optimizer) -> dict[str, float | torch.Tensor]:
    """The rate that the latest update really applied, by the name of the group.

    A plain optimizer's is the group's `lr`; D-Adaptation's and Prodigy's that times the `d` the update began with, and
    times the bias correction where they are told to make it; Adafactor's its own, as a mean over the weights where it
    scales with them; a schedule-free one's includes its warm-up. To be asked after the optimizer's step and before the
    schedule's, which sets the rate of the next update.
    """
    inner = unwrapped(optimizer)
    return {_name_of(number, group): _rate_of(inner, number, group) for number, group in enumerate(inner.param_groups)}


def rates_told(optimizer: Optimizer) -> dict[str, float]:
    """The rate of each group to be told of a whole run, by the name of the group.

    It is the rate that the schedule began with, not where it ended; the highest one where the schedule sets the rates
    itself. D-Adaptation's and Prodigy's is times the `d` that was found at last, Adafactor's the one that it found.
    """
    inner = unwrapped(optimizer)
    path, told = path_of(type(inner)), dict[str, float]()
    for number, group in enumerate(inner.param_groups):
        rate = group.get(PEAK_RATE, group.get("initial_lr", group["lr"]))
        if adapts_by_distance(path) and "d" in group:
            rate = group["d"] * rate * group.get(_SCALE, 1.0)
        elif is_adafactor(path) and group["relative_step"]:
            rate = _adafactor_rate(inner, group)
        told[_name_of(number, group)] = float(rate)
    return told


def train_mode(optimizer: Optimizer) -> None:
    """Puts a schedule-free optimizer's weights where training goes on; nothing for all others."""
    inner = unwrapped(optimizer)
    if not is_schedule_free(path_of(type(inner))):
        return
    inner.train()  # type: ignore[attr-defined]
    set_aside = vars(inner).pop(_SET_ASIDE, None)
    if set_aside is not None:  # going there and back rounds; what was looked at must not change what is learned
        with torch.no_grad():
            for parameter, weights in set_aside:
                parameter.copy_(weights)


def eval_mode(optimizer: Optimizer) -> None:
    """Puts a schedule-free optimizer's average into the weights, to be judged or saved; nothing for all others."""
    inner = unwrapped(optimizer)
    if not is_schedule_free(path_of(type(inner))) or not inner.param_groups[0]["train_mode"]:
        return
    weights = [parameter for group in inner.param_groups for parameter in group["params"]]
    vars(inner)[_SET_ASIDE] = [(parameter, parameter.detach().clone()) for parameter in weights]
    inner.eval()  # type: ignore[attr-defined]


def steps_apart(optimizer: Optimizer) -> bool:
    """Whether each parameter can be stepped alone with the same result: nothing is shared between them."""
    return kind_steps_apart(type(unwrapped(optimizer)))


def kind_steps_apart(kind: type[Optimizer]) -> bool:
    """`steps_apart` of a class; False for packages that nobody has looked into."""
    return kind.__module__.split(".")[0] in _EACH_PARAMETER_ALONE


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, out of the wrappers of Accelerate and of ours."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _arguments(choice: Choice, options: OptimizerOptions, problems: Problems) -> dict[str, Any]:
    """The arguments in force, those that the name fills in included; mistakes go to `problems`."""
    signature = signature_of(choice.kind, ARGUMENTS_FLAG, _GIVEN_BY_US)
    arguments = {**choice.fills, **read_arguments(options.optimizer_args, signature, problems)}
    missing = missing_arguments(signature, arguments)
    if missing:
        what = f"{path_of(choice.kind)} cannot do without {', '.join(missing)}"
        problems.add(what, ARGUMENTS_FLAG, f"give {' '.join(f'{name}=…' for name in missing)}")
    return arguments


def _construct(choice: Choice, arguments: Mapping[str, Any], groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer; what its class refuses is a user's mistake.

    Raises:
        UserError: with the class's own words.
    """
    rate = None if _has_own_rate(choice.kind, arguments) else groups[0]["lr"]
    for group in groups:
        group["lr"] = rate if rate is None else group["lr"]
    try:
        return quietly(lambda: choice.kind(groups, lr=rate, **arguments))  # type: ignore[call-arg]
    except Exception as error:  # classes of others refuse with whatever they like
        given = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "its own defaults"
        what = f"{path_of(choice.kind)} does not take {given}: {reason_of(error)}"
        raise UserError.of(what, f"{FLAG}, {ARGUMENTS_FLAG}", "mend what it complains about") from error


def _trial(choice: Choice, arguments: Mapping[str, Any], dimensions: int = 2) -> Optimizer:
    """The optimizer over one small weight.

    Raises:
        UserError: where its class refuses.
    """
    weight = torch.nn.Parameter(torch.zeros((2,) * dimensions))
    return _construct(choice, arguments, [{"params": [weight], "lr": FOUND_RATE, "name": "trial"}])


def _check_dimensions(
    choice: Choice, arguments: Mapping[str, Any], dimensions: Collection[int], problems: Problems
) -> None:
    """Some optimizers are made for matrices only (Muon)."""
    refused = []
    for number in sorted(set(dimensions) - {2}):
        if Problems().attempt(lambda number=number: _trial(choice, arguments, number)) is None:  # type: ignore[misc]
            refused.append(str(number))
    if refused:
        what = f"{choice.name} does not take weights with {' and '.join(refused)} dimensions, and there are such here"
        problems.add(what, FLAG, "choose another; AdamW takes all")


def _has_own_rate(kind: type[Optimizer], arguments: Mapping[str, Any]) -> bool:
    return is_adafactor(path_of(kind)) and bool(arguments.get("relative_step", True))


def _why_not_unequal(optimizer: Optimizer, rates: Sequence[float]) -> str | None:
    """Why an optimizer cannot train its groups at these rates, as the packages are today; None where it can.

    dadaptation 3.2 and prodigyopt 1.1.2: AdaGrad, Adan and AdanIP take the first group's rate for all and say nothing,
    the others stop at the first step. DAdaptAdam alone has a factor for each group.
    """
    distinct = len(set(rates)) > 1
    if not distinct or not adapts_by_distance(path_of(type(optimizer))) or _SCALE in optimizer.defaults:
        return None
    return "finds one rate for all parts and cannot use unequal ones"


def _name_of(number: int, group: Mapping[str, Any]) -> str:
    return str(group.get("name", f"group{number}"))


def _rate_of(optimizer: Optimizer, number: int, group: Mapping[str, Any]) -> float | torch.Tensor:
    path = path_of(type(optimizer))
    if adapts_by_distance(path) and "d" in group:
        applied: list[float | torch.Tensor] = vars(optimizer).get(_APPLIED, [])
        return applied[number] if number < len(applied) else _found_rate(optimizer, group)
    if is_schedule_free(path) and "scheduled_lr" in group:
        return float(group["scheduled_lr"])
    if is_adafactor(path):
        return _adafactor_rate(optimizer, group)
    return group["lr"]


def _remember_rates(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Before a step, which moves by the `d` it begins with and leaves the next one behind."""
    if all("d" in group for group in optimizer.param_groups):
        vars(optimizer)[_APPLIED] = [_found_rate(optimizer, group) for group in optimizer.param_groups]


def _found_rate(optimizer: Optimizer, group: Mapping[str, Any]) -> float | torch.Tensor:
    """The rate of the coming step. `d`, the number of the step and the betas are those of the first group for all.

    The correction is that of dadaptation 3.2 and prodigyopt 1.1.2: Adam's two corrections in one factor.
    """
    first, correction = optimizer.param_groups[0], 1.0
    if first.get("use_bias_correction") and {"betas", "k"} <= first.keys():
        beta1, beta2 = first["betas"]
        step = first["k"] + 1
        correction = math.sqrt(1 - beta2**step) / (1 - beta1**step)
    return first["d"] * group["lr"] * group.get(_SCALE, 1.0) * correction


def _adafactor_rate(optimizer: Optimizer, group: Mapping[str, Any]) -> float | torch.Tensor:
    """Shazeer and Stern 2018: the relative step size, times the size of the weights where it scales with them."""
    states = [optimizer.state[item] for item in group["params"] if optimizer.state.get(item)]
    step, rate = max((state["step"] for state in states), default=1), group["lr"]
    if group["relative_step"]:
        rate = min(1e-6 * step if group["warmup_init"] else 1e-2, step**-0.5)
    if not group["scale_parameter"] or not states:
        return rate
    sizes = torch.stack([torch.as_tensor(state["RMS"], dtype=torch.float32) for state in states])
    return rate * sizes.clamp(min=group["eps"][1]).mean()
