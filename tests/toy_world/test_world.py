"""The drawn world: what is random comes from the generator alone, every word is seen, shapes stay inside."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.toy_world.world import (
    BACKGROUNDS,
    COLOURS,
    PICTURE_SIZES,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    background,
    draw_scene,
    placed,
    random_scene,
    shape_mask,
)
from library.core.randomness import NO_EPOCH, generator

WORDS = dict(
    zip((field.name for field in fields(Scene)), map(tuple, (SHAPES, COLOURS, BACKGROUNDS, PLACES, SIZES)), strict=True)
)
SCENE = Scene("heart", "red", "sky", "centre", "large")
DRAWS = 12  # of each place and size


def draws(number: int = 0) -> np.random.Generator:
    return generator(number, NO_EPOCH, "", "test of the world")


def drawn(scene: Scene, size: tuple[int, int] = (64, 64), number: int = 0) -> NDArray[np.uint8]:
    picture = draw_scene(scene, *size, draws(number))
    assert (picture.shape, picture.dtype) == ((size[1], size[0], 3), np.uint8)
    return picture


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_the_generator_alone_decides(size: tuple[int, int]) -> None:
    first = drawn(SCENE, size)
    np.random.default_rng(1).random(5)  # what others draw is no matter
    assert np.array_equal(first, drawn(SCENE, size))
    assert not np.array_equal(first, drawn(SCENE, size, number=1))


def test_a_generator_goes_on_from_scene_to_scene() -> None:
    one = draws()
    first, second = (draw_scene(SCENE, 64, 64, one) for _ in range(2))
    assert not np.array_equal(first, second)
    again = draws()
    assert np.array_equal(first, draw_scene(SCENE, 64, 64, again))
    assert np.array_equal(second, draw_scene(SCENE, 64, 64, again))


@pytest.mark.parametrize("background_word", BACKGROUNDS)
@pytest.mark.parametrize("part", WORDS)
def test_every_word_is_seen(part: str, background_word: str) -> None:
    """On every background each word of a list makes a picture that differs plainly from those of the others."""
    scene = replace(SCENE, background=background_word)
    pictures = [drawn(replace(scene, **{part: word})).astype(float) for word in WORDS[part]]
    for first, second in combinations(pictures, 2):
        assert (np.abs(first - second).max(-1) > 24).mean() > 0.02  # of all pixels


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_shapes_stay_inside(size: tuple[int, int]) -> None:
    width, height = size
    for shape, place, kind in ((shape, place, kind) for shape in SHAPES for place in PLACES for kind in SIZES):
        draw = draws()
        outline = shape_mask(shape, 64)
        for _ in range(DRAWS):
            cover, rows, columns = placed(width, height, outline, place, SIZES[kind], draw)
            assert cover.shape == (rows.stop - rows.start, columns.stop - columns.start)
            assert rows.start >= 1 and columns.start >= 1 and rows.stop <= height - 1 and columns.stop <= width - 1
            assert cover.max() > 0.99


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_places_and_sizes_never_meet(size: tuple[int, int]) -> None:
    """However they vary, left of 0.4 is left, from there to 0.6 is centre; small and large are told by the side."""
    width, height = size
    outline, draw = shape_mask("square"), draws()
    sides: dict[str, list[int]] = {kind: [] for kind in SIZES}
    for kind in SIZES:
        for number, place in enumerate(PLACES):
            for _ in range(DRAWS):
                _, _, columns = placed(width, height, outline, place, SIZES[kind], draw)
                middle = (columns.start + columns.stop) / 2 / width
                assert int(middle > 0.4) + int(middle > 0.6) == number
                sides[kind].append(columns.stop - columns.start)
    assert max(sides["small"]) * 1.08 < min(sides["large"])


def test_every_word_is_equally_likely() -> None:
    draw, count = draws(), 2000
    scenes = [random_scene(draw) for _ in range(count)]
    for part, words in WORDS.items():
        counts = Counter(getattr(scene, part) for scene in scenes)
        assert set(counts) == set(words)
        expected = count / len(words)
        # five standard deviations
        assert all(abs(found - expected) < 5 * np.sqrt(expected) for found in counts.values())


@pytest.mark.parametrize("kind", ("tiles", "stripes"))
def test_a_larger_picture_shows_more_of_the_same_background(kind: str) -> None:
    assert np.array_equal(background(kind, 128, 96, draws())[:64, :64], background(kind, 64, 64, draws()))


def test_colours_stay_what_they_are() -> None:
    for name, colour in COLOURS.items():
        middle = drawn(replace(SCENE, shape="square", colour=name, background="paper"))[32, 32].astype(float)
        assert np.abs(middle - colour).max() <= 7


def test_no_word_stands_in_two_lists() -> None:
    words = [word for words in WORDS.values() for word in words]
    assert len(set(words)) == len(words)


def test_unknown_words_are_errors() -> None:
    with pytest.raises(KeyError, match="hexagon"):
        shape_mask("hexagon")
    with pytest.raises(KeyError, match="ocean"):
        background("ocean", 64, 64, draws())
