"""The validation loss: what it is, when it is measured, and that the training does not notice it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from library.core.errors import Problems
from library.core.sizes import Size
from library.data.dataset import make_loader
from library.data.held_out import hold_out
from library.data.validation import (
    STRATA,
    ValidationDataset,
    ValidationDraws,
    ValidationRequest,
    validation_requests,
)
from library.diffusion.objective import Objective
from library.methods.network import Network
from library.models.stable_diffusion import VAE_SCALING_FACTOR, StableDiffusion
from library.models.tiny import make_tiny_model
from library.options.data import DataOptions
from library.options.network import NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.text import TextOptions
from library.options.validation import ValidationOptions, check_validation, seed_of_validation
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer
from library.training.latents import LatentEncoder
from library.training.progress import Moment, Moments
from library.training.validation import Validation, plain_objective, validation_moments
from tests.data.data_helpers import LIMITS, index_of, make_dataset, make_subset, views_of

DRAWS = ValidationDraws(seed=3, min_timestep=0, max_timestep=1000)
CPU = torch.device("cpu")


class World:
    """A tiny model with a LoRA that has learned something and drops much, and photographs to validate with."""

    def __init__(self, photos: Path, kind: str = "sd1") -> None:
        self.models: StableDiffusion = make_tiny_model(kind, seed=0)
        options = NetworkOptions(network_dim=4, network_dropout=0.5)
        self.network = Network(options, 1e-3, seed=0).attach(self.models)
        self.network.train()
        draws = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
        dataset = make_dataset(make_subset(photos, validation_split=0.3), resolution=Size(64, 64), bucketing=LIMITS)
        self.index = hold_out(index_of(dataset), 0, Problems())
        self.views = views_of(self.index, 1)
        self.encode = LatentEncoder(self.models.vae, CPU)
        self.predicts = "v_prediction" if kind == "sd2_v" else "epsilon"
        self.tokenizer = CaptionTokenizer(self.models.family, TextOptions())

    def objective(self, options: ObjectiveOptions) -> Objective:
        text = CaptionEncoder(TextOptions())
        models = self.models
        return Objective(
            models.unet, models.text_encoder, text, self.network, self.predicts, VAE_SCALING_FACTOR, options
        )

    def dataset(self, draws: ValidationDraws = DRAWS) -> ValidationDataset:
        return ValidationDataset(self.views, draws, self.tokenizer)

    def requests(self, most: int | None = None) -> tuple[ValidationRequest, ...]:
        return validation_requests(self.index, self.views.placements, most)

    def validation(self, options: ObjectiveOptions | None = None, most: int | None = None) -> Validation:
        requests = self.requests(most)
        return Validation(
            accelerator=Accelerator(cpu=True),
            objective=self.objective(plain_objective(options or ObjectiveOptions())),
            requests=requests,
            batches=make_loader(self.dataset(), requests, 0, pin_memory=False),
            encode_latents=self.encode,
            moments=Moments(every_epochs=1, at_end=True),
        )


@pytest.fixture(scope="module")
def world(photos: Path) -> World:
    return World(photos)


def modes_of(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


@torch.no_grad()
def expected_loss(world: World) -> float:
    """The mean over pictures and times of the plain squared error, one picture at a time, with Diffusers' noise."""
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=world.predicts
    )
    world.network.eval()
    models, errors = world.models, []
    held_out = np.flatnonzero(world.index.is_validation).tolist()
    for record in held_out:
        batch = world.dataset()[ValidationRequest(0, (record,))]
        assert batch.pixels is not None and batch.latent_noise is not None
        distribution = models.vae.encode(batch.pixels).latent_dist
        latents = (distribution.mean + distribution.std * batch.latent_noise) * VAE_SCALING_FACTOR
        states = models.text_encoder(batch.input_ids[:, 0]).last_hidden_state
        for noise, time in zip(batch.noise, batch.timesteps, strict=True):
            noisy = scheduler.add_noise(latents, noise, time)
            target = scheduler.get_velocity(latents, noise, time) if world.predicts == "v_prediction" else noise
            errors.append(float((models.unet(noisy, time, states).sample - target).pow(2).mean()))
    world.network.train()
    assert len(errors) == STRATA * len(held_out) >= 12
    return sum(errors) / len(errors)


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
def test_it_is_the_mean_squared_error_over_pictures_and_times(photos: Path, kind: str) -> None:
    world = World(photos, kind)
    assert world.validation().measure() == pytest.approx(expected_loss(world), rel=1e-5)


def test_the_same_weights_give_the_same_number_and_other_weights_another(world: World) -> None:
    validation = world.validation(most=1)
    first = validation.measure()
    torch.rand(3)
    assert validation.measure() == first == world.validation(most=1).measure()
    parameter = next(p for name, p in world.network.named_parameters() if "unet" in name and "up" in name)
    with torch.no_grad():
        before = parameter.clone()
        parameter.add_(0.3)
        assert validation.measure() != first
        parameter.copy_(before)
    assert validation.measure() == first


def test_it_leaves_modes_random_numbers_and_gradients_alone(world: World) -> None:
    world.models.unet.train()
    world.models.text_encoder.eval()
    validation, state = world.validation(most=1), torch.get_rng_state()
    modes = modes_of(validation.objective)
    assert True in modes and False in modes
    validation.measure()
    assert modes_of(validation.objective) == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in validation.objective.parameters())
    world.models.unet.eval()


def test_weights_losses_and_noise_of_the_training_do_not_count_but_its_task_does(world: World) -> None:
    plain = world.validation(most=1).measure()
    changed = ObjectiveOptions(
        noise_offset=0.1,
        ip_noise_gamma=0.1,
        multires_noise_iterations=3,
        min_snr_gamma=5.0,
        loss_type="huber",
        masked_loss=True,
    )
    assert world.validation(changed, most=1).measure() == plain
    options = plain_objective(ObjectiveOptions(zero_terminal_snr=True, min_timestep=10, max_timestep=20))
    assert options == ObjectiveOptions(zero_terminal_snr=True, min_timestep=10, max_timestep=20)


def test_a_limit_measures_some_of_the_batches(world: World) -> None:
    some = world.validation(most=2)
    assert len(some.requests) == 2 < len(world.requests())
    assert some.measure() != world.validation().measure()


def due_at(moments: Moments, updates: int, updates_per_epoch: int) -> list[int]:
    """The updates after which it is time."""
    steps = range(1, updates + 1)
    asked = [Moment(n, -(-n // updates_per_epoch), n % updates_per_epoch == 0, n == updates) for n in steps]
    return [moment.step for moment in asked if moments.due(moment)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ValidationOptions(), [4, 8, 10]),
        (ValidationOptions(validate_every_n_epochs=2), [8, 10]),
        (ValidationOptions(validate_every_n_steps=4), [4, 8, 10]),
        (ValidationOptions(validate_every_n_steps=3), [3, 6, 9, 10]),
        (ValidationOptions(validate_every_n_steps=3, validate_every_n_epochs=1), [3, 4, 6, 8, 9, 10]),
        (ValidationOptions(validate_every_n_steps=100), [10]),
    ],
)
def test_when_it_is_due(options: ValidationOptions, expected: list[int]) -> None:
    assert due_at(validation_moments(options), 10, 4) == expected


def told(options: ValidationOptions, pictures: int | None = 0, data: DataOptions | None = None) -> list[str]:
    problems = Problems()
    check_validation(options, data or DataOptions(), pictures, problems)
    return [problem.where for problem in problems]


def test_options_without_anything_to_do_are_told() -> None:
    asked = ValidationOptions(validate_every_n_steps=5, validate_every_n_epochs=1, max_validation_steps=3)
    flags = ["--validate_every_n_steps", "--validate_every_n_epochs", "--max_validation_steps"]
    assert told(asked) == flags
    assert told(asked, pictures=4) == told(asked, pictures=None) == told(ValidationOptions()) == []
    assert told(ValidationOptions(), data=DataOptions(validation_seed=0)) == ["--validation_seed"]
    assert told(ValidationOptions(ema_decay=0.9)) == ["--ema_decay"]
    assert told(ValidationOptions(ema=True, ema_decay=0.9)) == []


def test_the_seed_is_that_of_the_run_unless_given() -> None:
    assert seed_of_validation(DataOptions(), 7) == 7
    assert seed_of_validation(DataOptions(validation_seed=0), 7) == 0
