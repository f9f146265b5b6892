"""The judge of the small world: what it says of drawn pictures, as drawn and through the model's VAE."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from examples.toy_world import judge as judge_script
from examples.toy_world.judge import Judge, Verdict, likeness
from examples.toy_world.measure import JUDGE_BOUND, PARTS, Judged, share, through_vae
from examples.toy_world.novelties import (
    BRICKS,
    CRESCENT,
    TEAL_PAINT,
    TOADSTOOL,
    Novelty,
    judge_of,
    picture_of,
    toadstool,
)
from examples.toy_world.world import (
    BACKGROUNDS,
    COLOURS,
    PICTURE_SIZES,
    SHAPES,
    SIZES,
    Scene,
    background,
    draw_scene,
    random_scene,
)
from library.core.errors import run_script
from library.core.randomness import NO_EPOCH, generator
from tests.learning.learning import base_model

Picture = NDArray[np.uint8]

RED_HEART = Scene("heart", "red", "sky", "left", "large")


def draws(number: int = 0) -> np.random.Generator:
    return generator(number, NO_EPOCH, "", "test of the judge")


@cache
def plain_judge() -> Judge:
    return Judge()


@cache
def drawn_scenes(size: tuple[int, int], count: int) -> list[tuple[Scene, Picture]]:
    draw = draws()
    scenes = [random_scene(draw) for _ in range(count)]
    return [(scene, draw_scene(scene, *size, draw)) for scene in scenes]


@cache
def novel_scenes(novelty: Novelty, count: int = 10) -> list[tuple[Scene, Picture]]:
    draw = draws(1)
    scenes = [random_scene(draw) for _ in range(count)]
    return [(scene, picture_of(novelty, scene, 64, 64, draw)) for scene in scenes]


def judged(scenes: Sequence[tuple[Scene, Picture]], judge: Judge) -> list[Judged]:
    return [Judged(scene, (picture.shape[1], picture.shape[0]), judge(picture)) for scene, picture in scenes]


@pytest.mark.parametrize("size", PICTURE_SIZES)
def test_drawn_pictures_are_told_right(size: tuple[int, int]) -> None:
    assert share(judged(drawn_scenes(size, 12), plain_judge()), *PARTS) >= 11 / 12


def test_every_word_is_told() -> None:
    draw = draws(2)
    for shape, colour, ground in zip(SHAPES, list(COLOURS), BACKGROUNDS, strict=False):
        for place, size in (("left", "large"), ("centre", "small"), ("right", "large")):
            found = plain_judge()(draw_scene(Scene(shape, colour, ground, place, size), 64, 64, draw))
            assert (found.shape, found.colour, found.background, found.place) == (shape, colour, ground, place)


def test_blurred_and_noisy_pictures_are_told_right() -> None:
    draw = draws(3)
    spoilt = [
        (scene, (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.9) + draw.normal(0, 6, picture.shape)))
        for scene, picture in drawn_scenes((64, 64), 12)
    ]
    pictures = [(scene, picture.clip(0, 255).astype(np.uint8)) for scene, picture in spoilt]
    assert share(judged(pictures, plain_judge()), *PARTS) >= 11 / 12


def test_where_and_how_large() -> None:
    """The sides that the world draws, a little more or less."""
    for scene, picture in drawn_scenes((128, 64), 10):
        found = plain_judge()(picture)
        assert found.side == pytest.approx(SIZES[scene.size], abs=0.07)
        assert found.fit > 0.9
        mirrored = plain_judge()(np.ascontiguousarray(picture[:, ::-1]))
        assert found.middle + mirrored.middle == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 128)])
def test_a_background_alone_has_no_shape(name: str, size: tuple[int, int]) -> None:
    empty = background(name, *size, draws(4)).clip(0, 255).astype(np.uint8)
    found = plain_judge()(empty)
    assert (found.background, found.shape, found.colour, found.place) == (name, None, None, None)
    assert likeness(empty, toadstool()) == 0


@pytest.mark.parametrize("value", [0, 127, 255])
def test_a_picture_of_one_shade_gets_some_verdict(value: int) -> None:
    assert isinstance(plain_judge()(np.full((64, 64, 3), value, np.uint8)), Verdict)


@pytest.mark.parametrize("novelty", (CRESCENT, TEAL_PAINT, BRICKS), ids=lambda novelty: novelty.name)
def test_what_it_is_told_beyond_the_world(novelty: Novelty) -> None:
    judge = judge_of(novelty)
    for scene, picture in novel_scenes(novelty):
        found = judge(picture)
        assert getattr(found, novelty.part) == novelty.name
        others = [part for part in PARTS if part != novelty.part]
        assert [getattr(found, part) for part in others] == [getattr(scene, part) for part in others]
    assert share(judged(drawn_scenes((64, 64), 12), judge), *PARTS) >= 11 / 12


def test_a_toadstool_is_like_one_and_nothing_else_is() -> None:
    """Measured: drawn ones 0.67 and more, all else 0.1 and less, red shapes of the same size included."""
    assert min(likeness(picture, toadstool()) for _, picture in novel_scenes(TOADSTOOL)) > 0.55
    draw = draws(5)
    red = [draw_scene(Scene(shape, "red", ground, "centre", "large"), 64, 64, draw)
           for shape in SHAPES for ground in BACKGROUNDS]  # fmt: skip
    others = red + [picture for _, picture in drawn_scenes((64, 64), 12) + novel_scenes(BRICKS)]
    values = [likeness(picture, toadstool()) for picture in others]
    assert 0 <= min(values) <= max(values) < 0.2


def test_likeness_finds_the_figure_anywhere_and_minds_its_colours() -> None:
    scene = Scene("heart", "red", "sky", "left", "large")
    picture = picture_of(TOADSTOOL, scene, 128, 64, draws(6))
    there = likeness(picture, toadstool())
    assert likeness(np.roll(picture, 60, axis=1), toadstool()) == pytest.approx(there, abs=0.1)
    assert likeness(np.ascontiguousarray(picture[..., ::-1]), toadstool()) < 0.2 < 0.6 < there
    assert likeness(np.ascontiguousarray(picture[::-1]), toadstool()) < there - 0.2


def test_the_script_tells_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(draw_scene(RED_HEART, 96, 64, draws())).save(tmp_path / "a.png")
    Image.fromarray(background("night", 64, 64, draws()).clip(0, 255).astype(np.uint8)).save(tmp_path / "b.png")
    assert run_main([str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'a.png'}: red heart, left, sky",
        f"{tmp_path / 'b.png'}: no shape, night",
    ]
    (tmp_path / "c.png").write_text("no picture")
    assert run_main([str(tmp_path / "c.png")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert run_main([str(tmp_path / "none.png")]) == 1


def run_main(words: list[str]) -> int:
    before = sys.argv
    sys.argv = ["judge.py", *words]
    try:
        return run_script(judge_script.main)
    finally:
        sys.argv = before


def test_some_pictures_through_the_vae() -> None:
    assert share(through_vae(base_model(), 25, plain_judge(), seed=1), *PARTS) >= 0.92


@pytest.mark.slow
def test_pictures_through_the_vae_are_told_right() -> None:
    found = through_vae(base_model(), 1050, plain_judge(), seed=1)
    assert {one.size for one in found} == set(PICTURE_SIZES)
    for part in PARTS:
        assert share(found, part) >= JUDGE_BOUND, part
    assert share(found, *PARTS) >= JUDGE_BOUND


@pytest.mark.slow
def test_likeness_through_the_vae() -> None:
    """Wide margins: a toadstool through the VAE is clearly nearer to one than anything of the world."""
    import torch

    from examples.toy_world.train_vae import as_tensor
    from library.preview.generate import as_pixels

    def through(scenes: list[tuple[Scene, Picture]]) -> NDArray[np.float64]:
        vae = base_model().vae
        with torch.no_grad():
            values = vae.encode(as_tensor(np.stack([picture for _, picture in scenes]))).latent_dist.mode()
            return np.array([likeness(picture, toadstool()) for picture in as_pixels(vae.decode(values).sample)])

    toadstools, world = through(novel_scenes(TOADSTOOL, 60)), through(drawn_scenes((64, 64), 240))
    assert np.median(toadstools) > 0.35
    assert np.quantile(toadstools, 0.1) > np.quantile(world, 0.99)
    assert world.max() < 0.2
