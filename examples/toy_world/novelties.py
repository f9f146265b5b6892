"""What is not in the small world, for teaching it to a model: pictures with captions, as a trainer takes them.

Each novelty changes one thing: the shape, the colour, the background, or all of the shape's look.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from examples.toy_world.captions import sentence
from examples.toy_world.world import COLOURS, Floats, Rgb, Scene, background, placed, random_scene, shape_mask, stamp
from library.core.randomness import NO_EPOCH, generator

WORD = "sks"  # stands for nothing in the small world
TEAL: Rgb = (16, 130, 136)
_SIDE = 256


@dataclass(frozen=True)
class Example:
    """One picture of something new.

    Attributes:
        picture: (height, width, 3), 0 to 255.
        caption: says all that is in it, the new thing by its word.
    """

    picture: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True)
class Novelty:
    """Something that the base model cannot draw.

    Attributes:
        name: what it is.
        thing: how captions and prompts call it, such as "sks ring"; it takes the place of the `part` of a scene.
        part: "shape", "colour" or "background".
        class_word: the word of the world that it resembles most, which regularisation pictures show.
    """

    name: str
    thing: str
    part: str
    class_word: str

    def prompt(self, scene: Scene) -> str:
        """The caption of a scene in which the new thing takes its place."""
        words = {"shape": scene.shape, "colour": scene.colour, "background": scene.background}
        words[self.part] = self.thing
        if self.name == "toadstool":
            words["colour"] = ""
        return sentence(Scene(words["shape"], words["colour"], words["background"], scene.place, scene.size))


CRESCENT = Novelty("crescent", f"{WORD} ring", "shape", "ring")
TOADSTOOL = Novelty("toadstool", f"{WORD} toadstool", "shape", "heart")
TEAL_PAINT = Novelty("teal", WORD, "colour", "blue")
BRICKS = Novelty("bricks", WORD, "background", "tiles")
NOVELTIES = {novelty.name: novelty for novelty in (CRESCENT, TOADSTOOL, TEAL_PAINT, BRICKS)}


def examples_of(novelty: Novelty, count: int, seed: int, size: tuple[int, int] = (64, 64)) -> list[Example]:
    """Pictures of something new, in scenes that vary in everything else."""
    found = []
    for number in range(count):
        draw = generator(seed, NO_EPOCH, f"{novelty.name} {number}", "novelty")
        scene = random_scene(draw)
        found.append(Example(picture_of(novelty, scene, *size, draw), novelty.prompt(scene)))
    return found


def write_examples(examples: list[Example], folder: Path) -> None:
    """Writes `01.png` with its caption in `01.txt`, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(examples, start=1):
        Image.fromarray(example.picture).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(example.caption + "\n", encoding="utf-8")


def picture_of(novelty: Novelty, scene: Scene, width: int, height: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """The scene with the new thing in it: (height, width, 3), 0 to 255."""
    canvas = bricks(width, height) if novelty is BRICKS else background(scene.background, width, height, draw)
    if novelty is TOADSTOOL:
        _stamp_figure(canvas, toadstool(), scene, draw)
    else:
        outline = crescent() if novelty is CRESCENT else shape_mask(scene.shape)
        colour = TEAL if novelty is TEAL_PAINT else COLOURS[scene.colour]
        stamp(canvas, outline, colour, scene.place, scene.size, draw)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def crescent() -> Image.Image:
    """A waning moon, white on black."""
    outline = Image.new("L", (_SIDE, _SIDE), 0)
    pen = ImageDraw.Draw(outline)
    pen.ellipse((0, 0, _SIDE - 1, _SIDE - 1), fill=255)
    pen.ellipse((_SIDE * 0.30, _SIDE * 0.06, _SIDE * 1.18, _SIDE * 0.94), fill=0)
    return outline


def toadstool() -> Image.Image:
    """A red cap with white dots on a pale stem, in mode "RGBA"."""
    figure = Image.new("RGBA", (_SIDE, _SIDE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(figure)
    pen.rounded_rectangle((_SIDE * 0.36, _SIDE * 0.42, _SIDE * 0.64, _SIDE * 0.98), 24, fill=(246, 226, 190, 255))
    pen.pieslice((0, _SIDE * 0.02, _SIDE - 1, _SIDE * 1.12), 180, 360, fill=(208, 28, 34, 255))
    for x, y, radius in ((0.28, 0.36, 0.10), (0.60, 0.22, 0.09), (0.80, 0.44, 0.08)):
        box = ((x - radius) * _SIDE, (y - radius) * _SIDE, (x + radius) * _SIDE, (y + radius) * _SIDE)
        pen.ellipse(box, fill=(252, 250, 246, 255))
    return figure


def bricks(width: int, height: int) -> Floats:
    """A brick wall: (height, width, 3), 0 to 255."""
    rows, columns = np.mgrid[:height, :width]
    shifted = columns + rows // 8 % 2 * 8
    joint = (rows % 8 < 2) | (shifted % 16 < 2)
    return np.where(joint[..., None], (206, 198, 190), (150, 96, 84)).astype(np.float32)


def _stamp_figure(canvas: Floats, figure: Image.Image, scene: Scene, draw: np.random.Generator) -> None:
    height, width = canvas.shape[:2]
    cover, rows, columns = placed(width, height, figure.getchannel("A"), scene.place, scene.size, draw)
    side = len(cover)
    colours = np.asarray(figure.convert("RGB").resize((side, side), Image.Resampling.BOX), np.float32)
    canvas[rows, columns] += cover[..., None] * (colours - canvas[rows, columns])
