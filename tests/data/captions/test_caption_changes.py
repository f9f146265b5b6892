"""Tags of a caption: brackets hold together, kept tags stay, rates are what they say, and every use draws its own."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.randomness import generator
from library.data.captions.caption_changes import CaptionChanges, Moment, change_caption, plain_caption, split_tags

TAGS = ["1girl", "solo", "(red, (blue:1.2), [green, grey])", "smile", "a\\(b", "tree"]
CAPTION = ", ".join(TAGS)
SHUFFLED = CaptionChanges(shuffle=True)
START = Moment(epoch=0, step=0, total_steps=100)

captions = st.text(alphabet="ab ,()[]\\:犬", max_size=40)
rates = st.sampled_from([0.0, 0.3, 1.0])
changes = st.builds(CaptionChanges, st.booleans(), st.integers(0, 4), rates, rates)
marked = st.lists(st.sampled_from(["a", "b", "(c, d)", "[e", ",", ", ", "|||", ";;;", "{x|y}", "\n", " "])).map("".join)
marked_changes = st.builds(
    CaptionChanges,
    shuffle=st.booleans(),
    keep_tokens=st.integers(0, 3),
    tag_dropout_rate=rates,
    dropout_rate=st.sampled_from([0.0, 1.0]),
    dropout_every_n_epochs=st.integers(0, 2),
    wildcard=st.booleans(),
    keep_tokens_separator=st.sampled_from([None, "|||"]),
    secondary_separator=st.sampled_from([None, ";;;"]),
    prefix=st.sampled_from(["", "p", "p, q |||"]),
    suffix=st.sampled_from(["", "s"]),
    warmup_min=st.integers(1, 5),
    warmup_step=st.sampled_from([0, 0.5, 40]),
)
moments = st.builds(Moment, st.integers(0, 3), st.integers(0, 99), st.just(100))


def draws(number: int) -> np.random.Generator:
    return generator(0, number, "0/0/a.png#0", "caption")


def change(caption: str, asked: CaptionChanges, number: int = 0, moment: Moment = START) -> str:
    return change_caption(caption, asked, draws(number), moment)


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
    assert split_tags("(a [SEP] b) [SEP] c", "[SEP]") == ["(a [SEP] b)", "c"]  # its own brackets hold nothing


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
    assert change(caption, CaptionChanges(), number) == caption
    assert change(caption, CaptionChanges(keep_tokens=2), number) == caption


@given(captions, changes, st.integers(0, 99))
def test_what_is_left_are_whole_tags_with_the_kept_ones_first(caption: str, asked: CaptionChanges, number: int) -> None:
    changed = change(caption, asked, number)
    assert changed == change(caption, asked, number)
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
    orders = [split_tags(change(CAPTION, asked, number)) for number in range(400)]
    for order in orders:
        assert order[:keep_tokens] == TAGS[:keep_tokens] and sorted(order) == sorted(TAGS)
    for tag in TAGS[keep_tokens:]:  # each comes to each free place, about equally often
        places = Counter(order.index(tag) for order in orders)
        free = len(TAGS) - keep_tokens
        assert set(places) == set(range(keep_tokens, len(TAGS)))
        assert all(0.6 < count * free / 400 < 1.5 for count in places.values())


def test_changed_captions_are_joined_alike_and_others_keep_their_bytes() -> None:
    seen = {change("a,b ,", SHUFFLED, number) for number in range(30)}
    assert seen == {"a,b ,", "b, a"}
    assert change("just  one tag ", SHUFFLED, 0) == "just  one tag "


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("keep_tokens", [0, 2])
def test_tags_are_dropped_as_often_as_asked(shuffle: bool, keep_tokens: int) -> None:
    def left(rate: float) -> list[list[str]]:
        asked = CaptionChanges(shuffle, keep_tokens, tag_dropout_rate=rate)
        return [split_tags(change(CAPTION, asked, number)) for number in range(600)]

    assert all(sorted(tags) == sorted(TAGS) for tags in left(0.0))
    assert all(tags == TAGS[:keep_tokens] for tags in left(1.0))
    counts = Counter(tag for tags in left(0.5) for tag in tags)
    assert all(counts[tag] == 600 for tag in TAGS[:keep_tokens])
    assert all(240 < counts[tag] < 360 for tag in TAGS[keep_tokens:])
    assert len({tuple(sorted(tags)) for tags in left(0.5)}) == 2 ** (len(TAGS) - keep_tokens)  # one by one


def test_whole_captions_are_dropped_as_often_as_asked() -> None:
    def left(rate: float) -> list[str]:
        return [change(CAPTION, CaptionChanges(keep_tokens=9, dropout_rate=rate), n) for n in range(600)]

    assert set(left(0.0)) == {CAPTION}
    assert set(left(1.0)) == {""}
    assert set(left(0.5)) == {CAPTION, ""} and 240 < left(0.5).count("") < 360


def test_one_rate_leaves_the_other_draws_as_they_are() -> None:
    for number in range(50):
        shuffled = split_tags(change(CAPTION, SHUFFLED, number))
        both = CaptionChanges(shuffle=True, tag_dropout_rate=0.3, dropout_rate=0.3)
        left = split_tags(change(CAPTION, both, number))
        assert left == [tag for tag in shuffled if tag in left]


@pytest.mark.parametrize(
    ("asked", "captions"),
    [
        (
            SHUFFLED,
            [
                r"solo, (red, (blue:1.2), [green, grey]), 1girl, tree, smile, a\(b",
                r"a\(b, smile, tree, (red, (blue:1.2), [green, grey]), solo, 1girl",
            ],
        ),
        (
            CaptionChanges(True, 1, 0.4),
            [
                r"1girl, smile, (red, (blue:1.2), [green, grey]), solo, tree, a\(b",
                r"1girl, (red, (blue:1.2), [green, grey]), a\(b, tree",
            ],
        ),
        (CaptionChanges(False, 2, 0.4, 0.2), [CAPTION, "1girl, solo, smile, tree", ""]),
    ],
)
def test_runs_of_yesterday_get_the_same_captions_today(asked: CaptionChanges, captions: list[str]) -> None:
    assert [change(CAPTION, asked, number) for number in range(len(captions))] == captions


# --- the text before tags are told apart ------------------------------------------------------------------------------


def test_the_first_line_counts_unless_one_is_drawn() -> None:
    lines = "a, b\n\n  \r\nc\nd, e"
    assert change(lines, CaptionChanges()) == plain_caption(lines, CaptionChanges()) == "a, b"
    assert change("a\r\nb", CaptionChanges()) == "a"
    assert change("", CaptionChanges(wildcard=True)) == "" == change("\n \n", CaptionChanges(wildcard=True))
    counts = Counter(change(lines, CaptionChanges(wildcard=True), number) for number in range(600))
    assert set(counts) == {"a, b", "c", "d, e"} and all(140 < count < 260 for count in counts.values())
    assert plain_caption(lines, CaptionChanges(wildcard=True)) == "a, b"


def test_wildcards_are_drawn_only_when_asked_and_at_each_use() -> None:
    caption = "{red|blue} hat\n{{x}}"
    assert (
        change(caption, CaptionChanges()) == plain_caption(caption, CaptionChanges(wildcard=True)) == "{red|blue} hat"
    )
    drawn = {change(caption, CaptionChanges(wildcard=True), number) for number in range(60)}
    assert drawn == {"red hat", "blue hat", "{x}"}


def test_prefix_and_suffix_have_wildcards_of_their_own() -> None:
    asked = CaptionChanges(wildcard=True, prefix="{photo|picture} of", suffix="{{ x }}{a|b}")
    drawn = {change("{", asked, number) for number in range(60)}  # its brace finds no partner in them
    assert drawn == {f"{first} of {{ {{ x }}{last}" for first in ("photo", "picture") for last in "ab"}


def test_wildcards_are_drawn_before_tags_are_counted() -> None:
    asked = CaptionChanges(shuffle=True, keep_tokens=1, wildcard=True)
    drawn = {change("{a, b|c}, d", asked, number) for number in range(100)}
    assert drawn == {"a, b, d", "a, d, b", "c, d"}
    marked = replace(asked, keep_tokens=0, keep_tokens_separator="@@")
    drawn = {change("{a @@ b|c}, d", marked, number) for number in range(100)}
    assert drawn == {"a, b, d", "a, d, b", "c, d", "d, c"}


def test_wildcards_leave_the_other_draws_as_they_are() -> None:
    caption = "{x|y}, b, c, d, e"
    asked = CaptionChanges(shuffle=True, tag_dropout_rate=0.3, dropout_rate=0.3)
    for number in range(50):
        drawn = change(caption, replace(asked, wildcard=True), number)
        assert re.sub("[xy]", "{x|y}", drawn) == change(caption, asked, number)
        with_prefix = change(caption, CaptionChanges(wildcard=True, prefix="{1|2|3}"), number)
        assert with_prefix[2:] == change(caption, CaptionChanges(wildcard=True), number)


@pytest.mark.parametrize(
    ("caption", "prefix", "suffix", "framed"),
    [
        ("a, b", "p", "s", "p a, b s"),
        ("a, b", "p,", ", s", "p, a, b , s"),
        ("a\nb", "p", "", "p a"),
        ("", "p", "s", "p s"),
        ("", "", "", ""),
    ],
)
def test_prefix_and_suffix(caption: str, prefix: str, suffix: str, framed: str) -> None:
    asked = CaptionChanges(prefix=prefix, suffix=suffix)
    assert change(caption, asked) == plain_caption(caption, asked) == framed


def test_kept_tags_are_counted_with_the_prefix() -> None:
    asked = CaptionChanges(keep_tokens=2, tag_dropout_rate=1.0, prefix="p, q,", suffix=", s")
    assert change("a, b", asked) == "p, q"
    assert change("a, b", replace(asked, prefix="p")) == "p a, b"
    assert change("a, b", replace(asked, tag_dropout_rate=0.0, dropout_rate=1.0)) == ""  # dropped is dropped


def test_captions_are_empty_in_every_nth_epoch() -> None:
    for every, empty in ((0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (2, [2, 4, 6]), (3, [3, 6])):
        asked = CaptionChanges(shuffle=True, prefix="p", dropout_every_n_epochs=every)
        found = [epoch for epoch in range(1, 8) if change(CAPTION, asked, epoch, Moment(epoch - 1, 0, 9)) == ""]
        assert found == empty


# --- marks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "still"),
    [
        ("a, b ||| c", "a, b, c"),
        ("a, b, |||, c ||| d, e", "a, b, c, d, e"),
        ("||| a,b", "a, b"),
        ("a,b |||", "a, b"),
        ("|||", ""),
        ("a ||| b ||| c ||| d", "a, b, c, d"),
        ("(a ||| b), c", "(a , b), c"),  # in brackets a comma takes its place
        ("a,b", "a,b"),  # without marks as written
        ("a;;;b,c ||| d", "a,b, c, d"),
        ("a;;;b,c", "a,b,c"),
    ],
)
def test_marks_are_not_trained(caption: str, still: str) -> None:
    asked = CaptionChanges(keep_tokens_separator="|||", secondary_separator=";;;")
    assert change(caption, asked) == plain_caption(caption, asked) == still
    moved = replace(asked, shuffle=True, keep_tokens=9)  # without a mark all are kept
    assert not re.search(r"\|\|\||;;;", change(caption, moved))


def test_tags_before_the_mark_stay_first_and_those_behind_a_second_last() -> None:
    asked = CaptionChanges(shuffle=True, keep_tokens=1, keep_tokens_separator="|||")
    drawn = {change("a, b ||| c, d, e ||| f, (g ||| h)", asked, number) for number in range(200)}
    assert len(drawn) == 6 and all(re.fullmatch(r"a, b(, [cde]){3}, f, \(g , h\)", caption) for caption in drawn)
    assert {change("a, b, c", asked, number) for number in range(50)} == {"a, b, c", "a, c, b"}  # no mark: by number
    assert {change("||| a, b", asked, number) for number in range(50)} == {"a, b", "b, a"}  # the mark wins
    dropped = replace(asked, shuffle=False, tag_dropout_rate=1.0)
    assert change("a, b ||| c, d ||| e", dropped) == "a, b, e"


def test_the_mark_may_come_from_prefix_and_suffix() -> None:
    asked = CaptionChanges(shuffle=True, keep_tokens_separator="|||", prefix="p |||", suffix="||| s")
    assert {change("a, b", asked, number) for number in range(50)} == {"p, a, b, s", "p, b, a, s"}


def test_joined_tags_move_and_go_together() -> None:
    asked = CaptionChanges(shuffle=True, tag_dropout_rate=0.3, secondary_separator=";;;")
    drawn = {change("a;;;b, c, d;;; e;;;f", asked, number) for number in range(300)}
    parts = ["a,b", "c", "d, e,f"]
    assert drawn >= {"", *parts, "a,b, c, d, e,f", "d, e,f, c, a,b"}
    for caption in drawn:
        assert re.sub("|".join(parts), "x", caption) in ("", "x", "x, x", "x, x, x")


def test_another_separator_for_captions() -> None:
    asked = CaptionChanges(shuffle=True, separator=";", secondary_separator="+", keep_tokens=1)
    drawn = {change("a cat, b;x;y+z", asked, number) for number in range(50)}
    assert drawn == {"a cat, b;x;y;z", "a cat, b; y;z; x"}
    with_blank = CaptionChanges(shuffle=True, separator=", ")
    assert {change("a,b, c", with_blank, number) for number in range(30)} == {"a,b, c", "c, a,b"}


# --- the warm-up of tags ----------------------------------------------------------------------------------------------


def tags_at(step: int, **asked: Any) -> list[str]:
    return split_tags(change(CAPTION, CaptionChanges(**asked), 0, Moment(0, step, 100)))


def test_tags_are_added_in_a_straight_line() -> None:
    assert [len(tags_at(step, warmup_step=10)) for step in range(13)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6]
    assert [len(tags_at(step, warmup_step=4, warmup_min=3)) for step in range(6)] == [3, 3, 4, 5, 6, 6]
    assert [tags_at(step, warmup_step=4, warmup_min=3) for step in (0, 3)] == [TAGS[:3], TAGS[:5]]
    assert [len(tags_at(step, warmup_step=8, keep_tokens=2)) for step in (0, 4, 8)] == [3, 4, 6]  # kept ones beside


@given(st.integers(1, 9), st.integers(1, 60), st.integers(0, 3), st.booleans())
def test_the_warm_up_only_grows_and_ends_in_time(least: int, end: int, kept: int, shuffle: bool) -> None:
    counts = [
        len(tags_at(step, warmup_min=least, warmup_step=end, keep_tokens=kept, shuffle=shuffle))
        for step in range(end + 1)
    ]
    assert counts[0] == kept + min(least, len(TAGS) - kept) and counts[end] == len(TAGS)
    assert counts == sorted(counts)


@pytest.mark.parametrize(("share", "end"), [(0.1, 10), (0.5, 50), (0.999, 99), (0.001, 0), (0, 0), (1, 1)])
def test_a_share_of_the_run(share: float, end: int) -> None:
    counts = [len(tags_at(step, warmup_step=share)) for step in range(100)]
    assert counts.index(len(TAGS)) == end and set(counts[end:]) == {len(TAGS)}


def test_the_warm_up_leaves_the_other_draws_as_they_are() -> None:
    asked = CaptionChanges(shuffle=True, tag_dropout_rate=0.3, keep_tokens=1)
    for number in range(30):
        late = split_tags(change(CAPTION, replace(asked, warmup_step=50), number, Moment(0, 50, 100)))
        assert late == split_tags(change(CAPTION, asked, number))
        early = split_tags(change(CAPTION, replace(asked, warmup_step=50), number, Moment(0, 25, 100)))
        assert early == [tag for tag in late if tag in TAGS[:4]]


# --- all together -----------------------------------------------------------------------------------------------------


@given(marked, marked_changes, st.integers(0, 9), moments)
def test_a_use_has_one_caption_of_tags_of_the_text(
    caption: str, asked: CaptionChanges, number: int, moment: Moment
) -> None:
    changed = change(caption, asked, number, moment)
    assert changed == change(caption, asked, number, moment)
    framed = Counter(re.findall(r"\w", f"{asked.prefix}{caption}{asked.suffix}"))
    assert Counter(re.findall(r"\w", changed)) <= framed
    assert not asked.keep_tokens_separator or asked.keep_tokens_separator not in changed
    assert not asked.secondary_separator or asked.secondary_separator not in changed
    if not asked.varies:
        later = Moment(moment.epoch + 1, 99 - moment.step, 100)
        assert changed == change(caption, asked, number + 1, later)
    if not (asked.varies or asked.dropout_rate or asked.dropout_every_n_epochs or asked.tag_dropout_rate):
        assert changed == plain_caption(caption, asked)


def test_the_steps_of_the_guide_together() -> None:
    asked = CaptionChanges(
        shuffle=True,
        keep_tokens=1,
        tag_dropout_rate=0.3,
        dropout_rate=0.1,
        wildcard=True,
        secondary_separator=";;;",
        prefix="photo of",
        warmup_step=50,
    )
    caption = "mira cat, sofa;;;blanket, window, {morning|evening} light"
    late, early = Moment(1, 50, 100), Moment(1, 30, 100)  # all three movable tags, and two
    drawn = {change(caption, asked, number, late) for number in range(300)}
    assert {"", "photo of mira cat", "photo of mira cat, evening light, sofa,blanket"} <= drawn
    assert all(text == "" or text.startswith("photo of mira cat") for text in drawn)
    drawn = {change(caption, asked, number, early) for number in range(300)}
    parts = ("", ", window", ", sofa,blanket", ", window, sofa,blanket", ", sofa,blanket, window")
    assert drawn == {"", *(f"photo of mira cat{part}" for part in parts)}


@pytest.mark.parametrize(
    "asked",
    [
        SHUFFLED,
        CaptionChanges(tag_dropout_rate=0.5),
        CaptionChanges(dropout_rate=0.5),
        CaptionChanges(dropout_rate=0.5, keep_tokens=1, tag_dropout_rate=1.0),
        CaptionChanges(dropout_every_n_epochs=2),
        CaptionChanges(wildcard=True),
        CaptionChanges(wildcard=True, tag_dropout_rate=1.0, keep_tokens=1),
        CaptionChanges(warmup_step=20),
        CaptionChanges(warmup_step=0.2),
    ],
)
def test_captions_that_vary_do(asked: CaptionChanges) -> None:
    moments = [Moment(epoch, 10 * epoch, 100) for epoch in range(10)]
    drawn = {change("{a|b}, " + CAPTION, asked, number, moment) for number, moment in enumerate(moments)}
    assert asked.varies and len(drawn) > 1


@pytest.mark.parametrize(
    "asked",
    [
        CaptionChanges(keep_tokens=2, prefix="p", suffix="s", keep_tokens_separator="|||", secondary_separator=";;;"),
        CaptionChanges(dropout_rate=1.0, shuffle=True),
        CaptionChanges(dropout_every_n_epochs=1, wildcard=True),
        CaptionChanges(tag_dropout_rate=1.0, keep_tokens=2, shuffle=True, warmup_step=20),
    ],
)
def test_captions_that_do_not_vary(asked: CaptionChanges) -> None:
    moments = [Moment(epoch, 10 * epoch, 100) for epoch in range(10)]
    drawn = {change("{a|b}, " + CAPTION, asked, number, moment) for number, moment in enumerate(moments)}
    assert not asked.varies and len(drawn) == 1
