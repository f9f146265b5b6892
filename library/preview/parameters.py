"""How a picture was made, in the words of the Web UI: what its "PNG Info" reads and sends on to its own fields."""

from __future__ import annotations

import json
from collections.abc import Mapping

from library.preview.prompts import SamplePrompt
from library.preview.sampler_names import shown_name

TEXT_NAME = "parameters"  # of the PNG text that the Web UI looks for


def webui_parameters(prompt: SamplePrompt, more: Mapping[str, str]) -> str:
    """Prompt, negative prompt and a line of settings.

    Args:
        more: further settings by their names there, such as "Clip skip"; names that it does not know are no harm.
    """
    settings = {
        "Steps": str(prompt.steps),
        "Sampler": shown_name(prompt.sampler),
        "CFG scale": f"{prompt.scale:g}",
        "Seed": str(prompt.seed),
        "Size": str(prompt.size),
        **more,
    }
    lines = [prompt.prompt]
    if prompt.negative_prompt:
        lines.append(f"Negative prompt: {prompt.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    """A value that holds what divides the settings stands in quotes."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value
