"""Telling tags from captions by how a text reads.

It serves to stop a mistake (captions in the place of tags, or tags in the place of captions), so it answers yes only
where there is no doubt: what our own tools write must never be taken for the other kind, or a stopped run could not go
on. A single tag, two tags without underscores, tags separated by blanks and a sentence with commas are thus neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_JOINED = re.compile(r"[^\W_]_[^\W_]")  # long_hair, not ^_^; BLIP's tokenizer cannot write it
# Words that hardly a sentence is without, and that hardly a tag holds; "on", "of" and "with" stand in tags as well.
_OF_SENTENCES = frozenset(("a", "an", "the", "is", "are", "was", "were", "there"))
_MOST_WORDS_OF_A_TAG = 3
_FEWEST_TAGS = 4
_FEWEST_JOINED_TAGS = 2
_SHARE_OF_TAGS = 0.8  # share of the pieces that must read as tags; names of characters and works may be long
_FEWEST_WORDS_OF_A_SENTENCE = 5
_FEWEST_WORDS_BETWEEN_COMMAS = 4.0


def looks_like_tags(text: str) -> bool:
    """Whether it is a list of short pieces, such as "1girl, solo, long_hair"."""
    pieces = [piece.split() for piece in text.split(",") if piece.strip()]
    if not pieces:
        return False
    if any(_reads_as_sentence(words) for words in pieces):  # with tags behind it: both
        return False
    if sum(map(_reads_as_tag, pieces)) < _SHARE_OF_TAGS * len(pieces):
        return False
    has_joined = any(len(words) == 1 and _JOINED.search(words[0]) for words in pieces)
    return len(pieces) >= (_FEWEST_JOINED_TAGS if has_joined else _FEWEST_TAGS)


def looks_like_caption(text: str) -> bool:
    """Whether it is an English sentence or part of one, such as "a girl with long hair, sitting on the grass"."""
    words = text.replace(",", " ").split()
    pieces = sum(1 for piece in text.split(",") if piece.strip())
    are_long = len(words) >= _FEWEST_WORDS_BETWEEN_COMMAS * pieces
    return are_long and _reads_as_sentence(words) and not _JOINED.search(text)


def _reads_as_tag(words: Sequence[str]) -> bool:
    return len(words) <= _MOST_WORDS_OF_A_TAG and not _has_word_of_sentences(words)


def _reads_as_sentence(words: Sequence[str]) -> bool:
    return len(words) >= _FEWEST_WORDS_OF_A_SENTENCE and _has_word_of_sentences(words)


def _has_word_of_sentences(words: Sequence[str]) -> bool:
    return any(word.casefold() in _OF_SENTENCES for word in words)
