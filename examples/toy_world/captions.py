"""What is said of a scene: in sentences and in tags, whole or with things left out."""

from __future__ import annotations

from dataclasses import astuple, fields

import numpy as np

from examples.toy_world.world import Scene

UNSAID = ""
PARTS = tuple(field.name for field in fields(Scene))
_OPENINGS = ("", "", "a picture of ", "a drawing of ")
_WHERE = {"left": "on the left", "centre": "in the centre", "right": "on the right", UNSAID: ""}
_ALL_SAID = 0.6  # share of captions
_SAID = 0.5  # of the things in the others; the shape is always said
_AS_TAGS = 0.4  # share of captions


def sentence(scene: Scene, opening: str = "") -> str:
    """Such as "a large red circle on the left, meadow background"; what is `UNSAID` in the scene is left out."""
    noun = " ".join(word for word in (scene.size, scene.colour, scene.shape or "shape") if word)
    article = "an" if noun[0] in "aeiou" else "a"
    words = f"{opening}{article} {noun} {_WHERE[scene.place]}".rstrip()
    return f"{words}, {scene.background} background" if scene.background else words


def tags(scene: Scene, draw: np.random.Generator | None = None) -> str:
    """Such as "red circle, meadow, left, large": the thing first, the rest in that order or shuffled."""
    rest = [word for word in (scene.background, scene.place, scene.size) if word]
    if draw is not None:
        draw.shuffle(rest)
    return ", ".join([f"{scene.colour} {scene.shape}".strip(), *rest])


def partly_said(scene: Scene, draw: np.random.Generator) -> Scene:
    """The scene with what the caption leaves out as `UNSAID`."""
    if draw.random() < _ALL_SAID:
        return scene
    words = [word if draw.random() < _SAID else UNSAID for word in astuple(scene)]
    return Scene(scene.shape, *words[1:])


def random_caption(said: Scene, draw: np.random.Generator) -> str:
    """One of the ways to put it."""
    if draw.random() < _AS_TAGS:
        return tags(said, draw)
    return sentence(said, str(draw.choice(_OPENINGS)))
