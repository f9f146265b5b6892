"""The tags of a caption, and what becomes of them each time the caption is used. Pure functions.

Shuffling tags follows the practice of Waifu Diffusion v1.3; the other options have the meaning that they have in the
public training tools. docs/captions.md lists the steps in their order.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, cast

import numpy as np

from library.data.captions.caption_files import split_lines
from library.data.captions.wildcards import draw_wildcards

_MARKS = re.compile(r"\\[\\()\[\]]|[()\[\]]")  # an escaped mark is found as two characters, and is text
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True)
class CaptionChanges:
    """What happens to a caption at each use. Without arguments: its first line is taken as it is.

    Attributes:
        shuffle: the tags come in another order.
        keep_tokens: so many first tags stay where they are and are never dropped.
        tag_dropout_rate: probability with which each tag behind those is left out.
        dropout_rate: probability with which the whole caption, kept tags and prefix included, is empty.
        dropout_every_n_epochs: every caption is empty in the epochs n, 2n, … counted from 1; 0 for none.
        wildcard: one line of the caption is drawn, and one part of each `{a|b}`, see `draw_wildcards`.
        separator: what stands between tags.
        keep_tokens_separator: a mark; in captions that have it, tags before it are kept in the place of `keep_tokens`,
            and those behind a second one are kept at the end. Like a separator it counts outside brackets.
        secondary_separator: stands between tags that are one for shuffling and dropping; becomes the separator.
        prefix: text in front of every caption, behind which a blank follows; its tags count as the caption's first.
        suffix: text behind every caption and a blank.
        warmup_min: number of movable tags that are used at the start of the warm-up.
        warmup_step: updates after which all of them are used; below 1 the share of the run's updates, 0 for at once.
    """

    shuffle: bool = False
    keep_tokens: int = 0
    tag_dropout_rate: float = 0.0
    dropout_rate: float = 0.0
    dropout_every_n_epochs: int = 0
    wildcard: bool = False
    separator: str = ","
    keep_tokens_separator: str | None = None
    secondary_separator: str | None = None
    prefix: str = ""
    suffix: str = ""
    warmup_min: int = 1
    warmup_step: float = 0

    @property
    def varies(self) -> bool:
        """Whether two uses of a picture can have different captions."""
        if self.dropout_rate >= 1 or self.dropout_every_n_epochs == 1:
            return False  # all are empty
        drops_some = self.dropout_rate > 0 or self.dropout_every_n_epochs > 0
        return drops_some or self.wildcard or (self.moves_tags and self.tag_dropout_rate < 1)

    @property
    def moves_tags(self) -> bool:
        """Whether tags change their places or are left out, so that there is something to keep tags from."""
        return self.shuffle or self.tag_dropout_rate > 0 or self.warmup_step > 0


@dataclass(frozen=True)
class Moment:
    """When a caption is used: the epoch, from 0, and the update, from 0 to `total_steps` - 1."""

    epoch: int
    step: int
    total_steps: int


class _Tags(NamedTuple):
    """The tags of a caption by what may happen to them."""

    first: list[str]
    movable: list[str]
    last: list[str]


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The parts of a caption between separators, without surrounding blanks; empty ones are left out.

    A separator inside a pair of round or square brackets does not split, at any depth. As with weights in the Web UI,
    each kind of bracket pairs up on its own, a closing one with the nearest open one before it: of crossing pairs such
    as "( [ ) ]" both hold together what is inside them. A bracket without a partner is text, as is one behind a
    backslash.
    """
    pieces = (piece.strip() for piece in _split_outside_brackets(caption, separator))
    return [piece for piece in pieces if piece]


def _split_outside_brackets(caption: str, mark: str) -> list[str]:
    depths = _bracket_depths(caption)
    cuts = [found.span() for found in re.finditer(re.escape(mark), caption) if depths[found.start()] == 0]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(caption)]
    return [caption[start:end] for start, end in zip(starts, ends, strict=True)]


def _bracket_depths(caption: str) -> list[int]:
    """For each character the number of bracket pairs that are open before it; then once more for the end."""
    rises = [0] * len(caption)
    unpaired: dict[str, list[int]] = {"(": [], "[": []}
    for found in _MARKS.finditer(caption):
        mark, position = found.group(), found.start()
        if mark in unpaired:
            unpaired[mark].append(position)
        elif mark in _OPENING and unpaired[_OPENING[mark]]:
            rises[unpaired[_OPENING[mark]].pop()] += 1
            rises[position] -= 1
    return list(accumulate(rises, initial=0))


def change_caption(caption: str, changes: CaptionChanges, draws: np.random.Generator, moment: Moment) -> str:
    """The caption of one use.

    Tags that changed are joined with the separator and a blank; where all stay in their order, the caption is returned
    as it was written, but for its marks.

    Args:
        caption: one or several lines of tags, see `split_tags`.
        changes: what was asked for.
        draws: random numbers of this use alone; a Philox generator, as those of `library.core.randomness`. They are
            drawn in a fixed order, wildcards from a stream of their own, so that a change of one rate or of the
            warm-up leaves the other draws as they are.
        moment: when the caption is used.
    """
    wildcard_draws = _second_stream(draws) if changes.wildcard else None
    if draws.random() < changes.dropout_rate or _is_empty_epoch(changes.dropout_every_n_epochs, moment.epoch):
        return ""
    text = _draw_text(caption, changes, wildcard_draws) if wildcard_draws else _first_text(caption, changes)
    if not changes.moves_tags:
        return _without_marks(text, changes)
    tags = _sort_tags(text, changes)
    stays = draws.random(len(tags.movable)) >= changes.tag_dropout_rate
    order = draws.permutation(len(tags.movable)) if changes.shuffle else range(len(tags.movable))
    in_use = _number_in_use(len(tags.movable), changes, moment)
    left = [tags.movable[number] for number in order if number < in_use and stays[number]]
    if left == tags.movable:
        return _without_marks(text, changes)
    return _join(_Tags(tags.first, left, tags.last), changes)


def plain_caption(caption: str, changes: CaptionChanges) -> str:
    """The caption as it is trained where nothing is left out or moved: its first line, wildcards as they are written,
    with prefix and suffix, the marks of kept and joined tags resolved.
    """
    return _without_marks(_first_text(caption, changes), changes)


def _second_stream(draws: np.random.Generator) -> np.random.Generator:
    """Independent numbers of the same origin; `draws` itself stays where it is."""
    return np.random.Generator(cast(np.random.Philox, draws.bit_generator).jumped())


def _is_empty_epoch(every: int, epoch: int) -> bool:
    return every > 0 and (epoch + 1) % every == 0


def _first_text(caption: str, changes: CaptionChanges) -> str:
    return _framed(changes.prefix, split_lines(caption)[0], changes.suffix)


def _draw_text(caption: str, changes: CaptionChanges, draws: np.random.Generator) -> str:
    """One line of the caption between prefix and suffix, with the wildcards of all three drawn."""
    lines = [line for line in split_lines(caption) if line.strip()] or [""]
    line = draw_wildcards(lines[int(draws.integers(len(lines)))], draws)
    prefix, suffix = (draw_wildcards(text, draws) for text in (changes.prefix, changes.suffix))
    return _framed(prefix, line, suffix)


def _framed(prefix: str, line: str, suffix: str) -> str:
    return " ".join(text for text in (prefix, line, suffix) if text)


def _sort_tags(text: str, changes: CaptionChanges) -> _Tags:
    mark = changes.keep_tokens_separator
    parts = [split_tags(part, changes.separator) for part in (_split_outside_brackets(text, mark) if mark else [text])]
    if len(parts) == 1:
        return _Tags(parts[0][: changes.keep_tokens], parts[0][changes.keep_tokens :], [])
    return _Tags(parts[0], parts[1], [tag for part in parts[2:] for tag in part])


def _number_in_use(movable: int, changes: CaptionChanges, moment: Moment) -> int:
    """How many of the movable tags the warm-up uses: from `warmup_min` in a straight line, rounded down, to all."""
    end = changes.warmup_step
    if end < 1:
        end = math.floor(end * moment.total_steps)
    if moment.step >= end:
        return movable
    return math.floor(moment.step * (movable - changes.warmup_min) / end) + changes.warmup_min


def _without_marks(text: str, changes: CaptionChanges) -> str:
    """A caption whose tags all stay: as it was written, but joined anew where it has marks of kept tags."""
    mark = changes.keep_tokens_separator
    if mark and mark in text:
        return _join(_sort_tags(text, changes), changes)
    return _joined_tags_apart(text, changes)


def _join(tags: _Tags, changes: CaptionChanges) -> str:
    joined = f"{changes.separator.rstrip()} ".join([*tags.first, *tags.movable, *tags.last])
    if changes.keep_tokens_separator:  # those inside brackets
        joined = joined.replace(changes.keep_tokens_separator, changes.separator)
    return _joined_tags_apart(joined, changes)


def _joined_tags_apart(text: str, changes: CaptionChanges) -> str:
    return text.replace(changes.secondary_separator, changes.separator) if changes.secondary_separator else text
