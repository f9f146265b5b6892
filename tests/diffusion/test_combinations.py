"""What is refused, with its reason, and that good combinations pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from library.core.errors import Problems
from library.diffusion.combinations import check_objective
from library.options.objective import ObjectiveOptions


def told(prediction_type: str | None = "epsilon", **options: Any) -> list[str]:
    problems = Problems()
    check_objective(ObjectiveOptions(**options), prediction_type, problems)
    return [f"{problem.where}: {problem.what}" for problem in problems]


@pytest.mark.parametrize(
    ("prediction_type", "options", "where", "why"),
    [
        ("epsilon", {"noise_offset_random_strength": True}, "--noise_offset_random_strength", "no offset"),
        (
            "epsilon",
            {"noise_offset": 0.0, "noise_offset_random_strength": True},
            "--noise_offset_random_strength",
            "no offset",
        ),
        ("epsilon", {"adaptive_noise_scale": 0.01}, "--adaptive_noise_scale", "there is none"),
        ("epsilon", {"multires_noise_discount": 0.5}, "--multires_noise_discount", "no coarser layers"),
        ("epsilon", {"ip_noise_gamma_random_strength": True}, "--ip_noise_gamma_random_strength", "no noise"),
        ("epsilon", {"min_timestep": 500, "max_timestep": 500}, "--min_timestep, --max_timestep", "no diffusion time"),
        ("epsilon", {"zero_terminal_snr": True}, "--zero_terminal_snr", "nothing but noise"),
        (
            "epsilon",
            {"scale_v_pred_loss_like_noise_pred": True},
            "--scale_v_pred_loss_like_noise_pred",
            "that of noise already",
        ),
        ("v_prediction", {"v_pred_like_loss": 0.1}, "--v_pred_like_loss", "that of v already"),
        (
            None,
            {"v_pred_like_loss": 0.1, "zero_terminal_snr": True},
            "--v_pred_like_loss, --zero_terminal_snr",
            "infinite",
        ),
        (
            None,
            {"debiased_estimation_loss": True, "zero_terminal_snr": True},
            "--zero_terminal_snr with --debiased_estimation_loss or --min_snr_gamma",
            "infinite",
        ),
        (
            "epsilon",
            {"min_snr_gamma": 5.0, "debiased_estimation_loss": True},
            "--min_snr_gamma, --debiased_estimation_loss",
            "stand alone",
        ),
        (
            "v_prediction",
            {"min_snr_gamma": 5.0, "scale_v_pred_loss_like_noise_pred": True},
            "--scale_v_pred_loss_like_noise_pred, --min_snr_gamma",
            "already",
        ),
        (
            "v_prediction",
            {"debiased_estimation_loss": True, "scale_v_pred_loss_like_noise_pred": True},
            "--scale_v_pred_loss_like_noise_pred, --debiased_estimation_loss",
            "stand alone",
        ),
        (
            None,
            {"v_pred_like_loss": 0.1, "scale_v_pred_loss_like_noise_pred": True},
            "--scale_v_pred_loss_like_noise_pred, --v_pred_like_loss",
            "the other for models that predict noise",
        ),
        (
            "v_prediction",
            {"zero_terminal_snr": True, "min_snr_gamma": 5.0, "min_timestep": 999},
            "--min_timestep with --zero_terminal_snr and --min_snr_gamma or --scale_v_pred_loss_like_noise_pred",
            "weight of 0",
        ),
        ("epsilon", {"huber_c": 0.2}, "--huber_c", "l2 has no threshold"),
        ("epsilon", {"huber_scale": 2.0}, "--huber_scale", "l2 has no threshold"),
        ("epsilon", {"loss_type": "l1", "huber_schedule": "constant"}, "--huber_schedule", "l1 has no threshold"),
    ],
)
def test_one_mistake_is_told_once_with_its_reason(
    prediction_type: str | None, options: dict[str, Any], where: str, why: str
) -> None:
    (problem,) = told(prediction_type, **options)
    assert problem.startswith(f"{where}: ") and why in problem


@pytest.mark.parametrize(
    ("prediction_type", "options"),
    [
        ("epsilon", {}),
        (None, {"zero_terminal_snr": True}),
        ("epsilon", {"noise_offset": 0.1, "noise_offset_random_strength": True, "adaptive_noise_scale": -0.01}),
        ("epsilon", {"noise_offset": 0.0, "adaptive_noise_scale": 0.01}),
        ("epsilon", {"multires_noise_iterations": 6, "multires_noise_discount": 0.8}),
        ("epsilon", {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True}),
        ("epsilon", {"min_snr_gamma": 5.0, "v_pred_like_loss": 0.1}),
        ("epsilon", {"loss_type": "smooth_l1", "huber_c": 0.2, "huber_schedule": "exponential", "huber_scale": 2.0}),
        ("epsilon", {"min_timestep": 999}),
        ("v_prediction", {"zero_terminal_snr": True, "min_snr_gamma": 5.0}),
        ("v_prediction", {"zero_terminal_snr": True, "debiased_estimation_loss": True}),
        ("v_prediction", {"zero_terminal_snr": True, "min_timestep": 999}),
        ("v_prediction", {"scale_v_pred_loss_like_noise_pred": True}),
    ],
)
def test_good_combinations_pass(prediction_type: str | None, options: dict[str, Any]) -> None:
    assert told(prediction_type, **options) == []


def test_all_mistakes_are_told_at_once() -> None:
    assert len(told(huber_c=0.5, huber_scale=2.0, adaptive_noise_scale=0.1, min_timestep=9, max_timestep=3)) == 4


def test_every_message_of_the_guide_is_one() -> None:
    """Each row of its table is a piece of what the checks say."""
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "noise_and_loss.md").read_text(encoding="utf-8").partition("| Message |")[2]
    told = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    checks = ("diffusion/combinations.py", "data/description/masks.py", "data/index/masks.py")
    source = "".join((root / "library" / name).read_text(encoding="utf-8") for name in checks)
    assert len(told) > 12 and [message for message in told if message not in source] == []
