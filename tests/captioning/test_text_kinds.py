"""Telling tags from captions: sure where it matters, silent where our own tools could have written it."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.captioning.text_kinds import looks_like_caption, looks_like_tags

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
