"""Sentences for Textual Inversion, trained in the place of captions (Gal et al. 2022 train such sentences).

Each is one text with wildcards (see docs/captions.md): every use of a picture draws another of its forms.
"""

from __future__ import annotations

_OBJECT = (
    "{a|one|my} {plain|detailed|bright|dim|colourful|cropped|wide|} {photo|photograph|picture|snapshot|view} of"
    " {the|a|this|my|} {clean|small|large|beautiful|} WORD"
)
_STYLE = (
    "{a|one|another} {plain|detailed|bright|dim|colourful|cropped|wide|} {picture|painting|drawing|print|sketch}"
    " {made in|in|that shows} the style of WORD"
)
_WORD = "WORD"


def object_template(word: str) -> str:
    """Sentences that show an object called `word`."""
    return _OBJECT.replace(_WORD, _as_text(word))


def style_template(word: str) -> str:
    """Sentences about a picture in a style called `word`."""
    return _STYLE.replace(_WORD, _as_text(word))


def _as_text(word: str) -> str:
    """The word with its braces doubled, or they would be taken for those of a wildcard."""
    return word.replace("{", "{{").replace("}", "}}")
