"""What is not in the small world: it is nowhere in it, its pictures vary, and trainers read them as they are meant."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.toy_world.captions import sentence
from examples.toy_world.novelties import (
    BRICKS,
    CRESCENT,
    NOVELTIES,
    TEAL_PAINT,
    TOADSTOOL,
    WORD,
    Novelty,
    examples_of,
    picture_of,
    regularisation_examples,
    write_examples,
)
from examples.toy_world.world import (
    BACKGROUNDS,
    COLOURS,
    PICTURE_SIZES,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    draw_scene,
    random_scene,
)
from library.core.randomness import NO_EPOCH, generator
from library.core.sizes import Size
from library.data.description.config import describe
from library.data.index.index import build_index
from library.options.data import DataOptions

SCENE = Scene("star", "green", "desert", "right", "small")
WORDS = {"shape": SHAPES, "colour": tuple(COLOURS), "background": BACKGROUNDS}
every = pytest.mark.parametrize("novelty", NOVELTIES.values(), ids=NOVELTIES)


def draws(number: int) -> np.random.Generator:
    return generator(number, NO_EPOCH, "", "test of novelties")


@every
def test_nothing_in_the_world_looks_like_it(novelty: Novelty) -> None:
    """Beside the same scene with each word of the world in its place, plainly many pixels differ plainly."""
    for number, size in enumerate(PICTURE_SIZES[:3]):
        scene = random_scene(draws(number))
        new = picture_of(novelty, scene, *size, draws(number)).astype(float)
        assert new.shape == (size[1], size[0], 3)
        known = [replace(scene, **{novelty.part: word}) for word in WORDS[novelty.part]]
        if novelty.hides:
            known = [replace(other, colour=colour) for other in known for colour in COLOURS]
        for other in known:
            old = draw_scene(other, *size, draws(number)).astype(float)
            assert (np.abs(new - old).max(-1) > 24).mean() > 0.015, other


@every
def test_the_rest_of_the_scene_is_that_of_the_world(novelty: Novelty) -> None:
    """The same place and background (or shape): only what is new differs."""
    draw = draws(0)
    scene = replace(random_scene(draw), background="paper", size="large", place="centre")
    new = picture_of(novelty, scene, 64, 64, draws(1)).astype(float)
    old = draw_scene(scene, 64, 64, draws(1)).astype(float)
    same = np.abs(new - old).max(-1) < 3
    corners = np.s_[:4, :4], np.s_[-4:, -4:]
    if novelty is BRICKS:
        assert same[28:36, 28:36].any() or scene.shape == "ring"
        assert not any(same[corner].any() for corner in corners)
    else:
        assert all(same[corner].all() for corner in corners)


@pytest.mark.parametrize(
    ("novelty", "prompt", "class_prompt"),
    [
        (CRESCENT, "a small green sks ring on the right, desert background", "a ring"),
        (TOADSTOOL, "a small sks toadstool on the right, desert background", "a heart"),
        (TEAL_PAINT, "a small sks star on the right, desert background", "a blue shape"),
        (BRICKS, "a small green star on the right, sks background", "a shape, tiles background"),
    ],
)
def test_prompts(novelty: Novelty, prompt: str, class_prompt: str) -> None:
    assert novelty.prompt(SCENE) == prompt
    assert novelty.class_prompt() == class_prompt
    assert getattr(novelty.class_scene(SCENE), novelty.part) == novelty.class_word


@every
def test_its_words_are_not_of_the_world(novelty: Novelty) -> None:
    assert WORD in novelty.thing.split()
    known = {word for words in WORDS.values() for word in words} | {*PLACES, *SIZES}
    assert WORD not in known
    assert novelty.class_word in WORDS[novelty.part]


@every
@pytest.mark.parametrize("seed", (0, 1))
def test_ten_pictures_vary(novelty: Novelty, seed: int) -> None:
    """No two show the same scene, and no word is much rarer than it could be."""
    captions = [example.caption for example in examples_of(novelty, 10, seed)]
    assert len(set(captions)) == 10
    lists = {**WORDS, "place": ("on the left", "in the centre", "on the right"), "size": tuple(SIZES)}
    for part, words in lists.items():
        if part == novelty.part or part in novelty.hides:
            continue
        counts = Counter(word for caption in captions for word in words if f" {word}" in caption)
        assert counts.total() == 10
        assert max(counts.values()) <= -(-10 // len(words)) + 1, counts
        assert len(counts) >= min(len(words), 6), counts


@every
def test_pictures_follow_from_the_seed_and_their_number(novelty: Novelty) -> None:
    few, many, other = examples_of(novelty, 3, 5), examples_of(novelty, 6, 5), examples_of(novelty, 3, 6)
    for first, second in zip(few, many, strict=False):
        assert first.caption == second.caption
        assert np.array_equal(first.picture, second.picture)
    assert [example.caption for example in few] != [example.caption for example in other]


def test_pictures_of_any_size() -> None:
    assert examples_of(TOADSTOOL, 1, 0, (96, 64))[0].picture.shape == (64, 96, 3)
    assert regularisation_examples(TOADSTOOL, 1, 0, (64, 128))[0].picture.shape == (128, 64, 3)


def test_the_edge_of_a_figure_is_not_darkened() -> None:
    """The red of cap, dots and stem is 208 and more, and so is the paper's: nothing in between may be darker."""
    scene = Scene("heart", "red", "paper", "centre", "small")
    for number in range(5):
        picture = picture_of(TOADSTOOL, scene, 64, 64, draws(number))
        assert picture[..., 0].min() >= 207
        assert (picture[..., 1] < 60).any()  # the cap is there


@every
def test_regularisation_shows_the_class(novelty: Novelty) -> None:
    examples = regularisation_examples(novelty, 8, 3)
    assert len({example.picture.tobytes() for example in examples}) == 8
    for number, example in enumerate(examples):
        assert novelty.class_word in example.caption
        assert WORD not in example.caption
        assert (example.caption == novelty.class_prompt()) == (number % 2 == 1)
    assert [e.caption for e in examples] == [e.caption for e in regularisation_examples(novelty, 8, 3)]
    assert not {e.picture.tobytes() for e in examples} & {e.picture.tobytes() for e in examples_of(novelty, 8, 3)}


def test_regularisation_pictures_are_of_the_world() -> None:
    """Where the caption says all, a picture of the world with those words is found that is the same but for places."""
    for novelty in NOVELTIES.values():
        example = regularisation_examples(novelty, 1, 0)[0]
        captions = {
            sentence(Scene(shape, colour, ground, place, size))
            for shape in SHAPES
            for colour in COLOURS
            for ground in BACKGROUNDS
            for place in PLACES
            for size in SIZES
        }
        assert example.caption in captions


@every
def test_trainers_read_the_folders(novelty: Novelty, tmp_path: Path) -> None:
    examples, class_examples = examples_of(novelty, 4, 0), regularisation_examples(novelty, 3, 0)
    write_examples(examples, tmp_path / "train" / novelty.folder(10))
    write_examples(class_examples, tmp_path / "reg" / novelty.class_folder(1))
    options = DataOptions(
        train_data_dir=str(tmp_path / "train"),
        reg_data_dir=str(tmp_path / "reg"),
        resolution=Size(64, 64),
        min_bucket_reso=64,
    )
    index = build_index(describe(options), 1.0)
    for examples_there, is_reg in ((examples, False), (class_examples, True)):
        rows = np.flatnonzero(np.asarray(index.is_reg) == is_reg)
        assert [index.captions[int(row)] for row in rows] == [example.caption for example in examples_there]
        (subset,) = {index.folders[int(index.subset[row])].class_tokens for row in rows}
        assert subset == (novelty.class_word if is_reg else novelty.thing)
    assert set(np.asarray(index.repeats)[~np.asarray(index.is_reg)]) == {10}
    with Image.open(tmp_path / "train" / novelty.folder(10) / "01.png") as picture:
        assert np.array_equal(np.asarray(picture), examples[0].picture)
