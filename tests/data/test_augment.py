"""What uses see of a picture: mirrored, cut elsewhere, in other colours; drawn evenly and within bounds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.core.randomness import generator
from library.core.sizes import Size, Span
from library.data.augment import (
    Augmentations,
    Choice,
    ColourShift,
    Face,
    Frame,
    View,
    apply_view,
    choices_of,
    choose,
    draw_view,
    face_of,
    fixed_view,
    latent_mask,
)
from library.data.buckets import BucketLimits, place

SIZES = st.builds(Size, st.integers(20, 900), st.integers(20, 900))
LIMITS = BucketLimits(min_size=32, max_size=128, step=16)


def frame_of(size: Size, face: Face | None = None) -> Frame:
    placed = place(size, Size(64, 64), LIMITS)
    return Frame(size, placed.resized, placed.bucket, placed.crop, face)


def view_of(frame: Frame, augmentations: Augmentations, seed: int = 0) -> View:
    return draw_view(frame, augmentations, Choice(), lambda purpose: generator(seed, 0, "use", purpose))


@given(SIZES, st.integers(0, 50))
def test_every_crop_lies_in_the_scaled_picture_and_fills_the_bucket(size: Size, seed: int) -> None:
    frame = frame_of(size, Face(size.width // 3, size.height // 2, 9, 12))
    for augmentations in (
        Augmentations(),
        Augmentations(random_crop=True),
        Augmentations(face_crop_range=Span(1.0, 3.0)),
        Augmentations(face_crop_range=Span(2.0, 2.0), random_crop=True),
    ):
        view = view_of(frame, augmentations, seed)
        left, top, right, bottom = view.crop
        assert left >= 0 and top >= 0 and right <= view.resized.width and bottom <= view.resized.height
        assert Size(right - left, bottom - top) == frame.bucket
        wide, tall = view.resized.width / size.width, view.resized.height / size.height
        assert abs(wide - tall) <= 1 / min(size)  # the shape is kept to the pixel


def test_random_crops_reach_every_place_equally_often() -> None:
    frame = Frame(Size(70, 64), Size(70, 64), Size(64, 64), (3, 0))
    counts = Counter(view_of(frame, Augmentations(random_crop=True), seed).crop[:2] for seed in range(2100))
    assert set(counts) == {(left, 0) for left in range(7)}
    assert all(230 < count < 370 for count in counts.values())


def test_faces_fill_the_crop_as_asked() -> None:
    size, face = Size(800, 600), Face(500, 250, 60, 80)
    frame = frame_of(size, face)
    multiples = []
    for seed in range(200):
        view = view_of(frame, Augmentations(face_crop_range=Span(2.0, 4.0)), seed)
        scale = view.resized.width / size.width
        multiples.append(min(frame.bucket) / (80 * scale))
        assert abs((view.crop[0] + view.crop[2]) / 2 - face.x * scale) <= 1
        assert abs((view.crop[1] + view.crop[3]) / 2 - face.y * scale) <= 1
    assert 1.95 < min(multiples) < 2.2 and 3.6 < max(multiples) < 4.1


def test_face_and_random_crop_together_keep_the_face_inside() -> None:
    size, face = Size(800, 600), Face(500, 250, 60, 80)
    frame, places = frame_of(size, face), set()
    for seed in range(100):
        view = view_of(frame, Augmentations(face_crop_range=Span(2.0, 3.0), random_crop=True), seed)
        scale = view.resized.width / size.width
        left, top, right, bottom = view.crop
        assert left - 1 <= (face.x - 30) * scale and (face.x + 30) * scale <= right + 1
        assert top - 1 <= (face.y - 40) * scale and (face.y + 40) * scale <= bottom + 1
        places.add(round((left + right) / 2 - face.x * scale))
    assert len(places) > 5


def test_a_large_face_in_a_small_picture_is_not_enlarged() -> None:
    frame = frame_of(Size(100, 100), Face(50, 50, 10, 10))
    for seed in range(20):
        assert view_of(frame, Augmentations(face_crop_range=Span(1.0, 1.2)), seed).resized == Size(100, 100)


@pytest.mark.parametrize(
    ("name", "face"),
    [
        ("mira_320_180_90_110.png", Face(320, 180, 90, 110)),
        ("a/b_1_2_3_4_5.jpg", Face(2, 3, 4, 5)),
        ("mira.png", None),
        ("mira_1_2_3.png", None),
        ("1_2_3_4.png", None),
        ("ミラ_10_20_30_40.webp", Face(10, 20, 30, 40)),
    ],
)
def test_file_names_tell_of_faces(name: str, face: Face | None) -> None:
    assert face_of(name) == face


def test_half_of_the_uses_are_mirrored_and_a_third_recoloured() -> None:
    augmentations = Augmentations(flip=True, colour=True)
    flips = [choose(augmentations, None, 3, 0, f"u{n}").flipped for n in range(2000)]
    assert 900 < sum(flips) < 1100
    frame = frame_of(Size(64, 64))
    views = [view_of(frame, augmentations, seed) for seed in range(2000)]
    hues = [view.colour.hue for view in views]
    gammas = [view.colour.gamma for view in views]
    plain = sum(view.colour == ColourShift() for view in views)
    assert 1240 < plain < 1460  # two thirds, and the hue shifts that round to none
    assert min(hues) == -8 and max(hues) == 8
    assert 0.95 <= min(gammas) < 0.955 and 1.045 < max(gammas) <= 1.05
    assert not any(hue and gamma != 1.0 for hue, gamma in zip(hues, gammas, strict=True))


def test_variants_are_fixed_and_drawn_equally_often() -> None:
    augmentations = Augmentations(colour=True, random_crop=True, flip=True)
    choices = [choose(augmentations, 3, 5, epoch, "u") for epoch in range(1200)]
    assert set(choices) == set(choices_of(augmentations, 3)) and len(set(choices)) == 6
    assert all(140 < count < 260 for count in Counter(choices).values())
    frame = frame_of(Size(200, 64))
    looks = {fixed_view(frame, augmentations, choice, 5, "picture") for choice in choices}
    assert len(looks) == 6
    assert {fixed_view(frame, augmentations, choice, 5, "picture") for choice in choices} == looks
    mirrored = fixed_view(frame, augmentations, Choice(1, True), 5, "picture")
    plain = fixed_view(frame, augmentations, Choice(1, False), 5, "picture")
    assert (mirrored.crop, mirrored.colour) == (plain.crop, plain.colour)


def test_one_option_leaves_the_draws_of_the_others_alone() -> None:
    frame = frame_of(Size(300, 64))
    alone = view_of(frame, Augmentations(random_crop=True), 9)
    both = view_of(frame, Augmentations(random_crop=True, colour=True), 9)
    assert alone.crop == both.crop
    flips = [choose(Augmentations(flip=True), None, 1, 0, f"{n}").flipped for n in range(50)]
    assert flips == [choose(Augmentations(flip=True, colour=True), 4, 1, 0, f"{n}").flipped for n in range(50)]


def test_without_options_there_is_one_look() -> None:
    assert choices_of(Augmentations(), 5) == [Choice()]
    assert choices_of(Augmentations(flip=True), None) == [Choice(0, False), Choice(0, True)]
    assert choose(Augmentations(), 5, 0, 0, "u") == Choice()


def test_pixels_are_mirrored_and_colours_turned() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    crop = (0, 0, 16, 8)
    assert np.array_equal(apply_view(pixels, View(Size(16, 8), crop)), pixels)
    assert np.array_equal(apply_view(pixels, View(Size(16, 8), crop, flipped=True)), pixels[:, ::-1])
    red = np.zeros((2, 2, 3), dtype=np.uint8)
    red[..., 0] = 200
    turned = apply_view(red, View(Size(2, 2), (0, 0, 2, 2), colour=ColourShift(hue=8)))
    assert (turned[..., 0] == 200).all() and (turned[..., 1] > 30).all() and (turned[..., 2] == 0).all()
    darker = apply_view(pixels, View(Size(16, 8), crop, colour=ColourShift(gamma=1.05)))
    assert (darker <= pixels).all() and (darker < pixels).any() and (pixels.astype(int) - darker < 8).all()


def test_masks_are_means_of_cells() -> None:
    alpha = np.zeros((16, 24), dtype=np.uint8)
    alpha[:8, :8] = 255
    alpha[8:, 8:12] = 255
    assert latent_mask(alpha, 8).tolist() == [[1, 0, 0], [0, 0.5, 0]]
    assert latent_mask(alpha, 8).dtype == np.float32
