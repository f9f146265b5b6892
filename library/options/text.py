"""How captions become text states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import at_least, one_of

CHUNK_TOKENS = 75  # what CLIP reads at once, without begin and end
LONGEST = 3 * CHUNK_TOKENS
PLAIN_SPLITTING, WEBUI_SPLITTING = "plain", "webui"


@dataclass(frozen=True)
class TextOptions(OptionGroup):
    """Length, layer and weighting of captions."""

    title: ClassVar[str] = "Captions and text encoder"

    clip_skip: int | None = option(
        None,
        "which layer of the text encoder is used, counted from the end: 1 is the last one, 2 the one before; for"
        " Stable Diffusion 1.x only, default: 1 (2.x always uses its penultimate layer)",
        check=at_least(1),
        metavar="N",
    )
    max_token_length: int = option(
        CHUNK_TOKENS,
        "longest caption in tokens: 75, or 150 or 225 as pieces of 75 that are encoded one by one and joined",
        check=one_of(CHUNK_TOKENS, 2 * CHUNK_TOKENS, LONGEST),
        metavar="75|150|225",
    )
    prompt_splitting: str = option(
        PLAIN_SPLITTING,
        "where longer captions are cut: plain counts tokens, as the public training tools do; webui moves words behind"
        " a comma to the next piece, as the Web UI does with prompts",
        choices=(PLAIN_SPLITTING, WEBUI_SPLITTING),
    )
    weighted_captions: bool = option(
        False,
        "read weights in captions and class tokens as the Web UI does: (word), [word], (word:1.3), \\( for a bracket",
    )
    restore_weighted_mean: bool = option(
        False,
        "with --weighted_captions: scale the text states so that their mean stays as it is without weights, which the"
        " Web UI does and the public training tools do not",
    )
    no_token_padding: bool = option(
        False, "pad captions to the longest of their batch only, not to 75 tokens, as early DreamBooth scripts did"
    )

    @property
    def rows(self) -> int:
        """Text states of a padded caption: 77, 152 or 227; with the Web UI's splitting 77 for each piece."""
        if self.prompt_splitting == WEBUI_SPLITTING:
            return self.max_token_length // CHUNK_TOKENS * (CHUNK_TOKENS + 2)
        return self.max_token_length + 2
