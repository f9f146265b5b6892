"""The prompts of sample pictures, read from a file."""

from __future__ import annotations

from dataclasses import dataclass

from library.core.sizes import Size
from library.options.samples import DDIM

_DEFAULT_SIZE = Size(512, 512)


@dataclass(frozen=True)
class SamplePrompt:
    """One picture that is made again and again.

    Attributes:
        size: in pixels; both sides divisible by 8.
        seed: of the noise that the picture grows from.
        scale: guidance; 1 is none.
        sampler: one of `SAMPLERS`.
    """

    prompt: str
    negative_prompt: str = ""
    size: Size = _DEFAULT_SIZE
    seed: int = 0
    scale: float = 7.5
    steps: int = 30
    sampler: str = DDIM
