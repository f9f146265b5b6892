"""Samplers: each is the Diffusers scheduler of its name, with the settings of the published models."""

from __future__ import annotations

import logging
import random
import warnings
from fractions import Fraction
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from library.core.errors import UserError
from library.core.sizes import Size
from library.diffusion.schedule import training_schedule
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.options.samples import SAMPLERS
from library.options.text import TextOptions
from library.preview.generate import PromptReader, generate
from library.preview.prompts import SamplePrompt
from library.preview.sampler_names import sampler_named, shown_name
from library.preview.samplers import ExactLMSScheduler, NoiseSchedule, make_sampler, set_steps
from library.text.tokenizer import load_tokenizer

REQUEST = SamplePrompt("a cat by a window", "blurry", Size(64, 48), seed=5, scale=6.0, steps=5)
HALF_A_SHADE = 0.5 / 255 + 1e-3  # rounding to bytes, and the last bits of other orders of sums
SHIFTED = {"set_alpha_to_one": False, "steps_offset": 1}
# what docs/samples.md promises: the class and, beside the noise schedule, its settings
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, **SHIFTED}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, **SHIFTED}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmsolver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "steps_offset": 1}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
}
PLAIN = {"k_euler": "euler", "k_euler_a": "euler_a", "k_dpm_2": "dpm_2", "k_dpm_2_a": "dpm_2_a"}


def schedule_of(kind: str = "epsilon", zero_snr: bool = False) -> NoiseSchedule:
    return NoiseSchedule(tuple(training_schedule(zero_snr).tolist()), kind)


@cache
def tokenizer_of(family: str) -> Any:
    return load_tokenizer(family)


@cache
def reader_of(family: str) -> PromptReader:
    return PromptReader.of(family, TextOptions())


@cache
def model_of(kind: str) -> StableDiffusion:
    return make_tiny_model(kind, seed=3)


def by_diffusers(models: StableDiffusion, scheduler: Any, request: SamplePrompt) -> np.ndarray:
    """The picture of the pipeline at the request's seed: (H, W, 3), 0 to 1."""
    pipeline: Any = StableDiffusionPipeline(
        models.vae,
        models.text_encoder,
        tokenizer_of(models.family),
        models.unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.size.height,
        width=request.size.width,
        num_inference_steps=request.steps,
        guidance_scale=request.scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
    )
    return made.images[0]


def generated(sampler: str, models: StableDiffusion, schedule: NoiseSchedule, steps: int = 5) -> np.ndarray:
    request = SamplePrompt(**{**vars(REQUEST), "sampler": sampler, "steps": steps})
    return generate(models, reader_of(models.family), schedule, request)


def peer(name: str, **more: Any) -> Any:
    kind, settings = PEERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, kind)(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **settings, **more
        )


def test_every_name_has_a_class_and_a_name_to_show() -> None:
    for name in SAMPLERS:
        make_sampler(name, schedule_of())
        shown = sampler_named(f" {shown_name(name.upper()).upper()} ")
        assert shown in (name, name.removeprefix("k_")) and sampler_named(name.upper()) == name
    assert set(SAMPLERS) == {*PEERS, *PLAIN, "lms", "k_lms"}
    for name in [*PLAIN, "k_lms"]:
        short = name.removeprefix("k_")
        assert type(make_sampler(name, schedule_of())) is type(make_sampler(short, schedule_of()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "sd1") for name in PEERS if name != "ddim"),  # tests/preview/test_generate.py has it
        *(pytest.param(name, "sd2_v", marks=pytest.mark.slow) for name in ("heun", "unipc", "pndm", "dpm_2")),
    ],
)
def test_the_picture_is_that_of_diffusers(name: str, kind: str) -> None:
    """Noise of samplers that add some included, at the seed alone; and no global random state is used."""
    models = model_of(kind)
    random_states = (random.getstate(), torch.random.get_rng_state())
    picture = generated(name, models, schedule_of(models.prediction_type))
    assert random.getstate() == random_states[0] and torch.equal(torch.random.get_rng_state(), random_states[1])
    expected = by_diffusers(models, peer(name, prediction_type=models.prediction_type), REQUEST)
    assert np.abs(picture / 255 - expected).max() < HALF_A_SHADE
    assert picture.std() > 3


@pytest.mark.parametrize("steps", [1, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (2, 3, 500))])
def test_any_number_of_steps_is_possible(steps: int, caplog: pytest.LogCaptureFixture) -> None:
    """What the prompt file allows, every sampler can do, without a word; the U-Net is left out, for it takes long."""
    draws = torch.Generator().manual_seed(1)
    with caplog.at_level(logging.WARNING):
        for name in SAMPLERS:
            sampler = make_sampler(name, schedule_of())
            sampler.set_timesteps(steps)
            latents = torch.randn(1, 4, 2, 2, generator=draws) * sampler.init_noise_sigma
            added = {"generator": draws} if "a" in name.split("_") or name == "ddpm" else {}
            for timestep in sampler.timesteps:
                guess = 0.5 * sampler.scale_model_input(latents, timestep)
                latents = sampler.step(guess, timestep, latents, return_dict=False, **added)[0]
            assert bool(latents.isfinite().all()), name
    assert not caplog.records


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "name",
    ["ddim", "euler", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ddpm", "euler_a", "dpmsolver++", "unipc"))],
)
def test_a_schedule_that_ends_in_pure_noise_is_sampled_from_there(name: str) -> None:
    """The peers can rescale betas themselves; theirs begin at the last time when they are told to."""
    models = model_of("sd2_v")
    picture = generated(name, models, schedule_of("v_prediction", zero_snr=True))
    there = peer(name, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert there.alphas_cumprod[-1] < 1e-6
    assert np.abs(picture / 255 - by_diffusers(models, there, REQUEST)).max() < HALF_A_SHADE
    assert not np.array_equal(picture, generated(name, models, schedule_of("v_prediction")))


@pytest.mark.parametrize("name", SAMPLERS)
def test_pure_noise_is_no_harm_to_any_sampler(name: str) -> None:
    assert_right_predictions_lead_to_the_picture(name, 12)


# Diffusers' own times of these numbers of steps end at -1
ROUNDED_DOWN = [steps for steps in range(1, 501) if len(np.arange(1000, 0, -1000 / steps)) > steps]


@pytest.mark.parametrize("name", PEERS)
def test_times_that_diffusers_rounds_wrongly_are_right(name: str) -> None:
    assert ROUNDED_DOWN[0] == 61 and len(ROUNDED_DOWN) == 29
    assert_right_predictions_lead_to_the_picture(name, 61)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_all_times_that_diffusers_rounds_wrongly_are_right(name: str) -> None:
    for steps in ROUNDED_DOWN:
        assert_right_predictions_lead_to_the_picture(name, steps)


def assert_right_predictions_lead_to_the_picture(name: str, steps: int) -> None:
    """A sampler begins at the last time, takes as many as it is told, and a right prediction leads to the picture."""
    sampler = make_sampler(name, schedule_of("v_prediction", zero_snr=True))
    set_steps(sampler, steps)
    whole = sorted({int(time) for time in sampler.timesteps.tolist() if time == int(time)}, reverse=True)
    assert whole[0] == 999 and sampler.num_inference_steps == steps
    if "dpm_2" in name:  # it looks at times between as well
        assert len(sampler.timesteps) == 2 * steps - 1 and min(sampler.timesteps) >= 0
    elif name != "dpmsingle":  # it knows no other spacing than its own
        assert whole == [round(1000 - Fraction(1000 * number, steps)) - 1 for number in range(steps)]
    draws = torch.Generator().manual_seed(1)
    target = 0.5 * torch.randn(1, 4, 3, 3, generator=draws)
    latents = torch.randn(1, 4, 3, 3, generator=draws) * sampler.init_noise_sigma
    alphas = torch.tensor(schedule_of(zero_snr=True).alphas_cumprod)
    for timestep in sampler.timesteps:
        noisy = sampler.scale_model_input(latents, timestep)
        signal = float(np.interp(float(timestep), np.arange(1000), alphas.sqrt().numpy()))
        noise = (1 - signal**2) ** 0.5
        velocity = (signal * noisy - target) / noise if noise > 0 else torch.zeros_like(noisy)
        added = {"generator": draws} if "a" in name.split("_") or name == "ddpm" else {}
        latents = sampler.step(velocity, timestep, latents, return_dict=False, **added)[0]
    assert float((latents - target).abs().mean()) < 0.1


def test_the_multistep_weights_are_the_integrals_without_scipy() -> None:
    sampler = make_sampler("k_lms", schedule_of())
    assert isinstance(sampler, ExactLMSScheduler) and isinstance(sampler, LMSDiscreteScheduler)
    sampler.set_timesteps(10)
    sigmas = sampler.sigmas.double().tolist()
    for order in (1, 2, 3, 4):
        for current in range(order):
            others = [sigmas[5 - other] for other in range(order) if other != current]
            lagrange = np.polynomial.Polynomial.fromroots(others) if others else np.polynomial.Polynomial([1.0])
            integral = (lagrange / lagrange(sigmas[5 - current])).integ()
            expected = integral(sigmas[6]) - integral(sigmas[5])
            assert sampler.get_lms_coefficient(order, 5, current) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_the_multistep_method_ends_where_others_do() -> None:
    """With many steps all samplers that add no noise go to the same picture."""
    models = model_of("sd1")
    lms, euler = (generated(name, models, schedule_of(), steps=20).astype(int) for name in ("lms", "euler"))
    assert np.abs(lms - euler).mean() < 4


def test_an_unknown_sampler_is_told_with_the_nearest_name() -> None:
    assert type(make_sampler("DDIM", schedule_of())) is diffusers.DDIMScheduler
    with pytest.raises(UserError, match="there is no sampler 'ddin'") as error:
        make_sampler("ddin", schedule_of())
    assert "did you mean ddim" in str(error.value)
