"""Learning-rate schedules by the names of `--lr_scheduler`, or any class by its path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from library.core.errors import Problems, UserError, suggest_name
from library.optim.arguments import missing_arguments, quietly, read_arguments, reason_of, signature_of
from library.optim.curves import CURVES, RAMPS, Bends, read_rules
from library.optim.optimizers import ASKED_RATE, PEAK_RATE, has_own_schedule, idle_updates, unwrapped
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
_TRIAL_RATE = 1e-3

Rates = Sequence[tuple[str, float]]  # of the parts, by name; blocks of a network may share one


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


def check_scheduler(
    options: OptimizerOptions, rates: Mapping[str, float], total_updates: int | None, problems: Problems
) -> None:
    """Whether the schedule is known, obeys every option that is given for it, and fits into the run.

    Args:
        rates: of the parts that train, by name; may be empty where they are not known.
        total_updates: None where the pictures decide, which are not known yet; `make_scheduler` looks again.
        problems: takes everything that was found.
    """
    _check(options, list(rates.items()), total_updates, problems)


def make_scheduler(options: OptimizerOptions, optimizer: torch.optim.Optimizer, total_updates: int) -> LRScheduler:
    """The schedule over `total_updates`; to be advanced once per update, whatever the accumulation and the processes.

    Where the schedule sets the rates itself, the groups keep the one that was asked for as `asked_lr`, and the highest
    one of the run as `peak_lr`.

    Raises:
        UserError: where it does not fit into the run, or a class of others does not take its arguments.
    """
    groups, problems = optimizer.param_groups, Problems()
    rates = [(str(group.get("name", "a part")), group["lr"]) for group in groups if group["lr"] is not None]
    peaks = _check(options, rates, total_updates, problems)
    problems.raise_if_any()
    if options.lr_scheduler_type is not None:
        if peaks is not None:
            for group, peak in zip(groups, peaks, strict=True):
                group.update({ASKED_RATE: group["lr"], PEAK_RATE: peak})
        return _make_foreign(options, optimizer)
    name = scheduler_name(options)
    if name == OWN_NAME:
        return OwnRates(optimizer)
    lowest, bends = _shape(options, total_updates)
    curves: list[Callable[[int], float]] = []
    for group in groups:
        own = bends if name != "polynomial" else replace(bends, low=lowest / float(group["lr"]))
        curves.append(partial(CURVES[name].curve, bends=own))
    return LambdaLR(optimizer, curves)


def describe_scheduler(options: OptimizerOptions, optimizer: torch.optim.Optimizer) -> list[str]:
    """Lines for the start report: what a schedule of others takes into its own hands; nothing for ours."""
    groups = unwrapped(optimizer).param_groups
    if options.lr_scheduler_type is None or ASKED_RATE not in groups[0]:
        return []
    name = scheduler_name(options).rsplit(".", 1)[-1]
    peaks = ", ".join(dict.fromkeys(f"{group.get('name', 'a part')} {group[PEAK_RATE]:g}" for group in groups))
    lines = [f"schedule: {name} sets the rates itself, the learning rates given do not apply; its highest: {peaks}"]
    if "base_momentum" in groups[0]:
        what = f"between {groups[0]['base_momentum']:g} and {groups[0]['max_momentum']:g}"
        lines.append(f"schedule: {name} moves the momentum (the first beta), too, {what}, unless cycle_momentum=False")
    return lines


def _check(options: OptimizerOptions, rates: Rates, total: int | None, problems: Problems) -> list[float] | None:
    """`check_scheduler`; where a schedule of others sets the rates itself, the highest one of each part."""
    known = len(problems)
    _check_choice(options, problems)
    _check_idle_updates(options, total, problems)
    if len(problems) > known:
        return None
    name = scheduler_name(options)
    if options.lr_scheduler_type is not None:
        _refuse_unused(options, frozenset(), f"{CLASS_FLAG} {name}", problems)
        return problems.attempt(lambda: _try_foreign(options, rates or [("trial", _TRIAL_RATE)], total))
    curve = CURVES.get(name)
    if curve is None:  # the optimizer's own
        _refuse_unused(options, frozenset(), f"the schedule {name}", problems)
        if options.lr_scheduler_args:
            problems.add(f"the schedule {name} takes none", WORDS_FLAG, "remove it")
        return None
    _refuse_unused(options, curve.options, f"the schedule {name}", problems)
    _check_needs(options, name, problems)
    words = _words(options, problems)
    if total is not None:
        _check_fit(options, total, problems)
    if name == "polynomial":
        _check_end(words.get("lr_end", POLYNOMIAL_END), rates, problems)
    if total is not None and len(problems) == known:
        bends = _shape(options, total)[1]
        if not any(curve.curve(update, bends=bends) for update in range(total)):
            problems.attempt(lambda: _refuse_zeros(options, total))
    return None


def _check_idle_updates(options: OptimizerOptions, total: int | None, problems: Problems) -> None:
    idle = idle_updates(options)
    fix = "give --optimizer_args silent_sgd_phase=False, or choose another optimizer"
    if math.isinf(idle):
        problems.add(f"{chosen_name(options)} with these betas never changes a weight", "--optimizer_args", fix)
    elif idle and total is not None and total <= idle:
        what = f"{chosen_name(options)} changes no weight in its first {idle:g} updates, and the run has {total}"
        problems.add(what, "--optimizer_type", f"train longer, {fix}")


def _check_end(lowest: float, rates: Rates, problems: Problems) -> None:
    """polynomial falls to a rate, not to a share of one."""
    for part, rate in rates:
        if rate <= lowest:
            what = f"polynomial falls to {lowest:g}, and {part} begins at {rate:g}"
            problems.add(what, f"{NAME_FLAG} polynomial", f"give {WORDS_FLAG} lr_end=0, or a higher learning rate")


def _refuse_zeros(options: OptimizerOptions, total: int) -> None:
    """A run that would change nothing.

    Raises:
        UserError: always.
    """
    name = scheduler_name(options)
    where = {
        f"{CLASS_FLAG if options.lr_scheduler_type is not None else NAME_FLAG} {name}": True,
        "--lr_warmup_steps": options.lr_warmup_steps > 0,
        WORDS_FLAG: bool(options.lr_scheduler_args),
    }
    what = f"the rate is 0 at every update of the run, which has {total}, so nothing would change"
    fix = "train longer, or choose a schedule that does not begin with a rate of 0"
    if options.lr_warmup_steps > 0:
        fix = "train longer, or remove the warm-up, whose first update has the rate 0"
    elif name == "piecewise_constant":
        fix = f"give a factor above 0 before update {total}"
    raise UserError.of(what, ", ".join(flag for flag, is_so in where.items() if is_so), fix)


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


def _shape(options: OptimizerOptions, total: int) -> tuple[float, Bends]:
    """The rate where polynomial ends, and the shape of any curve of ours, of options that were checked."""
    words = _words(options, Problems())
    lowest = words.pop("lr_end", POLYNOMIAL_END)
    return lowest, replace(_bends(options, total), **words)


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


def _try_foreign(options: OptimizerOptions, rates: Rates, total: int | None) -> list[float] | None:
    """Advances a schedule of another package over the run, to see whether it lasts and what it does to the rates.

    Returns:
        The highest rate of each part where the schedule sets the rates itself (OneCycleLR, CyclicLR): where it gives
        the same ones whatever was asked for. None where it moves those that were asked for.

    Raises:
        UserError: where it does not work, leaves all rates at 0, or would ignore that the parts' rates differ.
    """
    asked = [rate for _, rate in rates]
    updates = total or _TRIAL_UPDATES
    found = list(islice(_trial_run(options, asked), updates + 1))[:updates]  # it is advanced behind the last one, too
    moves = any(map(any, found))
    if total is not None and not moves:
        _refuse_zeros(options, total)
    others = _trial_run(options, [2 * rate for rate in asked])
    if not moves or any(one != other for one, other in zip(found, others, strict=False)):
        return None
    if len(set(asked)) > 1:
        path = scheduler_name(options)
        told = ", ".join(dict.fromkeys(f"{part} {rate:g}" for part, rate in rates))
        what = f"{path} sets the rates itself, and would ignore those of the parts: {told}"
        raise UserError.of(what, CLASS_FLAG, "give all parts the same rate, or choose another schedule")
    return [max(column) for column in zip(*found, strict=True)]


def _trial_run(options: OptimizerOptions, rates: Sequence[float]) -> Iterator[list[float]]:
    """The rates of one update after the other, of small weights that start at `rates`.

    Raises:
        UserError: as `_make_foreign`, and where the schedule can be advanced no further.
    """
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.AdamW(groups)
    made = _make_foreign(options, optimizer)
    optimizer.step()  # nothing has a gradient; a schedule warns where it is advanced alone
    while True:
        yield [float(group["lr"]) for group in optimizer.param_groups]
        try:
            made.step()
        except Exception as error:  # classes of others refuse with whatever they like
            raise _refusal(options, error) from error


def _refusal(options: OptimizerOptions, error: Exception) -> UserError:
    given = ", ".join(options.lr_scheduler_args) or "its own defaults"
    what = f"{scheduler_name(options)} does not work with {given}: {reason_of(error)}"
    return UserError.of(what, f"{CLASS_FLAG}, {WORDS_FLAG}", "mend what it complains about")


def _make_foreign(options: OptimizerOptions, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """A schedule of another package over `optimizer`.

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
    except Exception as error:  # classes of others refuse with whatever they like
        raise _refusal(options, error) from error
    if not isinstance(made, LRScheduler):
        raise UserError.of(f"{path} made no schedule", CLASS_FLAG, "choose another class")
    return made
