"""The shapes of the learning rate over a run, as factors of the highest rate. Pure arithmetic, without torch.

Updates count from 0: the first one trains at `curve(0)`, the last of `total` at `curve(total - 1)`; `curve(total)` is
where the run ends. The formulas are those of Transformers and Diffusers, so that guides written for them hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

RAMPS = ("linear", "cosine", "1-sqrt")
NO_WARMUP_TIMESCALE = 10_000  # of inverse_sqrt without warm-up


@dataclass(frozen=True)
class Bends:
    """What gives a curve its shape.

    Attributes:
        total: updates of the run.
        warmup: updates over which the rate rises from 0.
        decay: updates of the fall at the end (warmup_stable_decay).
        waves: cosine waves; a half falls once from the highest to the lowest rate.
        restarts: falls of cosine_with_restarts.
        power: exponent of polynomial.
        low: lowest factor.
        timescale: updates after which inverse_sqrt has fallen to 1/sqrt(2).
        warmup_type: shape of the rise of warmup_stable_decay, one of `RAMPS`.
        decay_type: shape of its fall.
        rules: of piecewise_constant: (first update that is beyond, factor before it), rising.
    """

    total: int
    warmup: int = 0
    decay: int = 0
    waves: float = 0.5
    restarts: int = 1
    power: float = 1.0
    low: float = 0.0
    timescale: int | None = None
    warmup_type: str = "linear"
    decay_type: str = "cosine"
    rules: tuple[tuple[float, float], ...] = ((math.inf, 1.0),)


Curve = Callable[..., float]  # of the update and its bends


def constant(update: int, bends: Bends) -> float:
    """The highest rate throughout."""
    return 1.0


def constant_with_warmup(update: int, bends: Bends) -> float:
    """A rise, then the highest rate."""
    return _rise(update, bends) if update < bends.warmup else 1.0


def linear(update: int, bends: Bends) -> float:
    """A straight fall to 0."""
    if update < bends.warmup:
        return _rise(update, bends)
    return max(0.0, (bends.total - update) / max(1, bends.total - bends.warmup))


def cosine(update: int, bends: Bends) -> float:
    """Waves of a cosine; by default the half wave that falls to `low` (Loshchilov and Hutter 2017)."""
    if update < bends.warmup:
        return _rise(update, bends)
    return max(0.0, _above(bends.low, _wave(_progress(update, bends), bends.waves)))


def cosine_with_restarts(update: int, bends: Bends) -> float:
    """Several falls to 0, each beginning at the highest rate again."""
    if update < bends.warmup:
        return _rise(update, bends)
    progress = _progress(update, bends)
    return _wave((bends.restarts * progress) % 1.0, 0.5) if progress < 1.0 else 0.0


def polynomial(update: int, bends: Bends) -> float:
    """A fall to `low` by the power of what is left of the run."""
    if update < bends.warmup:
        return _rise(update, bends)
    left = max(0.0, 1.0 - _progress(update, bends))
    return _above(bends.low, left**bends.power)


def inverse_sqrt(update: int, bends: Bends) -> float:
    """A fall with the square root of the updates done, which never ends (Vaswani et al. 2017)."""
    if update < bends.warmup:
        return _rise(update, bends)
    timescale = bends.timescale or bends.warmup or NO_WARMUP_TIMESCALE
    return 1.0 / math.sqrt((update + timescale - bends.warmup) / timescale)


def warmup_stable_decay(update: int, bends: Bends) -> float:
    """A rise, the highest rate, and a fall at the end (Hu et al. 2024)."""
    stable_until = bends.total - bends.decay
    if update < bends.warmup:
        risen = update / bends.warmup
        ramp = {"linear": risen, "cosine": 0.5 * (1.0 - math.cos(math.pi * risen)), "1-sqrt": 1 - math.sqrt(1 - risen)}
        return _above(bends.low, ramp[bends.warmup_type])
    if update < stable_until:
        return 1.0
    if update >= bends.total:
        return bends.low
    fallen = (update - stable_until) / bends.decay
    ramp = {"linear": 1.0 - fallen, "cosine": _wave(fallen, bends.waves), "1-sqrt": 1.0 - math.sqrt(fallen)}
    return max(0.0, _above(bends.low, ramp[bends.decay_type]))


def piecewise_constant(update: int, bends: Bends) -> float:
    """Steps at given updates."""
    return next(factor for end, factor in bends.rules if update < end)


@dataclass(frozen=True)
class NamedCurve:
    """A name of `--lr_scheduler`: its curve, the options it obeys, and the words of `--lr_scheduler_args` it takes."""

    curve: Curve
    options: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


_WARMUP, _LOW = "lr_warmup_steps", "lr_scheduler_min_lr_ratio"
CURVES: Mapping[str, NamedCurve] = {
    "constant": NamedCurve(constant),
    "constant_with_warmup": NamedCurve(constant_with_warmup, frozenset({_WARMUP})),
    "linear": NamedCurve(linear, frozenset({_WARMUP})),
    "cosine": NamedCurve(cosine, frozenset({_WARMUP}), frozenset({"num_cycles"})),
    "cosine_with_restarts": NamedCurve(cosine_with_restarts, frozenset({_WARMUP, "lr_scheduler_num_cycles"})),
    "polynomial": NamedCurve(polynomial, frozenset({_WARMUP, "lr_scheduler_power"}), frozenset({"lr_end"})),
    "inverse_sqrt": NamedCurve(inverse_sqrt, frozenset({_WARMUP, "lr_scheduler_timescale"})),
    "cosine_with_min_lr": NamedCurve(cosine, frozenset({_WARMUP, _LOW}), frozenset({"num_cycles"})),
    "warmup_stable_decay": NamedCurve(
        warmup_stable_decay,
        frozenset({_WARMUP, "lr_decay_steps", _LOW}),
        frozenset({"num_cycles", "warmup_type", "decay_type"}),
    ),
    "piecewise_constant": NamedCurve(piecewise_constant, words=frozenset({"step_rules"})),
}


def read_rules(text: str) -> tuple[tuple[float, float], ...]:
    """`1:10,0.1:20,0.01`: factor 1 before update 10, 0.1 before update 20, then 0.01.

    Raises:
        ValueError: where the text says something else.
    """
    *steps, last = text.split(",")
    pairs = [step.split(":") for step in steps]
    rules = [(float(int(end)), float(factor)) for factor, end in pairs]
    ends = [end for end, _ in rules]
    rules.append((math.inf, float(last)))
    if ends != sorted(set(ends)) or any(end <= 0 for end in ends):
        raise ValueError("the updates must rise")
    if any(not math.isfinite(factor) or factor < 0 for _, factor in rules):
        raise ValueError("the factors must be numbers from 0")
    return tuple(rules)


def _rise(update: int, bends: Bends) -> float:
    return update / max(1, bends.warmup)


def _progress(update: int, bends: Bends) -> float:
    return (update - bends.warmup) / max(1, bends.total - bends.warmup)


def _wave(progress: float, waves: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * waves * 2.0 * progress))


def _above(low: float, factor: float) -> float:
    return low + (1.0 - low) * factor
