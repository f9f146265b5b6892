"""The lines of keys are those of the file, whatever stands in its strings and however its tables are ordered."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.toml_lines import Keys, find_key_lines

TEXT = '''# a comment with key = 1
[general]
a = 1 # [[datasets]]
"b c" = "x # y = 3"
text = """
num_repeats = 3
\\""" [fake]
"""

[[datasets]]
resolution = 512
sizes = [
  [512, 768],   # two
  [64, 64],
]
[[datasets.subsets]]
image_dir = 'C:\\pictures'
[[datasets.subsets]]
image_dir = "two"

[other.deep]
key = 1979-05-27

[[datasets]]
inline.dotted = true
subsets = [{ image_dir = "three", num_repeats = 0 }, {image_dir='four',
  }]
'''

EXPECTED: dict[Keys, int] = {
    ("general", "a"): 3,
    ("general", "b c"): 4,
    ("general", "text"): 5,
    ("datasets",): 10,
    ("datasets", 0): 10,
    ("datasets", 0, "resolution"): 11,
    ("datasets", 0, "sizes"): 12,
    ("datasets", 0, "sizes", 1): 14,
    ("datasets", 0, "subsets", 0): 16,
    ("datasets", 0, "subsets", 0, "image_dir"): 17,
    ("datasets", 0, "subsets", 1, "image_dir"): 19,
    ("other", "deep", "key"): 22,
    ("datasets", 1): 24,
    ("datasets", 1, "inline", "dotted"): 25,
    ("datasets", 1, "subsets", 0, "num_repeats"): 26,
    ("datasets", 1, "subsets", 1, "image_dir"): 26,
}


def test_every_key_has_its_line() -> None:
    assert "num_repeats" in TEXT
    lines = find_key_lines(TEXT)
    assert {keys: lines.get(keys) for keys in EXPECTED} == EXPECTED
    assert ("general", "num_repeats") not in lines and ("fake",) not in lines


@pytest.mark.parametrize("mark", ["\u2028", "\x0c", "\x85", "\r"])
def test_only_line_feeds_end_lines(mark: str) -> None:
    end = "\r\n" if mark == "\r" else "\n"
    text = f"a = '''x{mark if mark != chr(13) else ''}y'''{end}b = 1{end}"
    assert find_key_lines(text)[("b",)] == 2


def paths(value: object, way: Keys = ()) -> set[Keys]:
    """Every way to a value of a parsed file."""
    found = {way} if way else set()
    if isinstance(value, dict):
        return found.union(*(paths(part, (*way, key)) for key, part in value.items()), set())
    if isinstance(value, list):
        return found.union(*(paths(part, (*way, number)) for number, part in enumerate(value)), set())
    return found


VALUES = st.recursive(
    st.sampled_from(
        ["1", "-2.5e3", "true", "'a = [1, 2]'", '"\\"} # "', "'''\n[x]\ny = 1\n'''", '"""a\n"b"\n"""', "07:32:00"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[ {', '.join(parts)} ]"),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: "[\n" + " , # ]\n".join(parts) + ",\n]"),
        st.dictionaries(st.sampled_from(["a", "'b.c'", "d-e"]), inner, max_size=2).map(
            lambda parts: "{ " + ", ".join(f"{key} = {value}" for key, value in parts.items()) + " }"
        ),
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(["", "[[t]]", "[[t.u]]", "[s]"]), VALUES), min_size=1, max_size=6))
def test_every_value_of_a_valid_file_is_found(rows: list[tuple[str, str]]) -> None:
    text = "first = 0\n[[t]]\n"
    for number, (head, value) in enumerate(rows):
        if head and not (head == "[s]" and "[s]" in text):
            text += head + "\n"
        text += f"key{number} = {value}\n"
    content = tomllib.loads(text)
    lines = find_key_lines(text)
    assert paths(content) <= set(lines)
    source = text.split("\n")
    for number in range(len(rows)):
        (line,) = {line for keys, line in lines.items() if keys and keys[-1] == f"key{number}"}
        assert source[line - 1].startswith(f"key{number} = ")
