"""When a run saves: whether what is asked for says something, and the moments it means."""

from __future__ import annotations

from library.core.errors import Problems
from library.options.keeping import KeepingOptions
from library.training.progress import Moments, RunPlan

_EPOCHS, _STEPS, _RATIO = "--save_every_n_epochs", "--save_every_n_steps", "--save_n_epoch_ratio"


def save_moments(keeping: KeepingOptions, epochs: int) -> Moments:
    """When files are saved on the way.

    Args:
        epochs: of the whole run; `--save_n_epoch_ratio` divides them.
    """
    every_epochs = keeping.save_every_n_epochs
    if keeping.save_n_epoch_ratio is not None:
        every_epochs = max(1, epochs // keeping.save_n_epoch_ratio)
    return Moments(keeping.save_every_n_steps, every_epochs)


def check_keeping(keeping: KeepingOptions, plan: RunPlan | None, problems: Problems) -> None:
    """Finds options that would do nothing.

    Args:
        plan: None where the length of the run is not known; that is told elsewhere.
    """
    if keeping.save_n_epoch_ratio is not None and keeping.save_every_n_epochs is not None:
        what = "both say after how many epochs files are saved"
        problems.add(what, f"{_RATIO}, {_EPOCHS}", "leave one of them out")
    _check_limits(keeping, problems)
    if plan is None:
        return
    every = keeping.save_every_n_epochs
    if every is not None and every > plan.whole_epochs:
        what = f"the run has {plan.whole_epochs} whole epochs, so nothing would be saved before its end"
        problems.add(what, f"{_EPOCHS} {every}", "lower it, or leave it out")
    every = keeping.save_every_n_steps
    if every is not None and every > plan.total_updates:
        what = f"the run has {plan.total_updates} updates, so nothing would be saved before its end"
        problems.add(what, f"{_STEPS} {every}", "lower it, or leave it out")


def _check_limits(keeping: KeepingOptions, problems: Problems) -> None:
    """Limits of what nothing makes."""
    by_epoch = keeping.save_every_n_epochs is not None or keeping.save_n_epoch_ratio is not None
    by_step = keeping.save_every_n_steps is not None
    limits = (
        ("--save_last_n_epochs", keeping.save_last_n_epochs, by_epoch, _EPOCHS, True),
        ("--save_last_n_epochs_state", keeping.save_last_n_epochs_state, by_epoch, _EPOCHS, keeping.save_state),
        ("--save_last_n_steps", keeping.save_last_n_steps, by_step, _STEPS, True),
        ("--save_last_n_steps_state", keeping.save_last_n_steps_state, by_step, _STEPS, keeping.save_state),
    )
    for flag, limit, is_saved, missing, has_states in limits:
        if limit is not None and not is_saved:
            problems.add(f"nothing is saved that it could limit: {missing} is missing", flag, f"give {missing} as well")
        if limit is not None and not has_states:
            problems.add("no states are saved on the way that it could limit", flag, "give --save_state as well")
