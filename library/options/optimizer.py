"""The optimizer, its rates and how they change over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import above, at_least, not_blank, share

# where --learning_rate is not given
NETWORK_LEARNING_RATE, MODEL_LEARNING_RATE, EMBEDDING_LEARNING_RATE = 1e-4, 2e-6, 5e-4


@dataclass(frozen=True)
class OptimizerOptions(OptionGroup):
    """The optimizer, its arguments, and the schedule of its rate."""

    title: ClassVar[str] = "Optimizer"

    optimizer_type: str | None = option(
        None,
        "the optimizer that applies the gradients: a name of docs/optimizers.md in any case, a class of torch.optim, or"
        " package.module.Class; default: AdamW",
        check=not_blank,
        metavar="NAME",
    )
    use_8bit_adam: bool = option(False, "the same as --optimizer_type AdamW8bit, as older guides have it")
    use_lion_optimizer: bool = option(False, "the same as --optimizer_type Lion, as older guides have it")
    optimizer_args: tuple[str, ...] = option(
        (), "further arguments of the optimizer, such as weight_decay=0.01 betas=0.9,0.999", metavar="KEY=VALUE"
    )
    learning_rate: float | None = option(
        None,
        "learning rate of every part that is given none of its own; default: 1e-4 for a network, 2e-6 for a whole"
        " model, 5e-4 for an embedding, 1 for an optimizer that finds the rate by itself",
        check=above(0),
        metavar="RATE",
    )
    lr_scheduler: str | None = option(
        None,
        "how the rate changes over the run: a name of docs/schedulers.md; default: constant",
        check=not_blank,
        metavar="NAME",
    )
    lr_scheduler_type: str | None = option(
        None,
        "a schedule by its class, in place of --lr_scheduler: one of torch.optim.lr_scheduler, or package.module.Class",
        check=not_blank,
        metavar="CLASS",
    )
    lr_scheduler_args: tuple[str, ...] = option(
        (),
        "further arguments of the schedule, such as T_max=1000, or lr_end=1e-8 of polynomial",
        aliases=("scheduler_args",),
        metavar="KEY=VALUE",
    )
    lr_warmup_steps: float = option(
        0.0, "updates over which the rate rises from 0; below 1 a share of the run", check=at_least(0), metavar="N"
    )
    lr_decay_steps: float = option(
        0.0,
        "updates over which the rate falls at the end of warmup_stable_decay; below 1 a share of the run",
        check=at_least(0),
        metavar="N",
    )
    lr_scheduler_num_cycles: int | None = option(
        None, "cycles of cosine_with_restarts; default: 1", check=at_least(1), metavar="N"
    )
    lr_scheduler_power: float | None = option(None, "exponent of polynomial; default: 1", check=above(0), metavar="P")
    lr_scheduler_min_lr_ratio: float | None = option(
        None,
        "lowest rate of cosine_with_min_lr and warmup_stable_decay, as a share of the highest",
        check=share,
        metavar="SHARE",
    )
    lr_scheduler_timescale: int | None = option(
        None,
        "updates behind the warm-up after which inverse_sqrt has fallen to 1/sqrt(2) of the highest rate; default:"
        " --lr_warmup_steps, or 10000 where that is 0",
        check=at_least(1),
        metavar="N",
    )


def rate_of_part(value: float) -> str | None:
    """A check: a rate above 0. In many guides 0 leaves a part out."""
    if value == 0:
        return (
            "a part that should not train is left out by --network_train_unet_only or --network_train_text_encoder_only"
            " (train_network.py), --stop_text_encoder_training 0 (train_db.py), no --train_text_encoder (fine_tune.py)"
        )
    return above(0)(value)


@dataclass(frozen=True)
class PartRateOptions(OptionGroup):
    """Rates of the parts of a model, where they differ."""

    title: ClassVar[str] = "Learning rates of the parts"

    unet_lr: float | None = option(
        None,
        "learning rate of the U-Net (of its part of a network); default: --learning_rate",
        check=rate_of_part,
        metavar="RATE",
    )
    text_encoder_lr: float | None = option(
        None,
        "learning rate of the text encoder (of its part of a network); default: --learning_rate",
        aliases=("learning_rate_te",),
        check=rate_of_part,
        metavar="RATE",
    )
