"""The toy world's model from end to end, where a random one could not tell right from wrong: every sampler, sample
pictures of a training, and what Diffusers draws with the files that our scripts write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

import convert_model
from examples.toy_world.captions import sentence
from examples.toy_world.drawing import WAY, Way
from examples.toy_world.judge import Judge
from examples.toy_world.novelties import CRESCENT
from examples.toy_world.world import Scene
from library.options.samples import SAMPLERS
from tests.learning.learning import (
    Pictures,
    base_model,
    new_share,
    pictures_of,
    prompts_of,
    scenes_of,
    toy_model,
    train,
    write_novelty,
)

UPDATES = 60
LORA = (
    *("--network_dim", "8", "--network_alpha", "8", "--learning_rate", "2e-3", "--max_train_steps", str(UPDATES)),
    *("--network_train_unet_only", "--cache_text_encoder_outputs"),
)
SAMPLE = f"--w {WAY.width} --h {WAY.height} --l {WAY.scale:g} --s {WAY.steps}"
COUNT = 6
USUAL = ("euler_a",)


def right_share(pictures: Pictures, scenes: Sequence[Scene]) -> float:
    """The share of the pictures whose shape, colour and background are those asked for."""
    judge = Judge()
    verdicts = [judge(picture) for picture in pictures]
    told = [(verdict.shape, verdict.colour, verdict.background) for verdict in verdicts]
    asked = [(scene.shape, scene.colour, scene.background) for scene in scenes]
    return sum(one == other for one, other in zip(told, asked, strict=True)) / len(scenes)


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(name, marks=[] if name in USUAL else [pytest.mark.slow])
        for name in SAMPLERS
        if name.removeprefix("k_") == name
    ],
)
def test_every_sampler_draws_what_is_asked_for(sampler: str) -> None:
    scenes = scenes_of(COUNT)
    pictures = pictures_of(base_model(), [sentence(scene) for scene in scenes], Way(sampler=sampler))
    assert right_share(pictures, scenes) >= 0.8


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model in Diffusers, by way of a folder that tools/convert_model.py wrote."""
    folder = tmp_path_factory.mktemp("converted") / "toy_world"
    convert_model.main([str(toy_model()), str(folder)])
    found: Any = StableDiffusionPipeline.from_pretrained(
        str(folder), safety_checker=None, local_files_only=True, torch_dtype=torch.float32
    )
    found.scheduler = DDIMScheduler.from_config(found.scheduler.config)
    found.set_progress_bar_config(disable=True)
    return found


def by_diffusers(pipeline: Any, prompts: Sequence[str]) -> Pictures:
    made = pipeline(
        list(prompts),
        width=WAY.width,
        height=WAY.height,
        num_inference_steps=WAY.steps,
        guidance_scale=WAY.scale,
        generator=[torch.Generator().manual_seed(number) for number in range(len(prompts))],
        output_type="np",
    )
    pictures: Pictures = np.round(made.images * 255).astype(np.uint8)
    return pictures


def test_diffusers_draws_the_same_pictures_from_a_converted_folder(pipeline: Any) -> None:
    scenes = scenes_of(COUNT)
    prompts = [sentence(scene) for scene in scenes]
    theirs, ours = by_diffusers(pipeline, prompts), pictures_of(base_model(), prompts)
    assert right_share(theirs, scenes) >= 0.8
    assert np.abs(theirs.astype(int) - ours).max() <= 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of crescents that made sample pictures before and after."""
    folder = tmp_path_factory.mktemp("crescents")
    lines = [f"{prompt} {SAMPLE} --d {number}" for number, prompt in enumerate(prompts_of(CRESCENT, COUNT))]
    (folder / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    pictures = write_novelty(CRESCENT, folder / "pictures", seed=1)
    asked = ("--sample_prompts", str(folder / "prompts.txt"), "--sample_at_first")
    asked += ("--sample_every_n_steps", str(UPDATES))
    said = ("--train_data_dir", str(pictures), *LORA, *asked)
    return train("train_network", folder / "out", said, seed=1).parent


def samples(run: Path, step: int) -> Pictures:
    paths = sorted((run / "sample").glob(f"*_{step:08d}_*.png"))
    assert len(paths) == COUNT
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def test_sample_pictures_show_what_was_learned(run: Path) -> None:
    before, after = samples(run, 0), samples(run, UPDATES)
    assert new_share(before, CRESCENT) <= 0.2 and new_share(after, CRESCENT) >= 0.6
    plain = pictures_of(base_model(), prompts_of(CRESCENT, COUNT))
    assert np.abs(before.astype(int) - plain).max() <= 2, "before the first update samples are those of the base"


def test_a_lora_draws_in_diffusers_what_it_learned(run: Path, pipeline: Any) -> None:
    prompts = prompts_of(CRESCENT, COUNT)
    assert new_share(by_diffusers(pipeline, prompts), CRESCENT) <= 0.2
    pipeline.load_lora_weights(str(run), weight_name="last.safetensors")
    try:
        theirs = by_diffusers(pipeline, prompts)
    finally:
        pipeline.unload_lora_weights()
    assert new_share(theirs, CRESCENT) >= 0.6
    assert np.abs(theirs.astype(int) - samples(run, UPDATES)).max() <= 4
