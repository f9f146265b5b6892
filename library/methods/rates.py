"""Learning rates of the parts of a model."""

from __future__ import annotations

from typing import NamedTuple

from library.options.optimizer import PartRateOptions


class PartRates(NamedTuple):
    """The rate of each part; `asked` is that of `--learning_rate`, which parts without one of their own have."""

    text_encoder: float
    unet: float
    asked: float


def part_rates(options: PartRateOptions, learning_rate: float) -> PartRates:
    """The rates in force: a part's own where it is given."""
    text_encoder = learning_rate if options.text_encoder_lr is None else options.text_encoder_lr
    unet = learning_rate if options.unet_lr is None else options.unet_lr
    return PartRates(text_encoder, unet, learning_rate)
