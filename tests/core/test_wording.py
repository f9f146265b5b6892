"""Shared pieces of sentences."""

from __future__ import annotations

from library.core.wording import some_of


def test_names_are_joined_and_the_rest_is_counted() -> None:
    assert some_of(["a", "b"], 2) == "a, b"
    assert some_of(["a", "b"], 9) == "a, b and 7 more"
