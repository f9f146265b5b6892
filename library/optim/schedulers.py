"""Learning-rate schedules by the names of `--lr_scheduler`, or any class by its path."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from library.core.errors import Problems, UserError, suggest_name
from library.optim.arguments import missing_arguments, quietly, read_arguments, reason_of, signature_of
from library.optim.curves import CURVES, RAMPS, Bends, read_rules
from library.optim.optimizers import has_own_schedule
from library.optim.registry import chosen_name, chosen_path, import_class, is_schedule_free
from library.options.optimizer import OptimizerOptions

NAME_FLAG, CLASS_FLAG, WORDS_FLAG = "--lr_scheduler", "--lr_scheduler_type", "--lr_scheduler_args"
DEFAULT_NAME, OWN_NAME = "constant", "adafactor"
POLYNOMIAL_END = 1e-7  # the rate where polynomial ends, as in Transformers

_SHAPING = (
    "lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_min_lr_ratio",
    "lr_scheduler_timescale",
)  # fmt: skip
_TRIAL_UPDATES = 3  # where the length of the run is not known yet
_NEEDS_A_RATE_AT_ONCE = "DAdaptSGD"  # divides by the first update's rate


class OwnRates(LRScheduler):
    """The schedule of an optimizer that sets its rates itself: it leaves them alone."""

    def get_lr(self) -> list[Any]:
        """The rates as they are."""
        return [group["lr"] for group in self.optimizer.param_groups]


def scheduler_name(options: OptimizerOptions) -> str:
    """The schedule in force, by name, or by path where it is a class of others."""
    if options.lr_scheduler_type is not None:
        return _class_path(options.lr_scheduler_type)
    if options.lr_scheduler is not None:
        return options.lr_scheduler.lower()
    return OWN_NAME if has_own_schedule(options) else DEFAULT_NAME


def warmup_updates(options: OptimizerOptions, total_updates: int) -> int:
    """`--lr_warmup_steps` in updates."""
    return _updates(options.lr_warmup_steps, total_updates)


def check_scheduler(options: OptimizerOptions, total_updates: int | None, problems: Problems) -> None:
    """Whether the schedule is known, obeys every option that is given for it, and fits into the run.

    Args:
        total_updates: None where the pictures decide, which are not known yet; `make_scheduler` looks again.
        problems: takes everything that was found.
    """
    known = len(problems)
    _check_choice(options, problems)
    if len(problems) > known:
        return
    name = scheduler_name(options)
    if options.lr_scheduler_type is not None:
        _refuse_unused(options, frozenset(), f"{CLASS_FLAG} {name}", problems)
        problems.attempt(lambda: _make_foreign(options, _trial_optimizer(), total_updates or _TRIAL_UPDATES))
        return
    curve = CURVES.get(name)
    if curve is None:  # the optimizer's own
        _refuse_unused(options, frozenset(), f"the schedule {name}", problems)
        if options.lr_scheduler_args:
            problems.add(f"the schedule {name} takes none", WORDS_FLAG, "remove it")
        return
    _refuse_unused(options, curve.options, f"the schedule {name}", problems)
    _check_needs(options, name, problems)
    _words(options, problems)
    if total_updates is not None:
        _check_fit(options, total_updates, problems)


def make_scheduler(options: OptimizerOptions, optimizer: torch.optim.Optimizer, total_updates: int) -> LRScheduler:
    """The schedule over `total_updates`; to be advanced once per update, whatever the accumulation and the processes.

    Raises:
        UserError: where it does not fit into the run, or a class of others does not take its arguments.
    """
    problems = Problems()
    check_scheduler(options, total_updates, problems)
    problems.raise_if_any()
    if options.lr_scheduler_type is not None:
        return _make_foreign(options, optimizer)
    name = scheduler_name(options)
    if name == OWN_NAME:
        return OwnRates(optimizer)
    words = _words(options, problems)
    lowest_rate = words.pop("lr_end", POLYNOMIAL_END if name == "polynomial" else 0.0)
    bends = replace(_bends(options, total_updates), **words)
    curves: list[Callable[[int], float]] = []
    for group in optimizer.param_groups:
        own = bends if name != "polynomial" else replace(bends, low=_share(lowest_rate, group))
        curves.append(partial(CURVES[name].curve, bends=own))
    return LambdaLR(optimizer, curves)


def _share(lowest_rate: float, group: Mapping[str, Any]) -> float:
    rate = float(group["lr"])
    if rate <= lowest_rate:
        what = f"polynomial falls to {lowest_rate:g}, and {group.get('name', 'a part')} begins at {rate:g}"
        raise UserError.of(what, f"{NAME_FLAG} polynomial", f"give {WORDS_FLAG} lr_end=0, or a higher learning rate")
    return lowest_rate / rate


def _class_path(name: str) -> str:
    return name if "." in name else f"torch.optim.lr_scheduler.{name}"


def _updates(steps: float, total: int) -> int:
    return round(steps * total) if steps < 1 else int(steps)


def _bends(options: OptimizerOptions, total: int) -> Bends:
    return Bends(
        total=total,
        warmup=warmup_updates(options, total),
        decay=_updates(options.lr_decay_steps, total),
        restarts=options.lr_scheduler_num_cycles or 1,
        power=options.lr_scheduler_power or 1.0,
        low=options.lr_scheduler_min_lr_ratio or 0.0,
        timescale=options.lr_scheduler_timescale,
    )


def _check_choice(options: OptimizerOptions, problems: Problems) -> None:
    """One schedule, of a name that exists, that the optimizer can live with."""
    if options.lr_scheduler is not None and options.lr_scheduler_type is not None:
        problems.add("each names a schedule", f"{NAME_FLAG}, {CLASS_FLAG}", "keep one of them")
        return
    name, has_own = scheduler_name(options), has_own_schedule(options)
    given = f"{CLASS_FLAG} {name}" if options.lr_scheduler_type is not None else f"{NAME_FLAG} {name}"
    if options.lr_scheduler_type is None and name not in (*CURVES, OWN_NAME):
        fix = suggest_name(name, [*CURVES, OWN_NAME], f"known are {', '.join(CURVES)}; see docs/schedulers.md")
        problems.add(f"there is no schedule named {options.lr_scheduler}", NAME_FLAG, fix)
    elif has_own and name != OWN_NAME:
        what = "AdaFactor with relative_step=True, its default, is its own schedule"
        fix = f"remove {given.split()[0]}, or give --optimizer_args relative_step=False and a --learning_rate"
        problems.add(what, given, fix)
    elif name == OWN_NAME and not has_own:
        what = "this is the schedule that AdaFactor makes itself with relative_step=True"
        problems.add(what, given, "give --optimizer_type AdaFactor, or another schedule")
    elif is_schedule_free(chosen_path(options)) and name != DEFAULT_NAME:
        what = f"{chosen_name(options)} averages weights in place of a schedule"
        problems.add(what, given, "remove it; a warm-up is --optimizer_args warmup_steps=100")
    elif _starts_at_zero(options) and chosen_path(options).endswith(f".{_NEEDS_A_RATE_AT_ONCE}"):
        what = f"{_NEEDS_A_RATE_AT_ONCE} divides by the rate of the first update, and a warm-up begins at 0"
        problems.add(what, "--lr_warmup_steps", "remove it, or choose another optimizer")


def _starts_at_zero(options: OptimizerOptions) -> bool:
    return options.lr_warmup_steps > 0


def _refuse_unused(options: OptimizerOptions, used: frozenset[str], who: str, problems: Problems) -> None:
    """An option that changes nothing was meant for another schedule."""
    for name in _SHAPING:
        if name not in used and getattr(options, name):
            takers = [curve for curve, entry in CURVES.items() if name in entry.options]
            problems.add(f"{who} does not use it", f"--{name}", f"remove it, or choose {' or '.join(takers)}")


def _check_needs(options: OptimizerOptions, name: str, problems: Problems) -> None:
    for field in ("lr_warmup_steps", "lr_decay_steps"):
        steps = getattr(options, field)
        if steps > 1 and steps != int(steps):
            problems.add(f"{steps:g} is no number of updates", f"--{field}", "a whole number, or a share below 1")
    if name == "warmup_stable_decay" and not options.lr_decay_steps:
        problems.add(f"{name} must know how long the fall lasts", "--lr_decay_steps", "give it, such as 0.2")
    if name == "cosine_with_min_lr" and options.lr_scheduler_min_lr_ratio is None:
        problems.add(f"{name} must know the lowest rate", "--lr_scheduler_min_lr_ratio", "give it, such as 0.1")
    if name == "piecewise_constant" and not any(word.startswith("step_rules=") for word in options.lr_scheduler_args):
        problems.add(f"{name} must know the steps", WORDS_FLAG, "give it, such as step_rules=1:100,0.1:200,0.01")


def _check_fit(options: OptimizerOptions, total: int, problems: Problems) -> None:
    warmup, decay = warmup_updates(options, total), _updates(options.lr_decay_steps, total)
    if warmup + decay > total:
        fall = f" and the fall over {decay}" if decay else ""
        what = f"the warm-up over {warmup} updates{fall} does not fit into the run of {total}"
        problems.add(what, "--lr_warmup_steps, --lr_decay_steps", f"at most {total} together; a share is below 1")
    for field, updates in (("lr_warmup_steps", warmup), ("lr_decay_steps", decay)):
        if getattr(options, field) and not updates:
            what = f"{getattr(options, field):g} of {total} updates is less than one"
            problems.add(what, f"--{field}", "give a larger share, or a number of updates")


def _words(options: OptimizerOptions, problems: Problems) -> dict[str, Any]:
    """The words of `--lr_scheduler_args` for a curve of ours, as fields of `Bends` and `lr_end`."""
    name = scheduler_name(options)
    known, found = sorted(CURVES[name].words), dict[str, Any]()
    for word in options.lr_scheduler_args:
        key, sign, text = (part.strip() for part in word.partition("="))
        if key not in known or not sign:
            listed = f"known are {', '.join(known)}" if known else "remove it"
            problems.add(f"{word!r} is not an argument of {name}", WORDS_FLAG, suggest_name(key, known, listed))
            continue
        field, read, expected = _READERS[key]
        try:
            found[field] = read(text)
        except ValueError:
            problems.add(f"{text!r} is no value for {key}", WORDS_FLAG, expected)
    return found


def _positive(text: str) -> float:
    if not 0 <= float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def _ramp(text: str) -> str:
    if text not in RAMPS:
        raise ValueError(text)
    return text


# word to field, reader, and what is expected
_READERS: Mapping[str, tuple[str, Callable[[str], Any], str]] = {
    "lr_end": ("lr_end", _positive, "a rate from 0"),
    "num_cycles": ("waves", _positive, "a number of waves; 0.5 falls once"),
    "warmup_type": ("warmup_type", _ramp, f"one of {', '.join(RAMPS)}"),
    "decay_type": ("decay_type", _ramp, f"one of {', '.join(RAMPS)}"),
    "step_rules": ("rules", read_rules, "factor:update pairs and a last factor, such as 1:100,0.1:200,0.01"),
}


def _trial_optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "name": "trial"}], lr=1e-3)


def _make_foreign(options: OptimizerOptions, optimizer: torch.optim.Optimizer, trial_updates: int = 0) -> LRScheduler:
    """A schedule of another package over `optimizer`, advanced by `trial_updates` to see whether it lasts.

    Raises:
        UserError: where it is not there, needs more than the number of updates, or refuses its arguments.
    """
    path = scheduler_name(options)
    kind = import_class(path, LRScheduler, CLASS_FLAG)
    by_us = {"last_epoch": "remove it; it follows the run"}
    signature, problems = signature_of(kind, WORDS_FLAG, by_us), Problems()
    arguments = read_arguments(options.lr_scheduler_args, signature, problems)
    missing = missing_arguments(signature, arguments)
    if missing:
        words = " ".join(f"{name}=…" for name in missing)
        problems.add(f"{path} cannot do without {', '.join(missing)}", WORDS_FLAG, f"give {words}")
    needed = [p.name for p in list(inspect.signature(kind.step).parameters.values())[1:] if p.default is p.empty]
    if needed:
        what = f"{path} cannot be used: each of its steps asks for {', '.join(needed)}, which training does not have"
        problems.add(what, CLASS_FLAG, "choose a schedule that depends on the update alone")
    problems.raise_if_any()
    try:
        made = quietly(lambda: kind(optimizer, **arguments))
        for _ in range(trial_updates):
            optimizer.step()  # nothing has a gradient; a schedule warns where it is advanced alone
            made.step()
    except Exception as error:  # classes of others refuse with whatever they like
        given = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "its own defaults"
        what = f"{path} does not work with {given}: {reason_of(error)}"
        raise UserError.of(what, f"{CLASS_FLAG}, {WORDS_FLAG}", "mend what it complains about") from error
    if not isinstance(made, LRScheduler):
        raise UserError.of(f"{path} made no schedule", CLASS_FLAG, "choose another class")
    return made
