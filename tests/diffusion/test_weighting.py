"""Weights and thresholds of all diffusion times: closed forms in float64, finite for every allowed combination."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from library.core.errors import Problems
from library.diffusion.combinations import check_objective
from library.diffusion.schedule import training_schedule
from library.diffusion.weighting import loss_thresholds, timestep_weights
from library.options.objective import HUBER_SCHEDULES, LOSSES, ObjectiveOptions
from tests.diffusion.closed_forms import TIMES, Numbers, plain_alphas, snr_of, stretched_alphas

EPSILON, VELOCITY = "epsilon", "v_prediction"
SNR = snr_of(plain_alphas())
STRETCHED = snr_of(stretched_alphas())
LIMITED = np.minimum(SNR, 5) / SNR
DEBIASED = 1 / (np.minimum(STRETCHED, 1000) + 1)


def weights(prediction_type: str, **options: Any) -> Numbers:
    asked = ObjectiveOptions(**options)
    found = timestep_weights(asked, training_schedule(asked.zero_terminal_snr), prediction_type == VELOCITY)
    assert found.dtype == torch.float32 and found.shape == (1000,)
    return found.double().numpy()


@pytest.mark.parametrize(
    ("prediction_type", "options", "expected"),
    [
        (EPSILON, {}, np.ones(1000)),
        (VELOCITY, {}, np.ones(1000)),
        (EPSILON, {"min_snr_gamma": 5.0}, np.minimum(SNR, 5) / SNR),
        (EPSILON, {"min_snr_gamma": 1.0}, np.minimum(SNR, 1) / SNR),
        (VELOCITY, {"min_snr_gamma": 5.0}, np.minimum(SNR, 5) / (SNR + 1)),
        (EPSILON, {"debiased_estimation_loss": True}, 1 / np.sqrt(np.minimum(SNR, 1000))),
        (VELOCITY, {"debiased_estimation_loss": True}, 1 / (np.minimum(SNR, 1000) + 1)),
        (VELOCITY, {"scale_v_pred_loss_like_noise_pred": True}, SNR / (SNR + 1)),
        (EPSILON, {"v_pred_like_loss": 0.5}, 1 + 0.5 * (SNR + 1) / SNR),
        (EPSILON, {"v_pred_like_loss": 2.0, "min_snr_gamma": 5.0}, LIMITED * (1 + 2 * (SNR + 1) / SNR)),
        (VELOCITY, {"zero_terminal_snr": True, "min_snr_gamma": 5.0}, np.minimum(STRETCHED, 5) / (STRETCHED + 1)),
        (VELOCITY, {"zero_terminal_snr": True, "debiased_estimation_loss": True}, DEBIASED),
        (VELOCITY, {"zero_terminal_snr": True, "scale_v_pred_loss_like_noise_pred": True}, STRETCHED / (STRETCHED + 1)),
    ],
    ids=str,
)  # fmt: skip
def test_weights_equal_the_closed_form_at_all_times(
    prediction_type: str, options: dict[str, Any], expected: Numbers
) -> None:
    np.testing.assert_allclose(weights(prediction_type, **options), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize(("c", "scale"), [(0.1, 1.0), (0.4, 2.5)])
def test_thresholds_equal_the_closed_form_at_all_times(zero_terminal_snr: bool, c: float, scale: float) -> None:
    alphas = stretched_alphas() if zero_terminal_snr else plain_alphas()
    with np.errstate(divide="ignore"):
        sigma = np.sqrt((1 - alphas) / alphas)
    forms = {
        "constant": np.full(1000, c),
        "exponential": np.exp(np.log(c) * TIMES / 1000),
        "snr": (1 - c) / (1 + sigma) ** 2 + c,
    }
    for schedule, expected in forms.items():
        asked = ObjectiveOptions(loss_type="huber", huber_schedule=schedule, huber_c=c, huber_scale=scale)
        found = loss_thresholds(asked, training_schedule(zero_terminal_snr))
        assert found is not None and found.dtype == torch.float32
        np.testing.assert_allclose(found.double().numpy(), expected * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss_type", ["l2", "l1"])
def test_other_losses_have_no_threshold(loss_type: str) -> None:
    assert loss_thresholds(ObjectiveOptions(loss_type=loss_type), training_schedule(False)) is None


CHOICES: dict[str, tuple[Any, ...]] = {
    "min_snr_gamma": (None, 1e-6, 5.0, 100_000.0),
    "scale_v_pred_loss_like_noise_pred": (False, True),
    "v_pred_like_loss": (None, 1e-6, 1000.0),
    "debiased_estimation_loss": (False, True),
    "zero_terminal_snr": (False, True),
}
LOSS_CHOICES: dict[str, tuple[Any, ...]] = {
    "loss_type": LOSSES,
    "huber_schedule": HUBER_SCHEDULES,
    "huber_c": (0.1, 1e-6, 1000.0),
    "huber_scale": (1.0, 1e-6, 1000.0),
    "zero_terminal_snr": (False, True),
}


def combinations_of(choices: dict[str, tuple[Any, ...]]) -> list[tuple[ObjectiveOptions, str]]:
    """Every combination of options that passes the checks."""
    allowed = []
    for values in product(*choices.values()):
        for prediction_type in (EPSILON, VELOCITY):
            options, problems = ObjectiveOptions(**dict(zip(choices, values, strict=True))), Problems()
            check_objective(options, prediction_type, problems)
            if not problems:
                allowed.append((options, prediction_type))
    return allowed


def test_weights_are_finite_at_every_time_for_every_allowed_combination() -> None:
    allowed = combinations_of(CHOICES)
    assert len(allowed) > 20
    for options, prediction_type in allowed:
        alphas = training_schedule(options.zero_terminal_snr)
        found = timestep_weights(options, alphas, prediction_type == VELOCITY)
        assert torch.isfinite(found).all() and (found >= 0).all(), options
        assert (found[:-1] > 0).all(), options  # only where nothing of the picture is left an error may count nothing


def test_thresholds_are_finite_at_every_time_for_every_allowed_combination() -> None:
    allowed = combinations_of(LOSS_CHOICES)
    assert {options.loss_type for options, _ in allowed} == set(LOSSES)
    for options, _ in allowed:
        found = loss_thresholds(options, training_schedule(options.zero_terminal_snr))
        assert found is None or (torch.isfinite(found).all() and (found > 0).all()), options


def test_what_would_not_be_finite_is_refused() -> None:
    """Each refused pair that has no defined weight at the end of a stretched schedule really has none."""
    alphas = training_schedule(True)
    for options in ({"v_pred_like_loss": 1.0}, {"debiased_estimation_loss": True}, {"min_snr_gamma": 5.0}):
        asked, problems = ObjectiveOptions(zero_terminal_snr=True, **options), Problems()
        assert not torch.isfinite(timestep_weights(asked, alphas, False)).all()
        check_objective(asked, EPSILON, problems)
        assert problems
