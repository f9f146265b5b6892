"""The checks of options that need neither pictures nor a model."""

from __future__ import annotations

from collections.abc import Mapping

from library.core.device import check_precision
from library.core.errors import Problems
from library.core.launch import launched_processes
from library.diffusion.combinations import check_objective
from library.methods.base import EMBEDDING
from library.models.attention import check_attention, check_compiling
from library.optim.optimizers import check_optimizer
from library.optim.stepping import check_low_precision
from library.options.combinations import check_caching, check_length, check_text
from library.training.run import RunOptions


def check_options(
    asked: RunOptions, rates: Mapping[str, float], text_encoder_learns: str | None, problems: Problems
) -> None:
    """What every script's options have to get right.

    Args:
        rates: of the parts that train, by name.
        text_encoder_learns: why the outputs of the text encoder change during training; None where they do not.
    """
    training = asked.training
    check_length(training, problems)
    check_text(asked.text, problems)
    check_caching(asked.caching, asked.text, text_encoder_learns, problems)
    problems.attempt(lambda: check_precision(training.mixed_precision))
    # weights of an embedding are a table; those of other parts have every number of dimensions
    check_optimizer(asked.optimizer, rates, problems, dimensions=(2,) if set(rates) == {EMBEDDING} else (1, 2, 4))
    check_low_precision(asked.memory, training, asked.optimizer, problems)
    if asked.memory.fused_backward_pass and launched_processes() > 1:
        what = "gradients are applied before the processes could exchange them, so each would train alone"
        problems.add(what, "--fused_backward_pass", "remove it, or start one process")
    check_attention(asked.memory, problems, training.mixed_precision)
    check_compiling(asked.memory, problems)


def check_prediction(asked: RunOptions, prediction_type: str | None, problems: Problems) -> None:
    """Whether noise and loss fit what the base model predicts; None where that is not known."""
    check_objective(asked.objective, prediction_type, problems)
