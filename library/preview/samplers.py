"""Samplers: how noise becomes latents, step by step: Diffusers' schedulers, set up as Stable Diffusion needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from library.core.errors import UserError, suggest_name

DDIM = "ddim"


@dataclass(frozen=True)
class NoiseSchedule:
    """How a model was trained to see noise.

    Attributes:
        num_train_timesteps: how many diffusion times there are.
        beta_start, beta_end: noise added at the first and the last of them; square roots of the betas grow linearly.
        prediction_type: "epsilon" or "v_prediction".
    """

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    prediction_type: str


@dataclass(frozen=True)
class _Kind:
    """A scheduler's class, and what it is told beside the noise schedule."""

    build: type[Any]  # Any: the classes have no typed base in common
    settings: Mapping[str, Any]


# The last step ends at the noise of time 0 and the times are shifted by one, as in the published models' own settings.
_SAMPLERS: Mapping[str, _Kind] = MappingProxyType(
    {
        DDIM: _Kind(DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    }
)


def make_sampler(name: str, schedule: NoiseSchedule) -> Any:
    """A fresh Diffusers scheduler; it keeps state between steps, so each picture gets its own.

    Args:
        name: "ddim" (Song et al. 2020, without added noise).
        schedule: that of the model.

    Raises:
        UserError: there is no sampler of that name.
    """
    kind = _SAMPLERS.get(name.lower())
    if kind is None:
        fix = suggest_name(name.lower(), _SAMPLERS, f"there are {', '.join(_SAMPLERS)}")
        raise UserError.of(f"there is no sampler {name!r}", "sampler", fix)
    return kind.build(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=schedule.prediction_type,
        **kind.settings,
    )
