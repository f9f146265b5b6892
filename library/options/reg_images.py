"""Class images that the model makes itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from library.core.errors import Problems
from library.options.base import OptionGroup, option
from library.options.checks import at_least, between

FLAG = "--generate_reg_images"
_MOST_STEPS = 500  # samplers take every n-th of 1000 times: with more steps they would not begin at the noisy end


@dataclass(frozen=True)
class RegImageOptions(OptionGroup):
    """How regularisation pictures are generated where too few are there."""

    title: ClassVar[str] = "Class images"

    generate_reg_images: int | None = option(
        None,
        "let the model fill each folder of regularisation pictures up to N, in the bucket sizes of the set, prompted"
        " with the folder's class tokens; pictures that are there count",
        check=at_least(1),
        metavar="N",
    )
    reg_image_steps: int = option(30, "sampling steps of a class image", check=between(1, _MOST_STEPS), metavar="N")
    reg_image_scale: float = option(
        7.5, "guidance scale of the class images; 1 is none", check=at_least(1), metavar="SCALE"
    )
    reg_image_negative_prompt: str = option("", "what class images should not show", metavar="TEXT")


def check_reg_image_options(options: RegImageOptions, problems: Problems) -> None:
    """What is said about class images must have some that it is about."""
    usual = RegImageOptions()
    told = [field.name for field in fields(options) if getattr(options, field.name) != getattr(usual, field.name)]
    if options.generate_reg_images is None and told:
        flags = ", ".join(f"--{name}" for name in told)
        problems.add("no class images are generated", flags, f"give {FLAG} N as well, or remove it")
    elif options.reg_image_scale == 1 and options.reg_image_negative_prompt:
        what = "without guidance (scale 1) a negative prompt has no effect"
        problems.add(what, "--reg_image_negative_prompt, --reg_image_scale", "raise the scale, or remove the prompt")
