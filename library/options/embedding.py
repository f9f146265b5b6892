"""The new word of Textual Inversion: its vectors, where they start and how they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import at_least, not_blank

SAFETENSORS, PT = EMBEDDING_FORMS = ("safetensors", "pt")


def one_word(value: str) -> str | None:
    """A check: a text without blanks."""
    return None if value and value.split() == [value] else f"must be one word without blanks, got {value!r}"


@dataclass(frozen=True)
class EmbeddingOptions(OptionGroup):
    """Options of train_textual_inversion.py."""

    title: ClassVar[str] = "Textual Inversion"

    token_string: str | None = option(
        None,
        "the new word: it stands in the captions where the subject is meant, and CLIP must not know it as a word",
        check=one_word,
        required=True,
        metavar="WORD",
    )
    init_word: str | None = option(
        None,
        "a known word to start from, such as cat; its tokens are taken in turn; default: an average word",
        check=not_blank,
        metavar="WORD",
    )
    num_vectors_per_token: int | None = option(
        None,
        "vectors, that is tokens of a prompt, of the new word; default: 1, or as many as --weights holds",
        check=at_least(1),
        metavar="N",
    )
    xti: bool = option(
        False, "extended Textual Inversion (P+): the word has vectors of its own for each attention layer of the U-Net"
    )
    weights: str | None = option(
        None, "embedding to go on from: .safetensors, or .pt of this program or the Web UI", metavar="FILE"
    )
    use_object_template: bool = option(
        False, "train sentences about an object with the new word instead of captions; one is drawn at each use"
    )
    use_style_template: bool = option(
        False, "train sentences about a style with the new word instead of captions; one is drawn at each use"
    )
    save_model_as: str | None = option(
        None, "form of the saved embedding; default: safetensors", choices=EMBEDDING_FORMS
    )
