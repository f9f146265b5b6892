"""Pictures from words: what Diffusers' own pipeline makes of the same noise, and nothing else decides them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn

from library.core.errors import UserError
from library.core.sizes import Size
from library.diffusion.schedule import scaled_linear_alphas_cumprod
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.options.text import TextOptions
from library.preview.generate import PromptReader, as_pixels, generate, initial_noise, noise_generator
from library.preview.prompts import SamplePrompt
from library.preview.samplers import NoiseSchedule
from library.text.tokenizer import load_tokenizer

REQUEST = SamplePrompt("a cat by a window", "blurry", Size(64, 48), seed=5, steps=4, scale=6.0)
HALF_A_SHADE = 0.5 / 255 + 1e-4  # what rounding to bytes may change, and the last bits of other orders of sums


def schedule_of(prediction_type: str = "epsilon") -> NoiseSchedule:
    return NoiseSchedule(tuple(scaled_linear_alphas_cumprod().tolist()), prediction_type)


@pytest.fixture(scope="module")
def models() -> StableDiffusion:
    return make_tiny_model("sd1", seed=3)


@pytest.fixture(scope="module")
def reader() -> PromptReader:
    return PromptReader.of("sd1", TextOptions())


def by_diffusers(models: StableDiffusion, request: SamplePrompt, **words: object) -> np.ndarray:
    """The picture as Diffusers makes it with the settings of the published models: (H, W, 3), 0 to 1."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=models.prediction_type,
    )
    pipeline: Any = StableDiffusionPipeline(
        models.vae,
        models.text_encoder,
        load_tokenizer(models.family),
        models.unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    told = words or {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    made = pipeline(
        **told,
        height=request.size.height,
        width=request.size.width,
        num_inference_steps=request.steps,
        guidance_scale=request.scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
    )
    return made.images[0]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd2_v"])
def test_the_picture_is_that_of_diffusers(kind: str) -> None:
    models = make_tiny_model(kind, seed=3)
    reader = PromptReader.of(models.family, TextOptions())
    picture = generate(models, reader, schedule_of(models.prediction_type), REQUEST)
    assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8
    assert np.abs(picture / 255 - by_diffusers(models, REQUEST)).max() < HALF_A_SHADE
    assert picture.std() > 3


def test_without_guidance_there_is_no_negative_prompt(models: StableDiffusion, reader: PromptReader) -> None:
    plain = replace(REQUEST, scale=1.0)
    picture = generate(models, reader, schedule_of(), plain)
    assert np.abs(picture / 255 - by_diffusers(models, plain)).max() < HALF_A_SHADE
    assert np.array_equal(picture, generate(models, reader, schedule_of(), replace(plain, negative_prompt="snow")))


def test_clip_skip_and_long_weighted_prompts_reach_the_unet(models: StableDiffusion) -> None:
    """Diffusers is given the states, which it cannot make."""
    options = TextOptions(clip_skip=2, max_token_length=150, weighted_captions=True)
    long = replace(REQUEST, prompt="a (cat:1.4), " + "grass, " * 50 + "[rain]")
    reader = PromptReader.of("sd1", options)
    together = reader.states(models.text_encoder, [long.prompt, "blurry"])
    states = {"prompt_embeds": together[:1], "negative_prompt_embeds": together[1:]}
    assert states["prompt_embeds"].shape[1] == 152
    picture = generate(models, reader, schedule_of(), long)
    assert np.abs(picture / 255 - by_diffusers(models, long, **states)).max() < HALF_A_SHADE
    for other in (replace(options, clip_skip=None), replace(options, weighted_captions=False)):
        changed = generate(models, PromptReader.of("sd1", other), schedule_of(), long)
        assert not np.array_equal(picture, changed)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a dog"},
        {"negative_prompt": ""},
        {"seed": 6},
        {"steps": 5},
        {"scale": 3.0},
        {"size": Size(48, 64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_a_request_counts(
    models: StableDiffusion, reader: PromptReader, change: dict[str, object]
) -> None:
    first = generate(models, reader, schedule_of(), REQUEST)
    other = generate(models, reader, schedule_of(), replace(REQUEST, **change))  # type: ignore[arg-type]
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_nothing_but_the_request_counts(models: StableDiffusion, reader: PromptReader, device: torch.device) -> None:
    """Not the pictures before, and no global random state, which stays as it was."""
    for part in (models.unet, models.text_encoder, models.vae):
        nn.Module.to(part, device)
    first = generate(models, reader, schedule_of(), REQUEST)
    generate(models, reader, schedule_of(), replace(REQUEST, seed=9, prompt="a house"))
    torch.rand(3)
    states = (random.getstate(), torch.random.get_rng_state())
    assert np.array_equal(first, generate(models, reader, schedule_of(), REQUEST))
    assert random.getstate() == states[0] and torch.equal(torch.random.get_rng_state(), states[1])
    for part in (models.unet, models.text_encoder, models.vae):
        nn.Module.to(part, "cpu")


def test_the_noise_is_that_of_torch_and_named_by_the_seed() -> None:
    noise = initial_noise(noise_generator(1), Size(1024, 512))
    assert (noise.shape, noise.dtype) == ((1, 4, 64, 128), torch.float32)
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02
    assert torch.equal(noise, initial_noise(noise_generator(1), Size(1024, 512)))
    assert not torch.equal(noise, initial_noise(noise_generator(2), Size(1024, 512)))
    assert torch.equal(noise, torch.randn(1, 4, 64, 128, generator=torch.Generator().manual_seed(1)))


def test_half_precision_is_near_and_the_vae_stays_float(reader: PromptReader) -> None:
    models = make_tiny_model("sd1", seed=3)
    exact = generate(models, reader, schedule_of(), REQUEST)
    nn.Module.to(models.unet, torch.bfloat16)
    nn.Module.to(models.text_encoder, torch.bfloat16)
    near = generate(models, reader, schedule_of(), REQUEST)
    assert models.vae.dtype == torch.float32
    assert 0 < np.abs(exact.astype(int) - near).mean() < 6


def test_numbers_that_are_none_are_told(reader: PromptReader) -> None:
    models = make_tiny_model("sd1", seed=3)
    models.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite") as error:
        generate(models, reader, schedule_of(), REQUEST)
    assert "a cat by a window" in str(error.value)


def test_what_a_vae_decodes_becomes_pixels() -> None:
    row = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).repeat(3, 1, 1)
    shades = [[0] * 3, [0] * 3, [128] * 3, [255] * 3, [255] * 3]
    assert as_pixels(row).tolist() == [shades]
    assert as_pixels(torch.stack([row, -row])).shape == (2, 1, 5, 3)
