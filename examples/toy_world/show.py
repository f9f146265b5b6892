"""What tools/quickstart.py does inside the environment: draws what is taught, and shows what was learned.

python examples/toy_world/show.py prepare FOLDER
python examples/toy_world/show.py results FOLDER

FOLDER holds quickstart.json, which says what the run is about.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, from any folder

import numpy as np
from numpy.typing import NDArray

from examples.toy_world.captions import sentence
from examples.toy_world.judge import Judge, likeness
from examples.toy_world.lesson import (
    SCALE,
    SHOWN,
    SIDE,
    STEPS,
    Lesson,
    judged_scenes,
    prepare,
    read_lesson,
    seeds,
    taught_examples,
)
from examples.toy_world.novelties import TOADSTOOL, Novelty, judge_of, toadstool
from examples.toy_world.result_page import Score, page_of
from examples.toy_world.result_picture import Row, Section, draw_page
from library.core.atomic_io import write_text_whole, write_whole
from library.core.errors import run_script

PICTURE, PAGE, FIGURES = "result.png", "report.html", "result.json"
STRENGTHS = (0.5, 0.8, 1.0)
_LIKE = 0.25  # from this likeness on a picture shows the figure: 0.28 to 1 through the VAE, the world at most 0.11

Pictures = NDArray[np.uint8]  # (count, height, width, 3)


@dataclass(frozen=True)
class Drawn:
    """What the model draws; each picture has the noise of the same place elsewhere.

    Attributes:
        asked: pictures of the new thing by strength; all that are judged for 0 and 1, the shown ones for the others.
        kept: pictures of what the world knows, for strengths 0 and 1.
    """

    asked: dict[float, Pictures]
    kept: dict[float, Pictures]


def main() -> None:
    """One of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "results"))
    parser.add_argument("folder", type=Path, help="folder of the run")
    arguments = parser.parse_args()
    lesson = read_lesson(arguments.folder)
    if arguments.what == "prepare":
        examples = prepare(lesson, arguments.folder)
        print(f"   in {lesson.pictures}, with captions such as\n   {examples[0].caption!r}", flush=True)
        return
    show(lesson, arguments.folder)


def show(lesson: Lesson, folder: Path) -> None:
    """Draws before and after, judges it, and writes page and picture.

    Raises:
        UserError: the trained file or the model is missing, or is not what it should be.
    """
    drawn = draw_all(lesson)
    score = judged(lesson, drawn)
    picture = picture_of(lesson, drawn, score)
    write_whole(folder / PICTURE, lambda path: _write_bytes(path, picture))
    write_text_whole(folder / PAGE, page_of(lesson, score, picture, folder))
    write_text_whole(folder / FIGURES, json.dumps(asdict(score), indent=1) + "\n")
    print(f"   judge    {closing(lesson, score)}")
    print(f"            plain prompts: {score.kept_before} of {score.kept} right before, {score.kept_after} after")
    print(f"   picture  {folder / PICTURE}\n   report   {folder / PAGE}\n   trained  {lesson.trained}", flush=True)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def draw_all(lesson: Lesson) -> Drawn:
    """All pictures of a result, at every strength from the same noise."""
    from examples.toy_world.applied import apply
    from examples.toy_world.drawing import Way, draw, load_model

    model = load_model(lesson.model)
    applied = apply(lesson.method, lesson.trained, model, lesson.words, lesson.class_word)
    way = Way(SIDE, SIDE, STEPS, SCALE)
    scenes = judged_scenes()
    asked, kept = {}, {}
    for strength in (0.0, *STRENGTHS):
        applied.set_strength(strength)
        is_judged = strength in (0.0, STRENGTHS[-1])
        prompts = [lesson.asking(scene) for scene in (scenes if is_judged else SHOWN)]
        asked[strength] = draw(model, prompts, seeds(len(prompts)), way, applied.reader)
        if is_judged:
            kept[strength] = draw(model, [sentence(scene) for scene in scenes], seeds(len(scenes)), way, applied.reader)
    return Drawn(asked, kept)


def judged(lesson: Lesson, drawn: Drawn) -> Score:
    """How many pictures show what was asked for."""
    before, after = drawn.kept[0.0], drawn.kept[STRENGTHS[-1]]
    is_there = finder(lesson.novelty)
    found = [sum(is_there(picture) for picture in drawn.asked[strength]) for strength in (0.0, STRENGTHS[-1])]
    judge, scenes = Judge(), judged_scenes()
    kept = []
    for pictures in (before, after):
        verdicts = [judge(picture) for picture in pictures]
        told = [(verdict.shape, verdict.colour, verdict.background) for verdict in verdicts]
        kept.append(sum(one == (s.shape, s.colour, s.background) for one, s in zip(told, scenes, strict=True)))
    change = float(np.abs(before.astype(np.float32) - after).mean())
    return Score(found[0], found[1], len(scenes), kept[0], kept[1], len(scenes), change)


def finder(novelty: Novelty) -> Callable[[NDArray[np.uint8]], bool]:
    """What says whether a picture (height, width, 3) shows something new."""
    if novelty is TOADSTOOL:
        figure = toadstool()
        return lambda picture: likeness(picture, figure) >= _LIKE
    judge = judge_of(novelty)
    return lambda picture: bool(getattr(judge(picture), novelty.part) == novelty.name)


def closing(lesson: Lesson, score: Score) -> str:
    """The result in a sentence."""
    return (
        f"An image judge without learned weights finds {lesson.spoken} in {score.before} of {score.asked} pictures"
        f" before, in {score.after} after."
    )


def picture_of(lesson: Lesson, drawn: Drawn, score: Score) -> bytes:
    """The result as a PNG file."""
    shown, last = len(SHOWN), STRENGTHS[-1]
    rows = [Row("before", "the base model", list(drawn.asked[0.0][:shown]))]
    rows += [
        Row("after", f"strength {strength:g}", list(drawn.asked[strength][:shown]), strength == last)
        for strength in STRENGTHS
    ]
    kept = [
        Row("before", "", list(drawn.kept[0.0][:shown])),
        Row("after", f"strength {last:g}", list(drawn.kept[last][:shown])),
    ]
    taught = [example.picture for example in taught_examples(lesson)]
    sections = [
        Section(f"Taught: {lesson.count} pictures of {lesson.spoken}", "", [Row("", "", taught)]),
        Section(
            "Asked for",
            f"“{lesson.asking(SHOWN[0])}” and so on; a column grows from the same noise",
            rows,
            [lesson.heading(scene) for scene in SHOWN],
        ),
        Section(
            "Must not change",
            f"“{sentence(SHOWN[0])}” and so on",
            kept,
        ),
    ]
    title = f"{lesson.count} pictures teach a model something new"
    lead = f"A small Stable Diffusion, trained as {lesson.title} in {lesson.steps} updates by sd-atelier"
    file = io.BytesIO()
    draw_page(title, lead, sections, closing(lesson, score)).save(file, format="PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(run_script(main))
