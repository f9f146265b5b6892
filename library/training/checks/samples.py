"""Whether sample pictures can be made as they are asked for."""

from __future__ import annotations

from library.core.errors import Problems
from library.options.samples import SampleOptions
from library.options.text import TextOptions
from library.preview.prompts import SamplePrompt


def check_samples(options: SampleOptions, text: TextOptions, problems: Problems) -> tuple[SamplePrompt, ...]:
    """The prompts of the run; none where no samples are asked for."""
    return ()
