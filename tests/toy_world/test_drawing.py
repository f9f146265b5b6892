"""Many pictures at once: the same that are made one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.toy_world.drawing import WAY, Way, draw
from library.core.sizes import Size
from library.diffusion.schedule import scaled_linear_alphas_cumprod
from library.options.text import TextOptions
from library.preview.generate import PromptReader, generate
from library.preview.prompts import SamplePrompt
from library.preview.samplers import NoiseSchedule
from tests.learning.learning import base_model

PROMPTS = ("a large red heart on the left, sky background", "blue star, night, right, small", "")
SEEDS = (1, 2, 2**40)
SHORT = replace(WAY, steps=3)


def one_by_one(way: Way) -> NDArray[np.uint8]:
    model = base_model()
    reader = PromptReader.of(model.family, TextOptions())
    schedule = NoiseSchedule(tuple(scaled_linear_alphas_cumprod().tolist()), model.prediction_type)
    size = Size(way.width, way.height)
    asked = [
        SamplePrompt(prompt, way.negative, size, seed, way.scale, way.steps, way.sampler)
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True)
    ]
    return np.stack([generate(model, reader, schedule, request) for request in asked])


def farthest(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    assert one.shape == other.shape and one.dtype == other.dtype == np.uint8
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize(
    "way",
    [
        SHORT,
        replace(SHORT, width=96, scale=2.5, negative="a red circle, meadow background"),
        replace(SHORT, height=128, sampler="euler_a"),
    ],
    ids=["default", "wide with a negative prompt", "tall by a sampler that adds noise"],
)
def test_each_is_the_picture_that_is_made_alone(way: Way) -> None:
    assert farthest(draw(base_model(), PROMPTS, SEEDS, way), one_by_one(way)) <= 2


def test_the_number_at_once_changes_nothing() -> None:
    together = draw(base_model(), PROMPTS, SEEDS, SHORT)
    assert farthest(draw(base_model(), PROMPTS, SEEDS, replace(SHORT, at_once=2)), together) <= 2


def test_prompt_seed_guidance_and_negative_prompt_each_matter() -> None:
    prompt, seed = PROMPTS[0], SEEDS[0]
    first = draw(base_model(), [prompt], [seed], SHORT)
    others = [
        draw(base_model(), [PROMPTS[1]], [seed], SHORT),
        draw(base_model(), [prompt], [SEEDS[1]], SHORT),
        draw(base_model(), [prompt], [seed], replace(SHORT, scale=6.0)),
        draw(base_model(), [prompt], [seed], replace(SHORT, negative="sky")),
        draw(base_model(), [prompt], [seed], replace(SHORT, steps=5)),
    ]
    assert all(farthest(first, other) > 10 for other in others)
    assert farthest(first, draw(base_model(), [prompt], [seed], SHORT)) == 0


def test_clip_skip_of_a_reader_of_ones_own_matters() -> None:
    reader = PromptReader.of("sd1", TextOptions(clip_skip=2))
    plain = draw(base_model(), PROMPTS[:1], SEEDS[:1], SHORT)
    assert farthest(plain, draw(base_model(), PROMPTS[:1], SEEDS[:1], SHORT, reader)) > 0


def test_as_many_seeds_as_prompts() -> None:
    with pytest.raises(ValueError, match="3 prompts and 2 seeds"):
        draw(base_model(), PROMPTS, SEEDS[:2], SHORT)
