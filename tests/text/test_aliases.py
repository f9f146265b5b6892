"""A new word in captions: where it is found, and which ids it becomes."""

from __future__ import annotations

import pickle

import pytest
from transformers import CLIPTokenizer

from library.options.text import TextOptions
from library.text.aliases import FIRST_NEW_ID, Alias
from library.text.tokenizer import VOCABULARY_SIZE, CaptionTokenizer, load_tokenizer

MIRA = Alias("zumira", 3)


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer("sd1", alias=MIRA)


@pytest.fixture(scope="module")
def extended() -> CLIPTokenizer:
    """Transformers' tokenizer with the same words added, as the public tools extend it."""
    extended = load_tokenizer("sd1")
    assert extended.add_tokens(["zumira", "zumira1", "zumira2"]) == 3
    return extended


def test_new_ids_follow_the_vocabulary() -> None:
    assert FIRST_NEW_ID == VOCABULARY_SIZE
    assert MIRA.ids == (49408, 49409, 49410)


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of zumira",
        "zumira",
        "zumira, zumira's red hat",
        "(zumira) on a sofa,zumira.",
        "Zumira  ZUMIRA\nzumira!",
    ],
)
def test_each_occurrence_becomes_all_ids_as_in_a_tokenizer_that_knows_them(
    tokenizer: CaptionTokenizer, extended: CLIPTokenizer, caption: str
) -> None:
    spelled = caption.lower().replace("zumira", "zumira zumira1 zumira2")
    expected = extended(spelled, padding="max_length", truncation=True).input_ids
    assert tokenizer([caption])[0][0, 0].tolist() == expected
    assert expected.count(49408) == caption.lower().count("zumira") == expected.count(49410)


@pytest.mark.parametrize("caption", ["zumiracle", "a zumira1", "bozumira", "zumira_cat", "zu mira"])
def test_parts_of_other_words_are_none(tokenizer: CaptionTokenizer, caption: str) -> None:
    assert not MIRA.is_in(caption)
    assert tokenizer([caption])[0].max() < FIRST_NEW_ID


@pytest.mark.parametrize("word", ["<zu-mira>", "zu*", "zu.mira", "$zu", "zumirá", "ずみら"])
def test_marks_and_letters_of_all_kinds_make_words(word: str) -> None:
    alias = Alias(word, 1)
    assert alias.split(f"a {word}, red") == ["a ", ", red"]
    assert alias.is_in(f"({word})") and not alias.is_in(f"a {word[:-1]} x")
    assert not Alias("zu.mira", 1).is_in("zu-mira")


def test_marks_are_borders_in_themselves() -> None:
    assert Alias("<zumira>", 1).split("photo<zumira>s") == ["photo", "s"]


def test_both_ways_to_write_an_accent_are_one_word() -> None:
    composed, decomposed = "zumir\u00e1", "zumira\u0301"
    assert Alias(composed, 1).is_in(f"a {decomposed} b") and Alias(decomposed, 1).is_in(f"a {composed} b")
    assert not MIRA.is_in(decomposed)


def test_the_count_of_tokens_includes_them(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.count_tokens(["a zumira cat", "zumira"]) == [5, 3]
    assert tokenizer.count_lost(["zumira " * 30]) == [90 - 75]


def test_they_get_the_weight_of_their_place() -> None:
    weighted = CaptionTokenizer("sd1", TextOptions(weighted_captions=True), MIRA)
    ids, weights = weighted(["a (zumira:1.5) cat"])
    assert weights is not None
    assert weights[0, 0, :6].tolist() == [1, 1, 1.5, 1.5, 1.5, 1]
    assert ids[0, 0, 2:5].tolist() == list(MIRA.ids)


def test_without_a_new_word_nothing_changes(tokenizer: CaptionTokenizer) -> None:
    plain = CaptionTokenizer("sd1")
    captions = ["a photo of a cat", "naïve café, 東京", ""]
    assert plain(captions)[0].equal(tokenizer(captions)[0])
    assert plain(["zumira"])[0].max() < FIRST_NEW_ID


def test_workers_get_it(tokenizer: CaptionTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy(["zumira"])[0].equal(tokenizer(["zumira"])[0])
