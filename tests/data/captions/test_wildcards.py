"""Wildcards: every part is drawn and nothing but parts, nested ones included; doubled braces are text."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.randomness import generator
from library.data.captions.wildcards import draw_wildcards

DRAWS = 400
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "captions.md"
Tree = list["str | list[Tree]"]  # a text: pieces of plain text, and wildcards as lists of their parts


def draws(number: int) -> np.random.Generator:
    return generator(0, number, "0/0/a.png#0", "caption")


def all_drawn(text: str, count: int = DRAWS) -> Counter[str]:
    return Counter(draw_wildcards(text, draws(number)) for number in range(count))


@pytest.mark.parametrize(
    ("text", "results"),
    [
        ("a {red|blue|green} hat", {"a red hat", "a blue hat", "a green hat"}),
        ("{a|b}{c|d}", {"ac", "ad", "bc", "bd"}),
        ("{a|}", {"a", ""}),
        ("{|}", {""}),
        ("{a||b}", {"a", "", "b"}),
        ("{ a | b }", {" a ", " b "}),  # blanks are part of the parts
        ("{one part}", {"one part"}),
        ("x{}y", {"xy"}),
        # nested
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{{a|b} c|d}", {"a c", "b c", "d"}),
        ("{{a|b}|{c|d}}", {"a", "b", "c", "d"}),
        ("{a|{b|{c|d}}}", {"a", "b", "c", "d"}),
        ("{{a|b} {c|d}}", {"a c", "a d", "b c", "b d"}),
        # with weights and commas
        ("{(a:1.2)|b}", {"(a:1.2)", "b"}),
        ("({a|b}:1.3)", {"(a:1.3)", "(b:1.3)"}),
        ("{a, b|[c]}, d", {"a, b, d", "[c], d"}),
        ("{(a|b)|c}", {"(a", "b)", "c"}),  # brackets hold no bars together
        # doubled braces are text
        ("{{a}}", {"{a}"}),
        ("{{a|b}}", {"{a|b}"}),
        ("{{}}", {"{}"}),
        ("{{{a|b}}}", {"{a}", "{b}"}),
        ("{{{{a}}}}", {"{{a}}"}),
        ("{a|{{x}}}", {"a", "{x}"}),
        ("{{{x}}|a}", {"{x}", "a"}),
        ("{a {{x}} b|c}", {"a {x} b", "c"}),
        ("{{ a {b|c} }}", {"{ a b }", "{ a c }"}),
        # a brace without a partner is text, doubled it is one
        (":}", {":}"}),
        ("{a|b", {"{a|b"}),
        ("a|b}", {"a|b}"}),
        (":{ {a|b}", {":{ a", ":{ b"}),
        ("{a|b} :}", {"a :}", "b :}"}),
        ("}{", {"}{"}),
        ("a }} b {{ c", {"a } b { c"}),
        # bars elsewhere are text
        ("a|b", {"a|b"}),
        ("a ||| {b|c}", {"a ||| b", "a ||| c"}),
        ("", {""}),
        ("犬 {猫|狐}", {"犬 猫", "犬 狐"}),
    ],
)
def test_every_part_is_drawn_and_nothing_else(text: str, results: set[str]) -> None:
    assert set(all_drawn(text)) == results


def test_the_examples_of_the_guide() -> None:
    rows = re.findall(r"^\| `(.+)` \| (`.+`.*) \|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    examples = {written.replace("\\|", "|"): set(re.findall("`([^`]+)`", told)) for written, told in rows}
    assert len(examples) >= 7
    for written, told in examples.items():
        assert set(all_drawn(written)) == told


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_all_parts_are_equally_likely(parts: int) -> None:
    counts = all_drawn("{" + "|".join("abcde"[:parts]) + "}", 200 * parts)
    assert len(counts) == parts and all(150 < count < 250 for count in counts.values())


def test_wildcards_are_drawn_by_themselves() -> None:
    counts = all_drawn("{a|b}{c|d}", 800)
    assert all(150 < counts[first + second] < 250 for first, second in product("ab", "cd"))


@given(st.text(alphabet="ab|,{} ", max_size=30))
def test_text_with_doubled_braces_is_itself(text: str) -> None:
    assert draw_wildcards(doubled(text), draws(0)) == text


@given(st.text(), st.integers(0, 99))
def test_any_text_is_read_and_drawn_the_same_again(text: str, number: int) -> None:
    drawn = draw_wildcards(text, draws(number))
    assert drawn == draw_wildcards(text, draws(number))
    assert not (Counter(drawn) - Counter(text))  # nothing is added
    if not re.search(r"[{}]", text):
        assert drawn == text


# Printed trees are read as the same trees. Text inside is balanced, because a brace of its own would find a partner.
plain = st.sampled_from(["", "a", "bc ", ",", "(x:1.2)", "{}", "{x}"])
trees = st.recursive(
    st.lists(plain, max_size=2),
    lambda inner: st.lists(plain | st.lists(inner, min_size=1, max_size=3), max_size=3),
    max_leaves=6,
)


def doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def printed(tree: Tree) -> str:
    """The tree as a person writes it; a blank keeps neighbouring braces from counting as doubled."""
    pieces = (
        doubled(piece) if isinstance(piece, str) else "{ " + " | ".join(printed(part) for part in piece) + " }"
        for piece in tree
    )
    return " ".join(pieces)


def meanings(tree: Tree) -> set[str]:
    """All texts that a tree stands for, without blanks."""
    choices = [
        {piece} if isinstance(piece, str) else set().union(*(meanings(part) for part in piece)) for piece in tree
    ]
    return {"".join(chosen).replace(" ", "") for chosen in product(*choices)}


@given(trees, st.integers(0, 99))
def test_what_is_drawn_is_one_of_the_meanings(tree: Tree, number: int) -> None:
    assert draw_wildcards(printed(tree), draws(number)).replace(" ", "") in meanings(tree)


def test_wildcards_as_deep_as_a_caption_allows() -> None:
    deep = "{a|" * 5_000 + "b" + "}" * 5_000
    assert set(all_drawn(deep, 5)) <= {"a", "b"}
    assert draw_wildcards("{" * 50_000, draws(0)) == "{" * 25_000
    assert draw_wildcards("{" * 50_001 + "}" * 50_001, draws(0)) == "{" * 25_000 + "}" * 25_000
