"""Captions say what is in the scene and nothing else, in sentences and in tags, whole or in part."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import astuple, replace

import numpy as np
import pytest

from examples.toy_world.captions import PARTS, UNSAID, partly_said, random_caption, sentence, tags
from examples.toy_world.train_text_encoder import LONGEST_CAPTION
from examples.toy_world.world import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, random_scene
from library.core.randomness import NO_EPOCH, generator
from library.text.tokenizer import CaptionTokenizer

SCENE = Scene("circle", "red", "meadow", "left", "large")
ALL_WORDS = {*SHAPES, *COLOURS, *BACKGROUNDS, *PLACES, *SIZES}


def draws(number: int = 0) -> np.random.Generator:
    return generator(number, NO_EPOCH, "", "test of captions")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "a large red circle on the left, meadow background"),
        ({"place": "centre"}, "a large red circle in the centre, meadow background"),
        ({"place": "right", "size": UNSAID, "colour": "orange"}, "an orange circle on the right, meadow background"),
        ({"place": UNSAID}, "a large red circle, meadow background"),
        ({"background": UNSAID}, "a large red circle on the left"),
        ({"colour": UNSAID, "size": UNSAID, "place": UNSAID, "background": UNSAID}, "a circle"),
        ({"shape": UNSAID}, "a large red shape on the left, meadow background"),
        (dict.fromkeys(PARTS, UNSAID), "a shape"),
    ],
)
def test_sentences(changes: dict[str, str], said: str) -> None:
    assert sentence(replace(SCENE, **changes)) == said


def test_a_sentence_may_be_opened() -> None:
    assert sentence(SCENE, "a drawing of ") == "a drawing of a large red circle on the left, meadow background"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "red circle, meadow, left, large"),
        ({"place": UNSAID, "colour": UNSAID}, "circle, meadow, large"),
        ({"place": UNSAID, "size": UNSAID, "background": UNSAID}, "red circle"),
    ],
)
def test_tags(changes: dict[str, str], said: str) -> None:
    assert tags(replace(SCENE, **changes)) == said


def test_tags_are_shuffled_behind_the_thing() -> None:
    draw = draws()
    found = Counter(tags(SCENE, draw) for _ in range(300))
    assert len(found) == 6
    assert all(text.startswith("red circle, ") for text in found)
    assert min(found.values()) > 25  # 50 on average


@pytest.mark.parametrize("part", [None, *PARTS[1:]])
def test_captions_say_what_is_there_and_nothing_else(part: str | None) -> None:
    """Both forms, with everything said and with each part left out."""
    draw = draws()
    for _ in range(60):
        scene = random_scene(draw)
        said = scene if part is None else replace(scene, **{part: UNSAID})
        expected = {word for word in astuple(said) if word}
        for caption in (sentence(said), tags(said), tags(said, draw), random_caption(said, draw)):
            assert set(re.findall(r"\w+", caption)) & ALL_WORDS == expected, caption


def test_how_much_is_said() -> None:
    draw, count = draws(), 2000
    scenes = [random_scene(draw) for _ in range(count)]
    said = [partly_said(scene, draw) for scene in scenes]
    for scene, left in zip(scenes, said, strict=True):
        assert left.shape == scene.shape
        assert all(part in (word, UNSAID) for word, part in zip(astuple(scene), astuple(left), strict=True))
    shares = {part: np.mean([getattr(left, part) != UNSAID for left in said]) for part in PARTS[1:]}
    assert all(abs(share - 0.8) < 0.05 for share in shares.values()), shares  # 0.6 + 0.4 / 2
    whole = np.mean([left == scene for scene, left in zip(scenes, said, strict=True)])
    assert abs(whole - 0.625) < 0.05  # 0.6 + 0.4 / 2**4


def test_every_way_to_put_it_is_taken() -> None:
    draw = draws()
    found = Counter(
        "tags" if caption.startswith("red circle") else caption.split(" large")[0]
        for caption in (random_caption(SCENE, draw) for _ in range(1000))
    )
    assert set(found) == {"tags", "a", "a picture of a", "a drawing of a"}
    assert abs(found["tags"] - 400) < 80
    assert abs(found["a"] - 300) < 75


def test_the_longest_caption_fits_the_short_rows() -> None:
    """The text encoder learns most of its steps on short rows, with two words strewn in at most: no end is cut off."""
    longest = max(
        (
            sentence(Scene(shape, colour, background, place, size), "a picture of ")
            for shape in SHAPES
            for colour in COLOURS
            for background in BACKGROUNDS
            for place in PLACES
            for size in SIZES
        ),
        key=len,
    )
    draw, tokenize = draws(), CaptionTokenizer("sd1")
    captions = [longest, *(random_caption(random_scene(draw), draw) for _ in range(60))]
    ends = tokenize(captions)[0][:, 0].argmax(1)
    assert int(ends.max()) + 1 <= LONGEST_CAPTION
