"""Measures the toy world's model: how much of what prompts say is drawn, and what the VAE loses.

python examples/toy_world/measure.py                     about 560 pictures, judged
python examples/toy_world/measure.py --sheet sheet.png   the contact sheet as well
python examples/toy_world/measure.py --readme            puts both into the README beside this file
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, from any folder

import numpy as np

from examples.toy_world.captions import sentence, tags
from examples.toy_world.judge import Judge, Verdict
from examples.toy_world.world import BACKGROUNDS, COLOURS, PICTURE_SIZES, PLACES, SHAPES, SIZES, Scene, draw_scene
from library.core.atomic_io import write_text_whole
from library.core.errors import UserError, run_script
from library.core.randomness import NO_EPOCH, generator

if TYPE_CHECKING:
    from examples.toy_world.drawing import Way
    from library.models.stable_diffusion import StableDiffusion

README = Path(__file__).resolve().parent / "README.md"
SHEET = "contact_sheet.png"
PARTS = ("colour", "background", "shape", "place")
THREE = ("colour", "background", "shape")
BOUNDS = {"colour": 0.97, "background": 0.97, "shape": 0.97, "all three": 0.95}
VAE_BOUND, JUDGE_BOUND = 30.0, 0.98  # dB; share of drawn pictures through the VAE of which all is told right
BEGIN, END = "<!-- figures of measure.py -->", "<!-- end of figures -->"
_PLAIN, _OPENED, _TAGS = "sentence", "sentence with an opening", "tags"
_FORMS = (_PLAIN, _OPENED, _TAGS)
_OPENINGS = ("a picture of ", "a drawing of ")
_AT_ONCE = 25  # drawn pictures through the VAE


@dataclass(frozen=True)
class Request:
    """A picture to draw.

    Attributes:
        size: width and height, in pixels.
        seed: of its noise.
    """

    scene: Scene
    prompt: str
    size: tuple[int, int]
    seed: int


@dataclass(frozen=True)
class Judged:
    """What should be in a picture, and what the judge sees.

    Attributes:
        decibels: of a drawn picture through the VAE, its peak signal-to-noise ratio.
    """

    scene: Scene
    size: tuple[int, int]
    verdict: Verdict
    decibels: float = float("nan")

    def is_right(self, *parts: str) -> bool:
        """Whether the judge sees what should be there, in every one of these parts."""
        return all(getattr(self.verdict, part) == getattr(self.scene, part) for part in parts)


def requests(count: int, seed: int = 0) -> list[Request]:
    """Prompts spread over all words, in three forms; every other picture is 64x64, the rest share the other sizes."""
    draw = generator(seed, NO_EPOCH, "requests", "measure")
    triples = [(shape, colour, ground) for shape in SHAPES for colour in COLOURS for ground in BACKGROUNDS]
    order = draw.permutation(len(triples))
    found = []
    for number in range(count):
        shape, colour, ground = triples[order[number % len(triples)]]
        scene = Scene(shape, colour, ground, str(draw.choice(list(PLACES))), str(draw.choice(list(SIZES))))
        form = str(draw.choice(_FORMS))
        opening = str(draw.choice(_OPENINGS)) if form == _OPENED else ""
        prompt = tags(scene) if form == _TAGS else sentence(scene, opening)
        others = PICTURE_SIZES[1:]
        size = others[number // 2 % len(others)] if number % 2 else PICTURE_SIZES[0]
        found.append(Request(scene, prompt, size, int(draw.integers(2**31))))
    return found


def draw_and_judge(model: StableDiffusion, wanted: Sequence[Request], way: Way, judge: Judge) -> list[Judged]:
    """Draws what is asked for, by size, and judges it.

    Args:
        way: how, but for the size.
    """
    from examples.toy_world.drawing import draw

    found = []
    for size in PICTURE_SIZES:
        of_size = [request for request in wanted if request.size == size]
        if of_size:
            prompts, seeds = [request.prompt for request in of_size], [request.seed for request in of_size]
            pictures = draw(model, prompts, seeds, replace(way, width=size[0], height=size[1]))
            found += [
                Judged(asked.scene, size, judge(picture)) for asked, picture in zip(of_size, pictures, strict=True)
            ]
    return found


def through_vae(model: StableDiffusion, count: int, judge: Judge, seed: int = 0) -> list[Judged]:
    """Judges drawn pictures of all sizes after encoding and decoding; training never saw them."""
    import torch

    from examples.toy_world.train_vae import as_tensor, decibels
    from library.preview.generate import as_pixels

    draw = generator(seed, NO_EPOCH, "pictures", "measure")
    found = []
    for start in range(0, count, _AT_ONCE):
        size = PICTURE_SIZES[start // _AT_ONCE % len(PICTURE_SIZES)]
        scenes = [_balanced_scene(number, draw) for number in range(start, min(start + _AT_ONCE, count))]
        drawn = as_tensor(np.stack([draw_scene(scene, *size, draw) for scene in scenes]))
        with torch.no_grad():
            there = model.vae.decode(model.vae.encode(drawn).latent_dist.mode()).sample
        for scene, picture, ratio in zip(scenes, as_pixels(there), decibels(drawn, there), strict=True):
            found.append(Judged(scene, size, judge(picture), float(ratio)))
    return found


def _balanced_scene(number: int, draw: np.random.Generator) -> Scene:
    shape = SHAPES[number % len(SHAPES)]
    colour = list(COLOURS)[number // len(SHAPES) % len(COLOURS)]
    ground, place, size = (str(draw.choice(list(words))) for words in (BACKGROUNDS, PLACES, SIZES))
    return Scene(shape, colour, ground, place, size)


def share(judged: Sequence[Judged], *parts: str) -> float:
    """Of how many all these parts are right, 0 to 1."""
    return sum(one.is_right(*parts) for one in judged) / len(judged)


def decibels_of(judged: Sequence[Judged]) -> float:
    """The mean peak signal-to-noise ratio."""
    return float(np.mean([one.decibels for one in judged]))


def pictures_table(judged: Sequence[Judged], way: Way) -> str:
    """Markdown: of how many drawn prompts each part is right, in all and by size of the picture."""
    lines = [
        f"| {len(judged)} prompts, {way.steps} steps of {way.sampler}, guidance {way.scale:g} "
        "| pictures | colour | background | shape | all three | place |",
        "|---|---|---|---|---|---|---|",
        _picture_row("**all**", judged),
        *(_picture_row(f"{width}x{height}", of_size) for (width, height), of_size in _by_size(judged)),
    ]
    return "\n".join(lines)


def _picture_row(name: str, judged: Sequence[Judged]) -> str:
    cells = [share(judged, *parts) for parts in (("colour",), ("background",), ("shape",), THREE, ("place",))]
    return f"| {name} | {len(judged)} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |"


def vae_table(judged: Sequence[Judged]) -> str:
    """Markdown: what the VAE keeps of drawn pictures, and how much of it the judge tells right."""
    lines = [
        "| drawn pictures through the VAE | pictures | PSNR | judge: colour | background | shape | place | all four |",
        "|---|---|---|---|---|---|---|---|",
        _vae_row("**all**", judged),
        *(_vae_row(f"{width}x{height}", of_size) for (width, height), of_size in _by_size(judged)),
    ]
    return "\n".join(lines)


def _vae_row(name: str, judged: Sequence[Judged]) -> str:
    cells = [share(judged, part) for part in PARTS] + [share(judged, *PARTS)]
    told = " | ".join(f"{cell:.1%}" for cell in cells)
    return f"| {name} | {len(judged)} | {decibels_of(judged):.1f} dB | {told} |"


def _by_size(judged: Sequence[Judged]) -> Iterator[tuple[tuple[int, int], list[Judged]]]:
    for size in PICTURE_SIZES:
        of_size = [one for one in judged if one.size == size]
        if of_size:
            yield size, of_size


def weak_words(judged: Sequence[Judged], below: float = 0.97) -> list[str]:
    """Words that are drawn right less often than that, worst first, such as "star 93.8% of 80 (5 as circle)"."""
    by_word: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for one in judged:
        for part in PARTS:
            by_word[part, getattr(one.scene, part)].append(one)
    weak = []
    for (part, word), those in by_word.items():
        if share(those, part) < below:
            wrong = [str(getattr(one.verdict, part)) for one in those if not one.is_right(part)]
            seen = ", ".join(f"{wrong.count(other)} as {other}" for other in sorted(set(wrong)))
            weak.append((share(those, part), f"{word} {share(those, part):.1%} of {len(those)} ({seen})"))
    return [line for _, line in sorted(weak)]


def fingerprint(model: Path) -> str:
    """Short for the content of a model's file: the beginning of its SHA-256."""
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def with_figures(page: str, figures: str) -> str:
    """A page with what stands between the markers replaced.

    Raises:
        UserError: the markers are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError.of(f"The lines {BEGIN} and {END} are missing.", str(README), "Put them where figures belong.")
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}"


def main() -> None:
    """Measures, prints, and draws the sheet where one is wanted."""
    arguments = _parser().parse_args()
    _check(arguments)
    import torch

    from examples.toy_world.contact_sheet import write_sheet
    from examples.toy_world.drawing import WAY, load_model

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model, arguments.prediction_type)
    way = replace(WAY, steps=arguments.steps or WAY.steps, scale=arguments.scale or WAY.scale)
    judge = Judge()
    began = time.process_time()
    judged = draw_and_judge(model, requests(arguments.count, arguments.seed), way, judge)
    seconds = time.process_time() - began
    kept = through_vae(model, arguments.vae_count, judge, arguments.seed)
    of_what = f"Of the model `{fingerprint(arguments.model)}` (SHA-256), prompts and pictures of seed {arguments.seed}:"
    figures = f"{of_what}\n\n{pictures_table(judged, way)}\n\n{vae_table(kept)}"
    print(figures)
    for title, those in (("drawn", judged), ("through the VAE", kept)):
        for line in weak_words(those):
            print(f"{title}: {line}")
    print(f"{len(judged)} pictures drawn and judged in {seconds:.0f} s of processor time")
    if arguments.readme:
        write_text_whole(README, with_figures(README.read_text(encoding="utf-8"), figures))
    sheet = arguments.sheet or (README.parent / SHEET if arguments.readme else None)
    if sheet is not None:
        write_sheet(model, way, sheet)
        print(f"{sheet}: {sheet.stat().st_size / 1000:.0f} kB")


def _check(arguments: argparse.Namespace) -> None:
    """Says what cannot work before anything is drawn."""
    for flag, least in (("count", 1), ("vae_count", 1), ("steps", 0), ("scale", 0), ("threads", 0)):
        if getattr(arguments, flag) < least:
            raise UserError.of(f"{getattr(arguments, flag)} is too few.", f"--{flag}", f"Give {least} or more.")
    sheet: Path | None = arguments.sheet
    if sheet is not None and (sheet.suffix.lower() != ".png" or not sheet.absolute().parent.is_dir()):
        raise UserError.of("The sheet is a PNG file in a folder that exists.", f"--sheet {sheet}", "Give such a path.")


def _parser() -> argparse.ArgumentParser:
    from examples.toy_world.drawing import MODEL

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="the model's file")
    parser.add_argument(
        "--prediction_type", choices=("epsilon", "v_prediction"), default="epsilon", help="of the model"
    )
    parser.add_argument("--count", type=int, default=560, help="prompts to draw (default: 560)")
    parser.add_argument("--vae_count", type=int, default=700, help="drawn pictures through the VAE (default: 700)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same prompts and noise (default: 0)")
    parser.add_argument("--steps", type=int, default=0, help="of the sampler (default: those of drawing.py)")
    parser.add_argument("--scale", type=float, default=0.0, help="guidance (default: that of drawing.py)")
    parser.add_argument("--threads", type=int, default=0, help="CPU cores to use (default: PyTorch's choice)")
    parser.add_argument("--sheet", type=Path, help="where to write the contact sheet, a PNG file")
    parser.add_argument("--readme", action="store_true", help="put figures and contact sheet into the README")
    return parser


if __name__ == "__main__":
    sys.exit(run_script(main))
