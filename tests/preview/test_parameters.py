"""What a picture says of itself is what the Web UI reads."""

from __future__ import annotations

import json
import re

from library.core.sizes import Size
from library.preview.parameters import webui_parameters
from library.preview.prompts import SamplePrompt

PROMPT = SamplePrompt("a cat, (red:1.2)", "blurry", Size(64, 48), seed=5, scale=6.5, steps=4, sampler="k_euler_a")


def settings_of(text: str) -> dict[str, str]:
    """The last line as the Web UI reads it: names, a colon, and values that stand in quotes where they hold a comma."""
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.splitlines()[-1])
    return {name: json.loads(value) if value.startswith('"') else value for name, value in found}


def test_the_form_of_the_web_ui() -> None:
    assert webui_parameters(PROMPT, {"Model": "mira"}) == (
        "a cat, (red:1.2)\n"
        "Negative prompt: blurry\n"
        "Steps: 4, Sampler: Euler a, CFG scale: 6.5, Seed: 5, Size: 64x48, Model: mira"
    )


def test_nothing_is_said_of_a_negative_prompt_where_there_is_none() -> None:
    assert "Negative" not in webui_parameters(SamplePrompt("a cat"), {})


def test_values_with_commas_can_be_read_back() -> None:
    name = 'mira: a, "b"'
    assert settings_of(webui_parameters(PROMPT, {"Model": name, "Clip skip": "2"})) == {
        "Steps": "4",
        "Sampler": "Euler a",
        "CFG scale": "6.5",
        "Seed": "5",
        "Size": "64x48",
        "Model": name,
        "Clip skip": "2",
    }
