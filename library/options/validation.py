"""Looking at the training from outside: losses on pictures it never sees, and averaged weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.core.errors import Problems
from library.options.base import OptionGroup, default_of, option, option_fields
from library.options.checks import at_least, between
from library.options.data import DataOptions


@dataclass(frozen=True)
class ValidationOptions(OptionGroup):
    """When validation happens, and the running average of the weights."""

    title: ClassVar[str] = "Validation and averaging"

    validate_every_n_steps: int | None = option(
        None, "measure the validation loss every N updates", check=at_least(1), metavar="N"
    )
    validate_every_n_epochs: int | None = option(
        None,
        "measure the validation loss every N epochs; where neither this nor steps are given, every epoch",
        check=at_least(1),
        metavar="N",
    )
    max_validation_steps: int | None = option(
        None, "use at most N batches in each validation, always the same ones", check=at_least(1), metavar="N"
    )
    ema: bool = option(False, "keep a running average of the trained weights, saved beside them as NAME-ema")
    ema_decay: float = option(
        0.999,
        "share of the average that stays at each update, at the most: at the start it follows faster",
        check=between(0, 1),
        metavar="DECAY",
    )


def seed_of_validation(data: DataOptions, seed: int) -> int:
    """`--validation_seed`, or the run's `--seed` where it is not given."""
    return seed if data.validation_seed is None else data.validation_seed


def check_validation(options: ValidationOptions, data: DataOptions, pictures: int | None, problems: Problems) -> None:
    """Complains about options of validation without pictures for it, and of averaging without `--ema`.

    Args:
        pictures: how many are held out; None where that is not known.
    """
    asked = {
        "--validate_every_n_steps": options.validate_every_n_steps,
        "--validate_every_n_epochs": options.validate_every_n_epochs,
        "--max_validation_steps": options.max_validation_steps,
        "--validation_seed": data.validation_seed,
    }
    for flag, value in asked.items():
        if value is not None and pictures == 0:
            fix = "give --validation_split 0.1, or validation_split = 1.0 to a subset of the dataset file, or remove it"
            problems.add("there are no pictures to measure a validation loss on", flag, fix)
    (decay,) = (item for item in option_fields(ValidationOptions) if item.name == "ema_decay")
    if not options.ema and options.ema_decay != default_of(decay):
        problems.add("there is no average that it could slow down", "--ema_decay", "give --ema as well, or remove it")
