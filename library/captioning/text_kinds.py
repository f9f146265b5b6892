"""Telling tags from captions by how a text reads.

It serves to stop a mistake (captions in the place of tags, or tags in the place of captions). Where nothing is lost,
`looks_like_...` answer yes only without doubt: a single tag, two tags without underscores, tags separated by blanks and
a sentence with tags behind it are neither. Where texts would be lost, `may_be_...` answer yes also where a person may
have written it. What our own tools write must never be taken for the other kind, or a stopped run could not go on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_JOINED = re.compile(r"[^\W_]_[^\W_]")  # long_hair, not ^_^; BLIP's tokenizer cannot write it
_COUNT = re.compile(r"\b\d\+?(girl|boy|other)s?\b", re.IGNORECASE)
_OF_TAGS = re.compile(
    rf"[(:]|\b(solo|multiple (girls|boys)|no humans|looking at viewer)\b|{_COUNT.pattern}", re.IGNORECASE
)
_USUAL_TAG = re.compile(
    r"solo|multiple (girls|boys)|no humans|looking at viewer|[\w-]+ (hair|eyes)|(rating:)?(general|sensitive|"
    r"questionable|explicit|safe)",
    re.IGNORECASE,
)
# Words that hardly a sentence is without, and that hardly a tag holds; "on", "of" and "with" stand in tags as well.
_OF_SENTENCES = frozenset(("a", "an", "the", "is", "are", "was", "were", "there"))
_ARTICLES = frozenset(("a", "an"))  # names of works begin with "the"
_PICTURE_OF = re.compile(r"[\w-]+ of ", re.IGNORECASE)  # "photo of sks person", not "head out of frame"
_PREPOSITIONS = frozenset(
    ("in", "on", "at", "of", "with", "by", "near", "from", "under", "behind", "beside", "between", "into", "over")
)
_MOST_WORDS_OF_A_TAG = 3
_FEWEST_TAGS = 4
_FEWEST_JOINED_TAGS = 2
_FEWEST_TAGS_BEHIND = 3  # that make a first piece without an article one of them
_SHARE_OF_TAGS = 0.8  # share of the pieces that must read as tags; names of characters and works may be long
_FEWEST_WORDS_OF_A_SENTENCE = 5
_FEWEST_WORDS_OF_A_PHRASE = 4  # "photo of sks person"
_FEWEST_WORDS_BETWEEN_COMMAS = 4.0


def looks_like_tags(text: str) -> bool:
    """Whether it is a list of short pieces, such as "1girl, solo, long_hair"."""
    pieces = _pieces(text)
    if not pieces:
        return False
    if any(_reads_as_sentence(words) for words in pieces):  # with tags behind it: both
        return False
    if sum(map(_reads_as_tag, pieces)) < _SHARE_OF_TAGS * len(pieces):
        return False
    has_joined = any(len(words) == 1 and _JOINED.search(words[0]) for words in pieces)
    return len(pieces) >= (_FEWEST_JOINED_TAGS if has_joined else _FEWEST_TAGS)


def may_be_tags(text: str) -> bool:
    """Whether it looks like tags, or holds one that no model for captions writes: "1girl, long hair", "long_hair"."""
    if _COUNT.search(text) or looks_like_tags(text):
        return True
    pieces = _pieces(text)
    if any(map(_has_word_of_sentences, pieces)):
        return False
    has_usual = any(_USUAL_TAG.fullmatch(" ".join(words)) for words in pieces)
    return bool(_JOINED.search(text)) or (len(pieces) > 1 and has_usual and all(map(_reads_as_tag, pieces)))


def looks_like_caption(text: str) -> bool:
    """Whether it is an English sentence or part of one, such as "a girl with long hair, sitting on the grass"."""
    words = text.replace(",", " ").split()
    are_long = len(words) >= _FEWEST_WORDS_BETWEEN_COMMAS * len(_pieces(text))
    if not are_long or _JOINED.search(text):
        return False
    return _reads_as_sentence(words) or (
        len(words) >= _FEWEST_WORDS_OF_A_SENTENCE and _has_link(words) and not _OF_TAGS.search(text)
    )


def may_be_caption(text: str) -> bool:
    """Whether it looks like a caption, or begins like one: "a photo of ohwx man, smiling, outdoors", "photo of a cat".

    The doubtful case, a sentence with tags behind it, is one: whoever wrote the sentence would lose it.
    """
    pieces = _pieces(text)
    if looks_like_caption(text) or not pieces:
        return looks_like_caption(text)
    first, others = pieces[0], pieces[1:]
    if first[0].casefold() in _ARTICLES and len(first) > 1:
        return True
    if _OF_TAGS.search(" ".join(first)) or _JOINED.search(" ".join(first)):
        return _reads_as_sentence(first)
    if len(first) >= _FEWEST_WORDS_OF_A_SENTENCE:
        return _has_link(first) or len(others) <= 1
    if len(first) < _FEWEST_WORDS_OF_A_PHRASE or not _has_link(first):
        return False
    return bool(_PICTURE_OF.match(text.strip())) or sum(map(_reads_as_tag, others)) < _FEWEST_TAGS_BEHIND


def _pieces(text: str) -> list[list[str]]:
    """The words of the pieces between commas."""
    return [piece.split() for piece in text.split(",") if piece.strip()]


def _reads_as_tag(words: Sequence[str]) -> bool:
    return len(words) <= _MOST_WORDS_OF_A_TAG and not _has_word_of_sentences(words)


def _reads_as_sentence(words: Sequence[str]) -> bool:
    return len(words) >= _FEWEST_WORDS_OF_A_SENTENCE and _has_word_of_sentences(words)


def _has_word_of_sentences(words: Sequence[str]) -> bool:
    return any(word.casefold() in _OF_SENTENCES for word in words)


def _has_link(words: Sequence[str]) -> bool:
    """Whether a word joins others to a phrase: an article, a preposition, "wearing"."""
    words = [word.casefold() for word in words[1:]]  # "the legend of zelda" begins with one as well
    return any(word in _OF_SENTENCES or word in _PREPOSITIONS or word.endswith("ing") for word in words)
