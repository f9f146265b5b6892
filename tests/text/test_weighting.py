from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from library.text.weighting import WeightedText, has_unbalanced_brackets, parse_weights, print_weights

UP, DOWN = 1.1, 1 / 1.1

CASES = [
    ("", []),
    ("a cat", [("a cat", 1.0)]),
    ("a (cat)", [("a ", 1.0), ("cat", UP)]),
    ("a [cat] b", [("a ", 1.0), ("cat", DOWN), (" b", 1.0)]),
    ("(cat:1.3)", [("cat", 1.3)]),
    ("(cat:0.25) dog", [("cat", 0.25), (" dog", 1.0)]),
    ("(cat : 1.3 )", [("cat ", 1.3)]),
    ("(cat:+1.3)(dog:-1.)", [("cat", 1.3), ("dog", -1.0)]),
    ("(cat:.5)", [("cat", 0.5)]),
    ("(cat:0)", [("cat", 0.0)]),
    ("((cat))", [("cat", UP * UP)]),
    ("[[cat]]", [("cat", DOWN * DOWN)]),
    ("([cat])", [("cat", 1.0)]),
    ("(a (b:1.5) c:2)", [("a ", 2.0), ("b", 3.0), (" c", 2.0)]),
    ("([a] b:1.5)", [("a", DOWN * 1.5), (" b", 1.5)]),
    ("a (b (c", [("a ", 1.0), ("b ", UP), ("c", UP * UP)]),
    ("a [b", [("a ", 1.0), ("b", DOWN)]),
    ("a) b] c", [("a) b] c", 1.0)]),
    ("a:1.3) b", [("a:1.3) b", 1.0)]),
    ("[a:1.3)", [("a:1.3)", DOWN)]),
    ("(a [b) c]", [("a ", UP), ("b", UP * DOWN), (" c", DOWN)]),
    ("time: 12:30, 16:9", [("time: 12:30, 16:9", 1.0)]),
    ("(ratio 16:9 wide)", [("ratio 16:9 wide", UP)]),
    ("(a:1.3.4)", [("a:1.3.4", UP)]),
    ("(a:)", [("a:", UP)]),
    ("(a:.)", [("a:.", UP)]),
    ("(a:1.3 b)", [("a:1.3 b", UP)]),
    ("[a:1.3]", [("a:1.3", DOWN)]),
    (r"\(a\) \[b\] \\", [("(a) [b] \\", 1.0)]),
    (r"(a\):1.5)", [("a)", 1.5)]),
    (r"\\(a)", [("\\", 1.0), ("a", UP)]),
    (r"\o/ C:\x", [(r"\o/ C:\x", 1.0)]),
    ("a\\", [("a\\", 1.0)]),
    ("()[]((", []),
    ("(a)(b)c", [("ab", UP), ("c", 1.0)]),
    ("a (b:1.0) c", [("a b c", 1.0)]),
    ("(東京:1.2), 🐱", [("東京", 1.2), (", 🐱", 1.0)]),
]


@pytest.mark.parametrize(("text", "pieces"), CASES)
def test_the_notation_is_read(text: str, pieces: list[tuple[str, float]]) -> None:
    parsed = parse_weights(text)
    assert [piece.text for piece in parsed] == [words for words, _ in pieces]
    assert [piece.weight for piece in parsed] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


NOTATION = st.text(alphabet=st.sampled_from(list("()[]\\:.+-19 ab,東")), max_size=40)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PIECES = st.lists(st.builds(WeightedText, st.text(min_size=1), FINITE), max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(NOTATION | st.text())
@example("(a:" + "9" * 400 + ")")
@example("(" * 3000 + "x")
def test_any_text_is_read_and_loses_nothing_but_marks(text: str) -> None:
    pieces = parse_weights(text)
    assert all(piece.text for piece in pieces)
    assert all(left.weight != right.weight for left, right in pairwise(pieces))
    rest = iter(text)
    assert all(character in rest for piece in pieces for character in piece.text)  # in the order of the text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PIECES)
@example([WeightedText(":1.3)", 1.0), WeightedText("a:2", 1e-7), WeightedText("\\", -2.5), WeightedText("(", 1e20)])
def test_what_is_printed_is_read_again(pieces: list[WeightedText]) -> None:
    joined: list[WeightedText] = []
    for piece in pieces:
        if joined and joined[-1].weight == piece.weight:
            joined[-1] = WeightedText(joined[-1].text + piece.text, piece.weight)
        else:
            joined.append(piece)
    assert parse_weights(print_weights(pieces)) == joined
    assert not has_unbalanced_brackets(print_weights(pieces))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(NOTATION)
def test_reading_printing_reading_changes_nothing(text: str) -> None:
    pieces = parse_weights(text)
    assert parse_weights(print_weights(pieces)) == pieces


def test_the_printed_form() -> None:
    pieces = [WeightedText("a (b) \\ ", 1.0), WeightedText("[c]", 1.3), WeightedText("", 2.0), WeightedText("d", 1e-5)]
    assert print_weights(pieces) == r"a \(b\) \\ (\[c\]:1.3)(d:0.00001)"


@pytest.mark.parametrize("text", ("", "a", "(a)", "[a (b:1.2)]", r"\( \] \\", "(a [b) c]", r"\\(a)", "(a) [b]"))
def test_balanced_brackets(text: str) -> None:
    assert not has_unbalanced_brackets(text)


@pytest.mark.parametrize(
    "text", ("(", ")", "[", "]", "(a]", "a :)", ")(", "(a:1.2", "a:1.2)", r"\(a)", r"\\(a\)", "((a)")
)
def test_unbalanced_brackets(text: str) -> None:
    assert has_unbalanced_brackets(text)
