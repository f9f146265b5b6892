"""Tags of a caption: brackets hold together, kept tags stay, rates are what they say, and every use draws its own."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.randomness import generator
from library.data.caption_changes import CaptionChanges, change_caption, split_tags

TAGS = ["1girl", "solo", "(red, (blue:1.2), [green, grey])", "smile", "a\\(b", "tree"]
CAPTION = ", ".join(TAGS)
SHUFFLED = CaptionChanges(shuffle=True)

captions = st.text(alphabet="ab ,()[]\\:犬", max_size=40)
rates = st.sampled_from([0.0, 0.3, 1.0])
changes = st.builds(CaptionChanges, st.booleans(), st.integers(0, 4), rates, rates)


def draws(number: int) -> np.random.Generator:
    return generator(0, number, "0/0/a.png#0", "caption")


def is_balanced(text: str) -> bool:
    """Every bracket that is no text has its partner, each kind by itself."""
    plain = re.sub(r"\\[\\()\[\]]", "", text)
    for opening, closing in ("()", "[]"):
        depth = 0
        for character in plain:
            depth += (character == opening) - (character == closing)
            if depth < 0:
                return False
        if depth:
            return False
    return True


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("a, b ,c", ["a", "b", "c"]),
        (" , a,,b, ", ["a", "b"]),
        ("", []),
        (" , ", []),
        ("a dog on a sofa", ["a dog on a sofa"]),
        ("(a, b), c", ["(a, b)", "c"]),
        ("[a, b], c", ["[a, b]", "c"]),
        ("x (a, [b, (c, d)], e:1.3) y, z", ["x (a, [b, (c, d)], e:1.3) y", "z"]),
        ("(a, b)(c, d), e", ["(a, b)(c, d)", "e"]),
        # brackets without a partner are text
        (":(, a, b", [":(", "a", "b"]),
        (">:), a, b", [">:)", "a", "b"]),
        ("(unclosed, a", ["(unclosed", "a"]),
        (":[, (a, b), c", [":[", "(a, b)", "c"]),
        (":(, (a, b), c", [":(", "(a, b)", "c"]),  # the nearest open one is the partner
        ("((a, b), c", ["((a, b)", "c"]),
        ("(a, b)), c", ["(a, b))", "c"]),
        (":), a, :(", [":)", "a", ":("]),
        # escaped ones too; an escaped backslash escapes nothing
        (r"miku \(a, b\), c", [r"miku \(a", r"b\)", "c"]),
        (r"(a\), b), c", [r"(a\), b)", "c"]),
        (r"\\(a, b), c", [r"\\(a, b)", "c"]),
        (r"a\, b", ["a\\", "b"]),
        # each kind pairs up on its own, so both crossing pairs hold together
        ("( a, [ b, ) c, ], d", ["( a, [ b, ) c, ]", "d"]),
        ("(a, ], b), c", ["(a, ], b)", "c"]),
    ],
)
def test_tags_are_split_outside_brackets_only(caption: str, tags: list[str]) -> None:
    assert split_tags(caption) == tags


def test_another_separator() -> None:
    assert split_tags("a, b;; (c;; d) ;;e", ";;") == ["a, b", "(c;; d)", "e"]
    assert split_tags("a|b.c", "|") == ["a", "b.c"]


@given(captions | st.text())
def test_joined_tags_are_the_same_tags(caption: str) -> None:
    tags = split_tags(caption)
    assert all(tag and tag == tag.strip() for tag in tags)
    assert split_tags(", ".join(tags)) == tags
    assert re.sub(r"[\s,]", "", "".join(tags)) == re.sub(r"[\s,]", "", caption)  # nothing is lost


@given(captions)
def test_balanced_captions_have_balanced_tags(caption: str) -> None:
    if is_balanced(caption):
        assert all(is_balanced(tag) for tag in split_tags(caption))


def test_nesting_as_deep_as_a_caption_allows() -> None:
    deep = "(" * 50_000 + "a, b" + ")" * 50_000
    assert split_tags(f"{deep}, c") == [deep, "c"]


# --- changes ----------------------------------------------------------------------------------------------------------


@given(captions, st.integers(0, 99))
def test_nothing_asked_changes_no_byte(caption: str, number: int) -> None:
    assert change_caption(caption, CaptionChanges(), draws(number)) == caption
    assert change_caption(caption, CaptionChanges(keep_tokens=2), draws(number)) == caption


@given(captions, changes, st.integers(0, 99))
def test_what_is_left_are_whole_tags_with_the_kept_ones_first(caption: str, asked: CaptionChanges, number: int) -> None:
    changed = change_caption(caption, asked, draws(number))
    assert changed == change_caption(caption, asked, draws(number))
    tags, kept = split_tags(caption), split_tags(caption)[: asked.keep_tokens]
    if asked.dropout_rate == 1 or (not changed and asked.dropout_rate):
        assert changed == ""
    elif asked.tag_dropout_rate == 1:
        assert changed in (", ".join(kept), caption) and split_tags(changed) == kept
    elif is_balanced(caption):  # brackets without a partner may find one in another order
        left = split_tags(changed)
        assert left[: asked.keep_tokens] == kept
        assert Counter(left) <= Counter(tags)
        if not asked.tag_dropout_rate:
            assert Counter(left) == Counter(tags)
        if not asked.shuffle:
            remaining = iter(tags)
            assert all(tag in remaining for tag in left)  # in their order


@pytest.mark.parametrize("keep_tokens", [0, 1, 3, 6, 9])
def test_shuffling_moves_every_tag_behind_the_kept_ones(keep_tokens: int) -> None:
    asked = CaptionChanges(shuffle=True, keep_tokens=keep_tokens)
    orders = [split_tags(change_caption(CAPTION, asked, draws(number))) for number in range(400)]
    for order in orders:
        assert order[:keep_tokens] == TAGS[:keep_tokens] and sorted(order) == sorted(TAGS)
    for tag in TAGS[keep_tokens:]:  # each comes to each free place, about equally often
        places = Counter(order.index(tag) for order in orders)
        free = len(TAGS) - keep_tokens
        assert set(places) == set(range(keep_tokens, len(TAGS)))
        assert all(0.6 < count * free / 400 < 1.5 for count in places.values())


def test_changed_captions_are_joined_alike_and_others_keep_their_bytes() -> None:
    seen = {change_caption("a,b ,", SHUFFLED, draws(number)) for number in range(30)}
    assert seen == {"a,b ,", "b, a"}
    assert change_caption("just  one tag ", SHUFFLED, draws(0)) == "just  one tag "


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("keep_tokens", [0, 2])
def test_tags_are_dropped_as_often_as_asked(shuffle: bool, keep_tokens: int) -> None:
    def left(rate: float) -> list[list[str]]:
        asked = CaptionChanges(shuffle, keep_tokens, tag_dropout_rate=rate)
        return [split_tags(change_caption(CAPTION, asked, draws(number))) for number in range(600)]

    assert all(sorted(tags) == sorted(TAGS) for tags in left(0.0))
    assert all(tags == TAGS[:keep_tokens] for tags in left(1.0))
    counts = Counter(tag for tags in left(0.5) for tag in tags)
    assert all(counts[tag] == 600 for tag in TAGS[:keep_tokens])
    assert all(240 < counts[tag] < 360 for tag in TAGS[keep_tokens:])
    assert len({tuple(sorted(tags)) for tags in left(0.5)}) == 2 ** (len(TAGS) - keep_tokens)  # one by one


def test_whole_captions_are_dropped_as_often_as_asked() -> None:
    def left(rate: float) -> list[str]:
        return [change_caption(CAPTION, CaptionChanges(keep_tokens=9, dropout_rate=rate), draws(n)) for n in range(600)]

    assert set(left(0.0)) == {CAPTION}
    assert set(left(1.0)) == {""}
    assert set(left(0.5)) == {CAPTION, ""} and 240 < left(0.5).count("") < 360


def test_one_rate_leaves_the_other_draws_as_they_are() -> None:
    for number in range(50):
        shuffled = split_tags(change_caption(CAPTION, SHUFFLED, draws(number)))
        both = CaptionChanges(shuffle=True, tag_dropout_rate=0.3, dropout_rate=0.3)
        left = split_tags(change_caption(CAPTION, both, draws(number)))
        assert left == [tag for tag in shuffled if tag in left]
