"""Samplers: how noise becomes latents, step by step: Diffusers' schedulers, set up as Stable Diffusion needs them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from library.core.errors import UserError, suggest_name
from library.options.samples import DDIM

_HAIR = 1e-12  # of a stride
_LEAST_SIGNAL = 2.0**-24  # in the place of none, for samplers that divide by it; as in Diffusers' own


@dataclass(frozen=True)
class NoiseSchedule:
    """How a model was trained to see noise.

    Attributes:
        alphas_cumprod: how much of a picture's power is left at each diffusion time, falling; the last may be 0.
        prediction_type: "epsilon" or "v_prediction".
    """

    alphas_cumprod: tuple[float, ...]
    prediction_type: str

    @property
    def ends_in_pure_noise(self) -> bool:
        """Whether nothing of the picture is left at the last time (zero terminal SNR)."""
        return self.alphas_cumprod[-1] == 0


class ExactLMSScheduler(LMSDiscreteScheduler):
    """The linear multistep method without scipy, which Diffusers asks for its coefficients.

    They are integrals of polynomials, and Gauss and Legendre's rule with as many nodes gives those exactly.
    """

    def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
        """The weight of derivative `current_order` (0 is the newest of `order`) in the step from sigma `t` on."""
        nodes, weights = np.polynomial.legendre.leggauss(order)
        sigmas = self.sigmas.double().tolist()
        half = (sigmas[t + 1] - sigmas[t]) / 2
        at = sigmas[t] + half * (nodes + 1)
        values = np.ones_like(at)
        for other in range(order):
            if other != current_order:
                values *= (at - sigmas[t - other]) / (sigmas[t - current_order] - sigmas[t - other])
        return float(half * (weights @ values))


@dataclass(frozen=True)
class _Kind:
    """A scheduler's class, and what it is told beside the noise schedule.

    Attributes:
        knows_pure_noise: it can begin where nothing of a picture is left.
    """

    build: type[Any]  # Any: the classes have no typed base in common
    settings: Mapping[str, Any] = field(default_factory=dict)
    knows_pure_noise: bool = False


# The last step ends at the noise of time 0 and the times are shifted by one, as in the published models' own settings.
_SHIFTED = {"set_alpha_to_one": False, "steps_offset": 1}
_LMS = _Kind(ExactLMSScheduler)
_EULER = _Kind(EulerDiscreteScheduler)
_EULER_A = _Kind(EulerAncestralDiscreteScheduler)
_DPM_2 = _Kind(KDPM2DiscreteScheduler)
_DPM_2_A = _Kind(KDPM2AncestralDiscreteScheduler)
_SAMPLERS: Mapping[str, _Kind] = MappingProxyType(
    {
        DDIM: _Kind(DDIMScheduler, {"clip_sample": False, **_SHIFTED}, knows_pure_noise=True),
        "pndm": _Kind(PNDMScheduler, {"skip_prk_steps": True, **_SHIFTED}),
        "heun": _Kind(HeunDiscreteScheduler),
        # this algorithm cannot step to no noise at all
        "dpmsolver": _Kind(
            DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
        ),
        "dpmsolver++": _Kind(DPMSolverMultistepScheduler),
        # said, or Diffusers turns it on itself and logs about it
        "dpmsingle": _Kind(DPMSolverSinglestepScheduler, {"lower_order_final": True}),
        **dict.fromkeys(("k_lms", "lms"), _LMS),
        **dict.fromkeys(("k_euler", "euler"), _EULER),
        **dict.fromkeys(("k_euler_a", "euler_a"), _EULER_A),
        **dict.fromkeys(("k_dpm_2", "dpm_2"), _DPM_2),
        **dict.fromkeys(("k_dpm_2_a", "dpm_2_a"), _DPM_2_A),
        "ddpm": _Kind(DDPMScheduler, {"clip_sample": False, "steps_offset": 1}, knows_pure_noise=True),
        "unipc": _Kind(UniPCMultistepScheduler),
        "deis": _Kind(DEISMultistepScheduler),
    }
)


def make_sampler(name: str, schedule: NoiseSchedule) -> Any:
    """A fresh Diffusers scheduler; it keeps state between steps, so each picture gets its own.

    Where training has gone to pure noise, sampling begins there as well: its times are spaced from the end (Lin et al.
    2023, section 3.3).

    Args:
        name: one of `SAMPLERS`, in any case.
        schedule: that of the model.

    Raises:
        UserError: there is no sampler of that name.
    """
    kind = _kind_of(name)
    settings = dict(kind.settings)
    if schedule.ends_in_pure_noise and "timestep_spacing" in inspect.signature(kind.build).parameters:
        settings["timestep_spacing"] = "trailing"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that later versions will not have the older algorithm
        return kind.build(
            num_train_timesteps=len(schedule.alphas_cumprod),
            trained_betas=_betas(schedule, kind.knows_pure_noise),
            prediction_type=schedule.prediction_type,
            **settings,
        )


def set_steps(sampler: Any, steps: int, device: torch.device | None = None) -> None:
    """Tells a sampler how many steps a picture takes, and so the diffusion times of them.

    Spaced from the end, Diffusers adds strides of 1000 / `steps` until none is left. Where that quotient is rounded
    down (61, 103, 121, ... steps), a hair is left, and it takes one time too many: -1, which no model knows. Strides
    that are longer by far less than a time end where they should.

    Args:
        device: where the times lie; None for the CPU.
    """
    sampler.set_timesteps(steps, device=device)
    if float(sampler.timesteps.min()) < 0:
        sampler.set_timesteps(steps * (1 - _HAIR), device=device)
        sampler.num_inference_steps = steps  # a whole number, by which some count on


def _kind_of(name: str) -> _Kind:
    kind = _SAMPLERS.get(name.lower())
    if kind is None:
        fix = suggest_name(name.lower(), _SAMPLERS, f"there are {', '.join(_SAMPLERS)}")
        raise UserError.of(f"there is no sampler {name!r}", "sampler", fix)
    return kind


def _betas(schedule: NoiseSchedule, knows_pure_noise: bool) -> list[float]:
    """The noise that each time adds."""
    left = list(schedule.alphas_cumprod)
    if schedule.ends_in_pure_noise and not knows_pure_noise:
        left[-1] = _LEAST_SIGNAL
    return [1 - now / before for now, before in zip(left, [1.0, *left], strict=False)]
