"""Noise against closed forms in float64, its draws, and what each option adds."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from library.core.randomness import generator
from library.core.sizes import Size
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT
from library.data.views import normal
from library.diffusion import noise as noise_module
from library.diffusion.noise import Drawn, Noise, NoiseSource, with_adaptive_offset
from library.options.objective import ObjectiveOptions
from tests.diffusion.closed_forms import bilinear

SEED, EPOCH, USE, SIZE = 5, 3, "0/0/cat.png#1", Size(128, 64)
SHAPE = (4, 8, 16)


def draw(use: str = USE, size: Size = SIZE, epoch: int = EPOCH, **options: Any) -> Drawn:
    return NoiseSource(SEED, ObjectiveOptions(**options))(epoch, use, size)


def draws_of(purpose: str) -> np.random.Generator:
    return generator(SEED, EPOCH, USE, purpose)


def plain_noise() -> torch.Tensor:
    return torch.from_numpy(draws_of("noise").standard_normal(SHAPE, dtype=np.float32))


def test_plain_draws_are_those_that_runs_always_had() -> None:
    drawn = draw()
    assert torch.equal(drawn.noise, plain_noise()) and torch.equal(drawn.noise, normal(draws_of("noise"), SIZE))
    assert drawn.timestep == int(draws_of("timestep").integers(0, 1000))
    assert drawn[2:] == (None, None, None) and drawn.noise.dtype == torch.float32
    assert (noise_module.LATENT_CHANNELS, noise_module.PIXELS_PER_LATENT) == (LATENT_CHANNELS, PIXELS_PER_LATENT)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"noise_offset": 0.1}, {"noise"}),
        ({"noise_offset": 0.1, "noise_offset_random_strength": True}, {"noise"}),
        ({"noise_offset": 0.1, "adaptive_noise_scale": 0.05}, {"offset_noise", "offset_strength"}),
        ({"multires_noise_iterations": 6}, {"noise"}),
        ({"ip_noise_gamma": 0.1}, {"input_noise"}),
        ({"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True}, {"input_noise"}),
        ({"min_timestep": 10, "max_timestep": 11}, {"timestep"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_option_moves_its_own_draw_and_no_other(options: dict[str, Any], changed: set[str]) -> None:
    plain, other = draw()._asdict(), draw(**options)._asdict()

    def is_same(name: str) -> bool:
        if isinstance(plain[name], torch.Tensor) and isinstance(other[name], torch.Tensor):
            return torch.equal(plain[name], other[name])
        return plain[name] is other[name] or plain[name] == other[name]

    assert {name for name in plain if not is_same(name)} == changed


@pytest.mark.parametrize("is_random", [False, True])
def test_the_offset_is_one_number_a_channel(is_random: bool) -> None:
    found = draw(noise_offset=0.25, noise_offset_random_strength=is_random)
    strength = 0.25 * (draws_of("offset_strength").random() if is_random else 1)
    offset = draws_of("offset_noise").standard_normal((4, 1, 1), dtype=np.float32).astype(np.float64)
    expected = plain_noise().double().numpy() + strength * offset
    np.testing.assert_allclose(found.noise.numpy(), expected, rtol=0, atol=1e-6)
    assert found.offset_noise is None and found.offset_strength is None


def test_random_strengths_lie_between_nothing_and_the_given_one() -> None:
    options = {"noise_offset": 0.2, "noise_offset_random_strength": True, "adaptive_noise_scale": 0.1}
    found = [draw(use=f"a#{number}", **options).offset_strength for number in range(200)]
    strengths = torch.stack([strength for strength in found if strength is not None]).flatten()
    assert len(set(strengths.tolist())) == 200 and strengths.min() >= 0 and strengths.max() <= 0.2
    assert 0.08 < float(strengths.mean()) < 0.12
    always = draw(noise_offset=0.2, adaptive_noise_scale=1.0).offset_strength
    assert always is not None and float(always) == pytest.approx(0.2)


@pytest.mark.parametrize("scale", [0.1, 2.0, -0.05, -100.0])
def test_the_adaptive_offset_follows_the_latents_mean(scale: float) -> None:
    drawn = draw(noise_offset=0.1, adaptive_noise_scale=scale)
    assert torch.equal(drawn.noise, plain_noise()) and drawn.offset_noise is not None
    assert drawn.offset_strength is not None and drawn.offset_strength.shape == (1, 1, 1)
    latents = (
        torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
        + torch.tensor([2.0, -1, 0.5, 0])[None, :, None, None]
    )
    found = with_adaptive_offset(
        Noise(drawn.noise[None], None, drawn.offset_noise[None], drawn.offset_strength[None]), latents, scale
    )
    means = np.abs(latents.double().numpy().mean(axis=(2, 3), keepdims=True))
    strength = np.maximum(0, 0.1 + means * scale)
    expected = drawn.noise.double().numpy()[None] + strength * drawn.offset_noise.double().numpy()[None]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-6)
    if scale == -100:
        assert torch.equal(found[0], drawn.noise)  # the strength ends at 0 and never turns round


def test_noise_without_an_offset_stays_as_it_is() -> None:
    noise = plain_noise()[None]
    assert with_adaptive_offset(Noise(noise), torch.ones_like(noise), None) is noise


@pytest.mark.parametrize(("iterations", "discount"), [(1, 0.3), (2, 0.8), (6, 0.3), (10, 0.8), (50, 1.0)])
def test_multires_noise_equals_the_closed_form(iterations: int, discount: float) -> None:
    found = draw(multires_noise_iterations=iterations, multires_noise_discount=discount).noise
    draws, expected, layers = draws_of("multires_noise"), plain_noise().double().numpy(), 0
    for layer in range(iterations):
        ratio = (2 + 2 * draws.random()) ** layer
        height, width = max(1, int(8 / ratio)), max(1, int(16 / ratio))
        coarse = draws.standard_normal((4, height, width), dtype=np.float32).astype(np.float64)
        expected = expected + bilinear(coarse, 8, 16) * discount**layer
        layers += 1
        if height == 1 or width == 1:
            break
    expected /= expected.std(ddof=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)
    assert layers == iterations if iterations < 3 else layers < iterations


def test_multires_noise_has_a_deviation_of_one_for_each_picture() -> None:
    for number in range(5):
        noise = draw(use=str(number), multires_noise_iterations=8, multires_noise_discount=0.9).noise
        assert float(noise.std()) == pytest.approx(1, abs=1e-5)


def test_the_offset_is_added_to_multires_noise() -> None:
    pyramid = draw(multires_noise_iterations=4).noise
    both = draw(multires_noise_iterations=4, noise_offset=0.5).noise
    offset = torch.from_numpy(draws_of("offset_noise").standard_normal((4, 1, 1), dtype=np.float32))
    torch.testing.assert_close(both - pyramid, (0.5 * offset).expand(SHAPE), atol=1e-6, rtol=0)


@pytest.mark.parametrize("is_random", [False, True])
def test_input_noise_has_its_own_draw_and_strength(is_random: bool) -> None:
    drawn = draw(ip_noise_gamma=0.3, ip_noise_gamma_random_strength=is_random)
    gamma = 0.3 * (draws_of("input_noise_strength").random() if is_random else 1)
    expected = gamma * draws_of("input_noise").standard_normal(SHAPE, dtype=np.float32).astype(np.float64)
    assert drawn.input_noise is not None and torch.equal(drawn.noise, plain_noise())
    np.testing.assert_allclose(drawn.input_noise.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (999, 1000), (200, 210), (0, 1000)])
def test_times_lie_in_the_asked_for_range_and_reach_its_ends(low: int, high: int) -> None:
    times = {
        draw(use=str(number), size=Size(8, 8), min_timestep=low, max_timestep=high).timestep for number in range(300)
    }
    assert min(times) >= low and max(times) < high
    if high - low <= 10:
        assert times == set(range(low, high))
    else:
        assert min(times) < 20 and max(times) > 980


def test_every_use_and_epoch_has_its_own_draws_and_the_source_travels() -> None:
    source = NoiseSource(SEED, ObjectiveOptions(noise_offset=0.1, multires_noise_iterations=3, ip_noise_gamma=0.1))
    sent = pickle.loads(pickle.dumps(source))
    keys = [(epoch, use) for epoch in range(3) for use in ("a#0", "a#1", "b#0")]
    noises = [source(epoch, use, SIZE).noise.numpy().tobytes() for epoch, use in keys]
    assert len(set(noises)) == len(keys)
    assert [sent(epoch, use, SIZE).noise.numpy().tobytes() for epoch, use in reversed(keys)] == noises[::-1]
    assert NoiseSource(SEED + 1, source.options)(0, "a#0", SIZE).noise.numpy().tobytes() != noises[0]
