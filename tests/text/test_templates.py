"""The sentences of Textual Inversion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from library.data.captions.wildcards import draw_wildcards
from library.text.aliases import Alias
from library.text.templates import object_template, style_template
from library.text.tokenizer import CaptionTokenizer

TEMPLATES = [object_template, style_template]


def drawn(template: str, count: int = 300) -> list[str]:
    draws = np.random.Generator(np.random.Philox(key=1))
    return [draw_wildcards(template, draws) for _ in range(count)]


@pytest.mark.parametrize("make", TEMPLATES)
@pytest.mark.parametrize("word", ["zumira", "<zu-mira>", "{zu}", "}zu{"])
def test_every_sentence_has_the_word_once_and_is_short(make: Callable[[str], str], word: str) -> None:
    sentences = drawn(make(word))
    assert len(set(sentences)) > 100
    tokenizer = CaptionTokenizer("sd1", alias=Alias(word, 1))
    for sentence in sentences[:50]:
        assert sentence.count(word) == 1 and Alias(word, 1).is_in(sentence)
        assert not set(sentence.replace(word, "")) & set("{}|,")
    assert max(tokenizer.count_tokens(sentences)) < 20


def test_the_two_kinds_speak_of_different_things() -> None:
    assert all("style of" in sentence for sentence in drawn(style_template("zumira")))
    assert not any("style" in sentence for sentence in drawn(object_template("zumira")))
