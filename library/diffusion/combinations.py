"""Options of noise and loss that contradict each other, have no defined result together, or would do nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from library.core.errors import Problems
from library.options.base import default_of, option_fields
from library.options.objective import DIFFUSION_TIMES, THRESHOLD_LOSSES, ObjectiveOptions

_EPSILON, _VELOCITY = "epsilon", "v_prediction"


@dataclass(frozen=True)
class _Rule:
    """A combination that is refused: where `applies` holds of the options and the prediction type (None: unknown)."""

    applies: Callable[[ObjectiveOptions, str | None], bool]
    what: str
    where: str
    fix: str


_RULES = (
    _Rule(
        lambda o, _: o.noise_offset_random_strength and not o.noise_offset,
        "there is no offset whose strength could be drawn",
        "--noise_offset_random_strength",
        "give --noise_offset as well, such as 0.1, or remove it",
    ),
    _Rule(
        lambda o, _: o.adaptive_noise_scale is not None and o.noise_offset is None,
        "it is added to the strength of the offset, and there is none",
        "--adaptive_noise_scale",
        "give --noise_offset as well, such as 0.1, or remove it",
    ),
    _Rule(
        lambda o, _: o.multires_noise_iterations is None and _is_given(o, "multires_noise_discount"),
        "there are no coarser layers of noise that it could weaken",
        "--multires_noise_discount",
        "give --multires_noise_iterations as well, such as 6, or remove it",
    ),
    _Rule(
        lambda o, _: o.ip_noise_gamma_random_strength and not o.ip_noise_gamma,
        "there is no noise whose strength could be drawn",
        "--ip_noise_gamma_random_strength",
        "give --ip_noise_gamma as well, such as 0.1, or remove it",
    ),
    _Rule(
        lambda o, _: o.min_timestep >= o.max_timestep,
        "no diffusion time is left to train: times are those from the first up to, but without, the second",
        "--min_timestep, --max_timestep",
        "give a --max_timestep above --min_timestep",
    ),
    _Rule(
        lambda o, kind: o.zero_terminal_snr and kind == _EPSILON,
        "the model predicts noise, and at the end of such a schedule there is nothing but noise to predict it from",
        "--zero_terminal_snr",
        "remove it, or train a model of v-prediction (SD2 768-v; --v_parameterization)",
    ),
    _Rule(
        lambda o, kind: o.scale_v_pred_loss_like_noise_pred and kind == _EPSILON,
        "the model predicts noise, so its loss is that of noise already",
        "--scale_v_pred_loss_like_noise_pred",
        "remove it; it is for models of v-prediction (--v_parameterization)",
    ),
    _Rule(
        lambda o, kind: o.v_pred_like_loss is not None and kind == _VELOCITY,
        "the model predicts v, so its loss is that of v already",
        "--v_pred_like_loss",
        "remove it; it is for models that predict noise",
    ),
    _Rule(
        lambda o, _: o.v_pred_like_loss is not None and o.zero_terminal_snr,
        "the weight (SNR + 1) / SNR is infinite where nothing of the picture is left",
        "--v_pred_like_loss, --zero_terminal_snr",
        "remove one of them",
    ),
    _Rule(
        lambda o, kind: o.zero_terminal_snr and kind is None and (o.debiased_estimation_loss or _has_snr_limit(o)),
        "unless the model predicts v, the weight of the last diffusion time is infinite or 0 divided by 0",
        "--zero_terminal_snr with --debiased_estimation_loss or --min_snr_gamma",
        "give --v_parameterization for a model of v-prediction, or remove --zero_terminal_snr",
    ),
    _Rule(
        lambda o, _: o.min_snr_gamma is not None and o.debiased_estimation_loss,
        "both are weights of the diffusion times by their SNR, made to stand alone",
        "--min_snr_gamma, --debiased_estimation_loss",
        "keep one of them",
    ),
    _Rule(
        lambda o, _: o.scale_v_pred_loss_like_noise_pred and o.min_snr_gamma is not None,
        "for v-prediction the weights of Min-SNR hold the factor SNR / (SNR + 1) already",
        "--scale_v_pred_loss_like_noise_pred, --min_snr_gamma",
        "keep one of them",
    ),
    _Rule(
        lambda o, _: o.scale_v_pred_loss_like_noise_pred and o.debiased_estimation_loss,
        "for v-prediction both are weights of the diffusion times by their SNR, made to stand alone",
        "--scale_v_pred_loss_like_noise_pred, --debiased_estimation_loss",
        "keep one of them",
    ),
    _Rule(
        lambda o, _: o.scale_v_pred_loss_like_noise_pred and o.v_pred_like_loss is not None,
        "one is for models of v-prediction, the other for models that predict noise",
        "--scale_v_pred_loss_like_noise_pred, --v_pred_like_loss",
        "keep the one that fits the model",
    ),
    _Rule(
        lambda o, _: o.zero_terminal_snr and _trains_the_end_only(o) and _silences_the_end(o),
        "the only diffusion time that is trained has a weight of 0: nothing of the picture is left there",
        "--min_timestep with --zero_terminal_snr and --min_snr_gamma or --scale_v_pred_loss_like_noise_pred",
        "give a lower --min_timestep, or remove one of the others",
    ),
)


def check_objective(options: ObjectiveOptions, prediction_type: str | None, problems: Problems) -> None:
    """Complains about every combination that is undefined or pointless.

    What equals its default counts as not given.

    Args:
        options: noise, diffusion times, loss and weights.
        prediction_type: "epsilon" or "v_prediction"; None where the model is not known.
        problems: receives what is wrong, each with its reason.
    """
    for rule in _RULES:
        if rule.applies(options, prediction_type):
            problems.add(rule.what, rule.where, rule.fix)
    if options.loss_type not in THRESHOLD_LOSSES:
        for name in ("huber_schedule", "huber_c", "huber_scale"):
            if _is_given(options, name):
                what = f"the loss {options.loss_type} has no threshold"
                problems.add(what, f"--{name}", "give --loss_type huber or smooth_l1 as well, or remove it")


def _is_given(options: ObjectiveOptions, name: str) -> bool:
    (default,) = (default_of(item) for item in option_fields(ObjectiveOptions) if item.name == name)
    return bool(getattr(options, name) != default)


def _has_snr_limit(options: ObjectiveOptions) -> bool:
    return options.min_snr_gamma is not None


def _trains_the_end_only(options: ObjectiveOptions) -> bool:
    return options.min_timestep == DIFFUSION_TIMES - 1


def _silences_the_end(options: ObjectiveOptions) -> bool:
    return _has_snr_limit(options) or options.scale_v_pred_loss_like_noise_pred
