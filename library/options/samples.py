"""Pictures that the model in training makes on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import at_least

DDIM = "ddim"
# the one list of names; library.preview.samplers has a class for each
SAMPLERS = (
    *(DDIM, "pndm", "heun", "dpmsolver", "dpmsolver++", "dpmsingle"),
    *("k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a"),
    *("lms", "euler", "euler_a", "dpm_2", "dpm_2_a", "ddpm", "unipc", "deis"),
)


@dataclass(frozen=True)
class SampleOptions(OptionGroup):
    """When samples are made, and of what."""

    title: ClassVar[str] = "Sample pictures"

    sample_at_first: bool = option(False, "make sample pictures before the first update as well")
    sample_every_n_steps: int | None = option(
        None, "make sample pictures every N updates", check=at_least(1), metavar="N"
    )
    sample_every_n_epochs: int | None = option(
        None, "make sample pictures every N epochs; wins over --sample_every_n_steps", check=at_least(1), metavar="N"
    )
    sample_prompts: str | None = option(
        None,
        "file of the prompts: .txt with one in each line, which may set size, seed, guidance, steps and sampler (see"
        " docs/samples.md); or .json or .toml",
        metavar="FILE",
    )
    sample_sampler: str = option(DDIM, "sampler of prompts that name none", choices=SAMPLERS)
