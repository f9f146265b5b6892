"""From a tagger's confidences to the line that is written, and what lines hold. Pure functions of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.captioning.tag_list import Category, TagList
from library.captioning.tag_options import key_of, split_names, split_replacements
from library.core.errors import printable
from library.options.captioning import TaggerOptions

Confidences = NDArray[np.float32]  # (tags,), 0 to 1

_SHORT = 3  # characters: what has no more is a face, such as ^_^ or >_<
_LONG_FACES = frozenset(("(o)_(o)", "<o>_<o>", "<|>_<|>", "||_||"))


@dataclass(frozen=True)
class TagChoice:
    """Which of a model's tags are written, as what, and in which order; made once by `plan_tags`.

    Attributes:
        written: what is written for each output; outputs that are never written have an empty text.
        body: the outputs that are written from their threshold on, in their order.
        thresholds: (tags,), one for each output.
        ratings: outputs of which the likeliest is written, where ratings are.
        rating_last: the rating stands at the end, not in front.
        ranks: for outputs that always come first, their place among these.
        separator: what stands between two tags.
    """

    written: Sequence[str]
    body: NDArray[np.intp]
    thresholds: Confidences
    ratings: Sequence[int]
    rating_last: bool
    ranks: dict[int, int]
    separator: str


def plan_tags(tags: TagList, options: TaggerOptions) -> TagChoice:
    """What the options say of each of the model's tags; the options were checked by `check_names`."""
    replaced = split_replacements(options.tag_replacement)
    undesired = set(map(key_of, split_names(options.undesired_tags)))
    first = {key_of(name): rank for rank, name in reversed([*enumerate(split_names(options.always_first_tags))])}
    written, ranks = list[str](), dict[int, int]()
    for number, name in enumerate(tags.names):
        new = replaced.get(key_of(name)) or printable(without_underscores(name) if options.remove_underscore else name)
        keys = (key_of(name), key_of(new))
        written.append("" if not undesired.isdisjoint(keys) else new)
        found = [first[key] for key in keys if key in first]
        if found:
            ranks[number] = min(found)
    general, characters, ratings = (tags.of(kind) for kind in (Category.GENERAL, Category.CHARACTER, Category.RATING))
    body = [*characters, *general] if options.character_tags_first else sorted([*general, *characters])
    thresholds = np.full(len(tags.names), threshold_of(options, Category.GENERAL), np.float32)
    thresholds[characters] = threshold_of(options, Category.CHARACTER)
    has_rating = options.use_rating_tags or options.use_rating_tags_as_last_tag
    return TagChoice(
        written,
        np.array([number for number in body if written[number]], np.intp),
        thresholds,
        ratings if has_rating else [],
        options.use_rating_tags_as_last_tag,
        ranks,
        options.caption_separator,
    )


def threshold_of(options: TaggerOptions, category: Category) -> float:
    """The confidence from which tags of a category are written."""
    own = options.character_threshold if category is Category.CHARACTER else options.general_threshold
    return options.thresh if own is None else own


def tag_line(confidences: Confidences, choice: TagChoice) -> str:
    """The tags of a picture in one line, empty where none reaches its threshold."""
    reached = confidences >= choice.thresholds
    chosen: list[int] = choice.body[reached[choice.body]].tolist()
    if choice.ratings:
        likeliest = max(choice.ratings, key=lambda number: confidences[number])  # the first of equals
        if choice.written[likeliest]:
            chosen = [*chosen, likeliest] if choice.rating_last else [likeliest, *chosen]
    in_front = sorted((number for number in chosen if number in choice.ranks), key=choice.ranks.__getitem__)
    ordered = [*in_front, *(number for number in chosen if number not in choice.ranks)]
    return choice.separator.join(dict.fromkeys(choice.written[number] for number in ordered))


def without_underscores(name: str) -> str:
    """The tag with blanks instead; faces made of signs keep theirs."""
    return name if len(name) <= _SHORT or name in _LONG_FACES else name.replace("_", " ")


def joined_tags(old: str, new: str, separator: str) -> str:
    """A text as it is, and behind it those tags of `new` that are not there yet, each once.

    Names that differ in blanks and underscores alone are one tag. Adding the same tags again changes nothing. Of the
    text only a separator at its end goes, where something follows.
    """
    there, added = set(map(key_of, split_tags(old, separator))), list[str]()
    for tag in split_tags(new, separator):
        if key_of(tag) not in there:
            there.add(key_of(tag))
            added.append(tag)
    if not added:
        return old
    kept, mark = old.rstrip(), separator.strip() or separator
    while kept.endswith(mark):
        kept = kept.removesuffix(mark).rstrip()
    return separator.join([kept, *added] if kept else added)


def split_tags(line: str, separator: str) -> list[str]:
    """The tags in a line."""
    return [tag.strip() for tag in line.split(separator.strip() or separator) if tag.strip()]


def count_tags(lines: Iterable[str], separator: str) -> list[tuple[str, int]]:
    """How often each tag stands in some lines, the most frequent first, then by name."""
    counts = Counter(tag for line in lines for tag in split_tags(line, separator))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def torn_tags(choice: TagChoice, tags: TagList) -> list[str]:
    """Tags that hold the separator, or the comma at which training splits, so that they will read as several.

    What `--tag_replacement` asks for is not among them.
    """
    marks = (choice.separator.strip() or choice.separator, ",")
    own = [(choice.written[number], tags.names[number]) for number in (*choice.body, *choice.ratings)]
    return [
        text for text, name in own if any(mark in text for mark in marks) and key_of(text) == key_of(printable(name))
    ]
