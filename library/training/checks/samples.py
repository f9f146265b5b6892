"""Whether sample pictures can be made as they are asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from library.core.errors import Problems
from library.core.sizes import Size
from library.options.samples import DDIM, SAMPLERS, SampleOptions
from library.preview.prompts import (
    FLAG,
    LARGEST_SEED,
    LONGEST_SIDE,
    SHORTEST_SIDE,
    SIDE_STEP,
    PromptDefaults,
    SamplePrompt,
    read_prompts,
)
from library.training.progress import RunPlan

_MOMENTS = "--sample_every_n_steps, --sample_every_n_epochs, --sample_at_first"


def check_samples(
    options: SampleOptions, seed: int, resolution: Size | None, plan: RunPlan | None, problems: Problems
) -> tuple[SamplePrompt, ...]:
    """The prompts of the run; none where no samples are asked for. The file is not read again.

    Args:
        seed: of the run; prompts without a seed of their own follow from it.
        resolution: of the training; prompts without a size of their own have it. None where it cannot be known.
        plan: the length of the run; None where it cannot be known.
    """
    has_moment = _has_moment(options)
    if options.sample_prompts is None:
        if has_moment:
            problems.add("there are no prompts to make samples of", _given(options), f"give {FLAG} FILE, or remove it")
        if options.sample_sampler != DDIM:
            problems.add("there are no prompts to sample", "--sample_sampler", f"give {FLAG} FILE, or remove it")
        return ()
    if plan is not None:  # without a moment samples are made when a file asks for them
        _check_reached(options, plan, problems)
    path = Path(options.sample_prompts)
    defaults = PromptDefaults(default_size(resolution), seed % (LARGEST_SEED + 1), options.sample_sampler)
    prompts = problems.attempt(lambda: read_prompts(path, defaults)) or ()
    if prompts and options.sample_sampler != DDIM:
        other = next(name for name in SAMPLERS if name != options.sample_sampler)
        if read_prompts(path, replace(defaults, sampler=other)) == prompts:
            problems.add("every prompt names a sampler of its own", "--sample_sampler", "remove it")
    return prompts


def default_size(resolution: Size | None) -> Size:
    """The size of pictures whose prompts name none: what is trained, in steps of 8 pixels."""
    if resolution is None:
        return SamplePrompt.size
    return Size(*(min(LONGEST_SIDE, max(SHORTEST_SIDE, side // SIDE_STEP * SIDE_STEP)) for side in resolution))


def _has_moment(options: SampleOptions) -> bool:
    given = (options.sample_every_n_steps, options.sample_every_n_epochs)
    return options.sample_at_first or any(every is not None for every in given)


def _given(options: SampleOptions) -> str:
    return ", ".join(name for name in _MOMENTS.split(", ") if getattr(options, name.lstrip("-")))


def _check_reached(options: SampleOptions, plan: RunPlan, problems: Problems) -> None:
    """Whether the run is long enough for what is asked."""
    epochs, steps = options.sample_every_n_epochs, options.sample_every_n_steps
    if epochs is not None and epochs > plan.whole_epochs:
        what = f"the run has {plan.whole_epochs} whole epochs, so no sample would be made after {epochs}"
        problems.add(what, "--sample_every_n_epochs", "give a lower number")
    if epochs is None and steps is not None and steps > plan.total_updates:
        what = f"the run has {plan.total_updates} updates, so no sample would be made after {steps}"
        problems.add(what, "--sample_every_n_steps", "give a lower number")
