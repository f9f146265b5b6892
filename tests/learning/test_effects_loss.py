"""What the model is asked for, and which diffusion times count: v-prediction and Min-SNR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.toy_world.captions import sentence
from examples.toy_world.drawing import load_model
from examples.toy_world.judge import Judge
from examples.toy_world.novelties import world_examples
from examples.toy_world.train_vae import as_tensor
from library.diffusion.noise import Noise
from library.diffusion.objective import Captions, Objective
from library.models.stable_diffusion import VAE_SCALING_FACTOR
from library.options.objective import ObjectiveOptions
from tests.learning.effects import reader, write
from tests.learning.learning import (
    base_copy,
    picture_share,
    pictures_of,
    scenes_of,
    show,
    train,
)

EARLY, LATER = (20, 60, 100, 140), (300, 450, 600, 750)  # SNR 5 lies between them


def gradient_norms(times: tuple[int, ...], options: ObjectiveOptions) -> list[float]:
    """The size of the base U-Net's gradient where four pictures of the world are all at one diffusion time."""
    model = base_copy()
    model.unet.requires_grad_(True)
    examples = world_examples(4, 0)
    with torch.no_grad():
        latents = model.vae.encode(as_tensor(np.stack([example.picture for example in examples]))).latent_dist.mean
        states = reader().states(model.text_encoder, [example.caption for example in examples])
    objective = Objective(model.unet, None, no_encoder, None, "epsilon", VAE_SCALING_FACTOR, options)
    found = []
    for time in times:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(time))
        captions = Captions(torch.empty(0), states=states)
        loss = objective(latents, Noise(noise), torch.full((4,), time), captions, torch.ones(4), None, False)
        gradients = torch.autograd.grad(loss, list(model.unet.parameters()), allow_unused=True)
        squares = [gradient.pow(2).sum() for gradient in gradients if gradient is not None]
        found.append(float(torch.stack(squares).sum().sqrt()))
    return found


def no_encoder(*_: object) -> torch.Tensor:
    raise AssertionError("the captions come encoded")


def test_min_snr_takes_gradient_from_early_times_alone() -> None:
    plain = gradient_norms((*EARLY, *LATER), ObjectiveOptions())
    balanced = gradient_norms((*EARLY, *LATER), ObjectiveOptions(min_snr_gamma=5))
    assert balanced[len(EARLY) :] == pytest.approx(plain[len(EARLY) :], rel=1e-4)
    early_before = sum(plain[: len(EARLY)]) / sum(plain)
    early_after = sum(balanced[: len(EARLY)]) / sum(balanced)
    assert early_before >= 0.7  # 0.80
    assert early_after <= early_before - 0.1  # 0.60


def v_model(folder: Path, seed: int) -> Path:
    """The base, made to predict v by pictures of its own world."""
    pictures = write(world_examples(240, seed), folder / "pictures")
    said = ("--train_data_dir", str(pictures), "--v_parameterization", "--caption_dropout_rate", "0.1")
    length = ("--max_train_steps", "500", "--train_batch_size", "8", "--learning_rate", "5e-4")
    return train("fine_tune", folder / "trained", (*said, *length), seed)


def right_backgrounds(path: Path, predicts: str) -> float:
    """The share of prompts of the world whose background a model gets right when it is sampled as one of its kind."""
    scenes = scenes_of(24)
    pictures = pictures_of(load_model(path, predicts), [sentence(scene) for scene in scenes])
    return picture_share(pictures, Judge(), "background", [scene.background for scene in scenes])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_model_trained_to_predict_v_draws_as_one_of_v_and_not_as_one_of_noise(seed: int, tmp_path: Path) -> None:
    path = v_model(tmp_path, seed)
    as_v, as_noise = (right_backgrounds(path, predicts) for predicts in ("v_prediction", "epsilon"))
    show(f"v-prediction, seed {seed}", as_v=as_v, as_noise=as_noise)
    assert as_v >= 0.7 and as_noise <= 0.35
