"""Losses against closed forms in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from library.diffusion.loss import errors_of, weighted_mean

THRESHOLDS = torch.tensor([0.1, 0.5, 2.0])


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    numbers = (
        np.random.default_rng(3).standard_normal((2, 3, 4, 5, 6)) * np.array([3.0, 1e-3])[:, None, None, None, None]
    )
    first, other = torch.from_numpy(numbers).float()
    return first, other


def expected(prediction: torch.Tensor, target: torch.Tensor, loss_type: str) -> np.ndarray:
    e = prediction.double().numpy() - target.double().numpy()
    c = THRESHOLDS.double().numpy()[:, None, None, None]
    forms = {
        "l2": e**2,
        "l1": np.abs(e),
        "huber": 2 * c * (np.sqrt(e**2 + c**2) - c),
        "smooth_l1": 2 * (np.sqrt(e**2 + c**2) - c),
    }
    return forms[loss_type]


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_errors_equal_the_closed_form(loss_type: str) -> None:
    prediction, target = pair()
    thresholds = THRESHOLDS if loss_type in ("huber", "smooth_l1") else None
    found = errors_of(prediction, target, loss_type, thresholds).numpy()
    np.testing.assert_allclose(found, expected(prediction, target, loss_type), rtol=1e-5, atol=1e-12)


def test_small_errors_count_squared_and_large_ones_as_they_are() -> None:
    zero, c = torch.zeros(1, 1, 1, 1), torch.tensor([0.1])
    small, large = torch.full((1, 1, 1, 1), 1e-4), torch.full((1, 1, 1, 1), 1e3)
    assert errors_of(small, zero, "huber", c).item() == pytest.approx(1e-8, rel=1e-3)
    assert errors_of(large, zero, "huber", c).item() == pytest.approx(2 * 0.1 * 1e3, rel=1e-3)


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_gradients_are_finite_where_nothing_is_off(loss_type: str) -> None:
    prediction = torch.zeros(3, 1, 2, 2, requires_grad=True)
    thresholds = None if loss_type in ("l2", "l1") else THRESHOLDS
    errors_of(prediction, torch.zeros(3, 1, 2, 2), loss_type, thresholds).sum().backward()
    assert prediction.grad is not None and (prediction.grad == 0).all()


def test_losses_with_a_threshold_need_one() -> None:
    with pytest.raises(ValueError, match="huber needs thresholds"):
        errors_of(*pair(), "huber")


def test_half_precision_is_measured_in_float32() -> None:
    prediction, target = pair()
    assert errors_of(prediction.half(), target.half(), "l2").dtype == torch.float32


def test_a_mask_of_ones_changes_no_bit_and_the_mean_is_over_all_cells() -> None:
    errors = torch.rand(2, 4, 8, 8)
    weights = torch.tensor([0.3, 1.0])
    assert torch.equal(weighted_mean(errors, weights, torch.ones(2, 1, 8, 8)), weighted_mean(errors, weights))
    half = torch.ones(2, 1, 8, 8)
    half[..., 4:] = 0
    assert weighted_mean(torch.ones(2, 4, 8, 8), torch.ones(2), half) == 0.5


def test_weight_zero_silences_a_sample() -> None:
    assert weighted_mean(torch.ones(2, 4, 2, 2), torch.tensor([0.0, 1.0])) == 0.5
