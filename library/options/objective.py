"""What the model is asked to predict, from which noise, and how its errors count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import at_least, between, finite

SQUARED, ABSOLUTE, HUBER, SMOOTH_L1 = "l2", "l1", "huber", "smooth_l1"
LOSSES = (SQUARED, ABSOLUTE, HUBER, SMOOTH_L1)
THRESHOLD_LOSSES = (HUBER, SMOOTH_L1)
BY_SNR, EXPONENTIAL, CONSTANT = "snr", "exponential", "constant"
HUBER_SCHEDULES = (BY_SNR, EXPONENTIAL, CONSTANT)
DIFFUSION_TIMES = 1000
_SMALLEST = 1e-6  # of factors that are squared or divided by in float32


@dataclass(frozen=True)
class ObjectiveOptions(OptionGroup):
    """Noise, diffusion times, loss and its weights."""

    title: ClassVar[str] = "Noise and loss"

    noise_offset: float | None = option(
        None,
        "strength of noise that is the same all over a picture, for very dark and very bright pictures; about 0.1",
        check=at_least(0),
        metavar="STRENGTH",
    )
    noise_offset_random_strength: bool = option(
        False, "draw the strength of the offset at each use, between 0 and --noise_offset"
    )
    adaptive_noise_scale: float | None = option(
        None,
        "add this times the size of the latents' mean to --noise_offset; a tenth of that to as much; may be negative",
        check=finite,
        metavar="SCALE",
    )
    multires_noise_iterations: int | None = option(
        None, "layers of ever coarser noise (pyramid noise); 6 to 10", check=at_least(1), metavar="N"
    )
    multires_noise_discount: float = option(
        0.3,
        "what each coarser layer of --multires_noise_iterations is multiplied by; 0.1 to 0.3 for small sets, up to 0.8",
        check=between(0, 1),
        metavar="SHARE",
    )
    ip_noise_gamma: float | None = option(
        None,
        "strength of further noise in what the model sees, but not in what it is asked for; about 0.1",
        check=at_least(0),
        metavar="GAMMA",
    )
    ip_noise_gamma_random_strength: bool = option(
        False, "draw the strength of --ip_noise_gamma at each use, between 0 and the given one"
    )
    min_snr_gamma: float | None = option(
        None,
        "weigh diffusion times by min(SNR, gamma) (Min-SNR); 5 is usual",
        check=between(_SMALLEST, 100_000),
        metavar="GAMMA",
    )
    scale_v_pred_loss_like_noise_pred: bool = option(
        False, "weigh the loss of v-prediction as if noise had been predicted"
    )
    v_pred_like_loss: float | None = option(
        None,
        "add this times the loss weighed as if v had been predicted, for a model that predicts noise",
        check=between(_SMALLEST, 1000),
        metavar="WEIGHT",
    )
    debiased_estimation_loss: bool = option(False, "weigh diffusion times by 1/sqrt(SNR) (debiased estimation)")
    zero_terminal_snr: bool = option(
        False, "rescale the noise schedule so that nothing of the picture is left at its end; for v-prediction only"
    )
    loss_type: str = option(SQUARED, "how errors are measured", choices=LOSSES)
    huber_schedule: str = option(
        BY_SNR, "how the threshold of huber and smooth_l1 depends on the diffusion time", choices=HUBER_SCHEDULES
    )
    huber_c: float = option(
        0.1,
        "threshold of huber and smooth_l1: smaller errors count squared, larger ones as they are",
        check=between(_SMALLEST, 1000),
        metavar="C",
    )
    huber_scale: float = option(
        1.0, "what the threshold is multiplied by", check=between(_SMALLEST, 1000), metavar="SCALE"
    )
    min_timestep: int = option(
        0, "lowest diffusion time that is trained", check=between(0, DIFFUSION_TIMES - 1), metavar="T"
    )
    max_timestep: int = option(
        DIFFUSION_TIMES, "diffusion times below this one are trained", check=between(1, DIFFUSION_TIMES), metavar="T"
    )
    masked_loss: bool = option(
        False, "weigh the loss by masks: those of conditioning_data_dir in the dataset file, or those of --alpha_mask"
    )
