"""Patterns of tags: what they fit, compared with a slow look at every way; and no text makes them slow."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.data.captions.caption_changes import split_tags
from library.preparation.patterns import tag_key, tag_test, tags_in


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("long hair", ["long hair", "Long_Hair", "LONG  hair"], ["very long hair", "long hairs", "longhair"]),
        ("* hair", ["black hair", "messy_hair", "blue-green hair"], ["hand in own hair", "hair", "black hairband"]),
        ("light * hair", ["light brown hair"], ["light hair", "light greenish blue hair"]),
        ("**hair", ["hair", "hand in own hair", "armchair"], ["hairs", "hair bun"]),
        ("rating:*", ["rating:safe", "rating:"], ["arating:safe", "rating"]),
        ("**speech bubble**", ["big speech bubbles", "speech_bubble"], ["speech", "bubble speech"]),
        ("*a*b*", ["ab", "xaxbx", "aab"], ["ba", "a b", "a"]),
        ("**a*b", ["a xab", "aab", "a b ab"], ["a x b", "ab x"]),
        ("mira (game)", [r"mira_\(game\)", "Mira (game)"], ["mira game"]),
        ("猫*", ["猫耳"], ["白い猫"]),
        ("^_^", ["^_^"], [">_<", "^^"]),
    ],
)
def test_patterns(pattern: str, fitting: list[str], others: list[str]) -> None:
    fits = tag_test([pattern])
    assert [tag for tag in [*fitting, *others] if fits(tag)] == fitting


def test_exceptions_and_several_patterns() -> None:
    fits = tag_test(["* hair", "smile"], ["long hair", "wet *"])
    assert [fits(tag) for tag in ("red hair", "smile", "long hair", "wet hair", "eyes")] == [
        *(True, True, False, False, False)
    ]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text("ab* ", min_size=1, max_size=8), st.text("ab ", max_size=10))
def test_a_pattern_is_what_its_wildcards_say(pattern: str, tag: str) -> None:
    key = tag_key(pattern)
    parts = re.findall(r"\*+|[^*]", key)
    kinds = {True: ".*", False: "[^ ]*"}
    expression = "".join(kinds[len(part) > 1] if "*" in part else re.escape(part) for part in parts)
    assert tag_test([pattern])(tag) == bool(re.fullmatch(expression, tag_key(tag)))


def test_no_pattern_and_text_take_long() -> None:
    pattern, text = "**a" * 60 + "b", "a" * 100_000
    started = time.process_time()
    assert not tag_test([f"{pattern}c*d"])(text) and not tag_test([pattern + "*c" * 20 + "*"])(text)
    assert time.process_time() - started < 5


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(r"ab,()[]\ ", max_size=24))
def test_tags_are_those_of_training(line: str) -> None:
    assert tags_in(line) == split_tags(line)
