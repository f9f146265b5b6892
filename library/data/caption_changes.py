"""The tags of a caption, and what shuffling and dropping make of them each time it is used. Pure functions.

Shuffling tags follows the practice of Waifu Diffusion v1.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

_MARKS = re.compile(r"\\[\\()\[\]]|[()\[\]]")  # an escaped mark is found as two characters, and is text
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True)
class CaptionChanges:
    """What happens to a caption at each use. Without arguments: nothing.

    Attributes:
        shuffle: the tags come in another order.
        keep_tokens: so many first tags stay where they are and are never dropped.
        tag_dropout_rate: probability with which each tag behind those is left out.
        dropout_rate: probability with which the whole caption, kept tags included, is empty.
    """

    shuffle: bool = False
    keep_tokens: int = 0
    tag_dropout_rate: float = 0.0
    dropout_rate: float = 0.0


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The parts of a caption between separators, without surrounding blanks; empty ones are left out.

    A separator inside a pair of round or square brackets does not split, at any depth. As with weights in the Web UI,
    each kind of bracket pairs up on its own, a closing one with the nearest open one before it: of crossing pairs such
    as "( [ ) ]" both hold together what is inside them. A bracket without a partner is text, as is one behind a
    backslash.
    """
    depths = _bracket_depths(caption)
    cuts = [found.span() for found in re.finditer(re.escape(separator), caption) if depths[found.start()] == 0]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(caption)]
    pieces = (caption[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return [piece for piece in pieces if piece]


def _bracket_depths(caption: str) -> list[int]:
    """For each character the number of bracket pairs around it."""
    rises = [0] * (len(caption) + 1)
    unpaired: dict[str, list[int]] = {"(": [], "[": []}
    for found in _MARKS.finditer(caption):
        mark, position = found.group(), found.start()
        if mark in unpaired:
            unpaired[mark].append(position)
        elif mark in _OPENING and unpaired[_OPENING[mark]]:
            rises[unpaired[_OPENING[mark]].pop()] += 1
            rises[position] -= 1
    return list(accumulate(rises))


def change_caption(caption: str, changes: CaptionChanges, draws: np.random.Generator) -> str:
    """The caption of one use: tags in another order, some or all of them left out.

    What is changed is joined with ", "; a caption whose tags all stay in their order is returned as it was written.

    Args:
        caption: tags separated by commas, see `split_tags`.
        changes: what was asked for.
        draws: random numbers of this use alone. They are drawn in a fixed order, so that a change of one rate leaves
            the other draws as they are.
    """
    if draws.random() < changes.dropout_rate:
        return ""
    if not changes.shuffle and not changes.tag_dropout_rate:
        return caption
    tags = split_tags(caption)
    kept, movable = tags[: changes.keep_tokens], tags[changes.keep_tokens :]
    stays = draws.random(len(movable)) >= changes.tag_dropout_rate
    order = draws.permutation(len(movable)) if changes.shuffle else range(len(movable))
    changed = kept + [movable[number] for number in order if stays[number]]
    return caption if changed == tags else ", ".join(changed)
