"""Telling tags from captions: sure where it matters, silent where our own tools could have written it."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.captioning.text_kinds import looks_like_caption, looks_like_tags, may_be_caption, may_be_tags

TAGS = [
    "1girl, solo, long_hair, smile",
    "1girl, solo, long hair, looking at viewer, blue eyes, smile",
    "long_hair, solo",
    "1girl,solo,long_hair,school_uniform,rating:safe",
    "general, 1girl, solo, hatsune miku, black footwear, twintails",
    "sensitive, 1girl, princess zelda, the legend of zelda, pointy ears, blonde hair, jewelry, solo, smile, dress",
    "no humans, outdoors, sky, cloud, scenery",
]
CAPTIONS = [
    "a girl with long hair sits on the grass",
    "a cat, sitting on a red chair beside a window",
    "there are two dogs that are playing in the snow",
    "araffe cat laying on the couch with its eyes closed",
    "portrait photo of a smiling astronaut in an orange space suit, a helmet beside her, a flag behind her",
    "two men playing chess in park",
    "blonde woman wearing blue jeans holding coffee",
]
NEITHER = [
    "",
    ",",
    "solo",
    "long hair",
    "long_hair",  # one tag; a file name as well
    "1girl, solo",
    "long hair, looking at viewer",
    "hatsune miku (vocaloid), looking at viewer",
    "1girl solo long_hair looking_at_viewer smile outdoors",  # --caption_separator " "
    "1girl solo long hair looking at viewer smile outdoors",
    "^_^, >_<",
    "猫が草の上に座っている",
    "a girl with long hair sits on the grass, 1girl, solo, long_hair, smile, outdoors, sky",
    "two men, one in a hat",
    "woman",
    "a dog",
    "a dog, a cat, and a bird",
    "the the the the , , cat , dog",
]
# What people write: in doubt where nothing is lost, and not to be overwritten.
BY_HAND = [
    "A close-up photograph of a woman, wearing red, with soft light, bokeh",
    "a photo of ohwx man, smiling, outdoors, blue shirt",
    "a photo of ohwx, smiling, outdoors, blue shirt",
    "photo of sks person, smiling, outdoors, blue shirt",
    "portrait of sks man, studio lighting, 85mm",
    "woman standing near window, natural light, red dress",
    "a girl with long hair sits on the grass, 1girl, solo, long_hair, smile, outdoors, sky",
    "image of a woman with long_hair",
    "a cat",
    "um gato preto sentado na grama",
]
TAGS_BY_HAND = [
    "1girl, long hair",
    "1girl",
    "long hair, looking at viewer",
    "long_hair",
    "rating:safe, smile",
    "1girl solo long_hair looking_at_viewer smile outdoors",
    "1girl; solo; long hair; looking at viewer",
    "long_hair smile looking_at_viewer sitting outdoors",
    "head out of frame, 1girl, solo, long hair",
    "hair over one eye, solo, smile, long hair, dress",
    "the legend of zelda, 1girl, solo, princess zelda",
    "love live! school idol project, 1girl, solo, kousaka honoka",
    "abigail williams (traveling hat) (fate), 1girl, solo",
]
# BLIP may write these, and its runs must go on.
BY_BLIP = ["woman", "red, white, and blue", "two men, one in a hat", "a dog, a cat, and a bird", "cat, close up"]


@pytest.mark.parametrize("text", [*BY_HAND, *CAPTIONS])
def test_captions_by_hand_may_be_captions(text: str) -> None:
    assert may_be_caption(text)


@pytest.mark.parametrize("text", [*TAGS_BY_HAND, *TAGS])
def test_tags_by_hand_may_be_tags_and_are_no_captions(text: str) -> None:
    assert may_be_tags(text) and not may_be_caption(text)
    assert not looks_like_caption(text)


@pytest.mark.parametrize("text", [*BY_BLIP, *CAPTIONS, ""])
def test_what_blip_may_write_is_never_tags(text: str) -> None:
    assert not may_be_tags(text) and not looks_like_tags(text)


def test_tags_between_blanks_are_no_caption() -> None:
    text = "long hair smile looking at viewer sitting outdoors"  # --remove_underscore --caption_separator " "
    assert not may_be_caption(text) and not looks_like_caption(text)


@pytest.mark.parametrize("text", BY_HAND[:-2])
def test_captions_by_hand_are_no_tags(text: str) -> None:
    assert not looks_like_tags(text)


@pytest.mark.parametrize("text", TAGS)
def test_tags_are_tags(text: str) -> None:
    assert looks_like_tags(text) and not looks_like_caption(text)


@pytest.mark.parametrize("text", CAPTIONS)
def test_captions_are_captions(text: str) -> None:
    assert looks_like_caption(text) and not looks_like_tags(text)


@pytest.mark.parametrize("text", NEITHER)
def test_what_is_in_doubt_is_neither(text: str) -> None:
    assert not looks_like_caption(text) and not looks_like_tags(text)


def test_captions_of_the_photographs_are_seen(photos: Path) -> None:
    texts = [path.read_text(encoding="utf-8").strip() for path in photos.glob("*.txt")]
    seen = sum(map(looks_like_caption, texts))
    assert seen > len(texts) / 2 and not any(map(looks_like_tags, texts))
