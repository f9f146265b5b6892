"""The result of a run of tools/quickstart.py as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.toy_world.lesson import Lesson, sample_prompts, sample_seeds, taught_examples
from library.data.report.report_page import text_of
from library.data.report.report_style import STYLE
from library.options.base import info_of, option_fields
from library.options.parse import names_of
from library.options.scripts import TRAINING_SCRIPTS

_LOSS = "loss/current"
_CHART = (920, 260)  # width and height, in pixels
_AXIS = 46  # left of the curve and below it
_POINTS = 120  # of the smooth curve, at most
_SMOOTHED_SHARE = 0.1  # of the updates, in a mean
_OWN_STYLE = """
.result{width:100%;height:auto;border-radius:12px;border:1px solid var(--line);display:block}
.strip{display:flex;flex-wrap:wrap;gap:14px}
.strip figure,.strip .use{margin:0;width:150px}
.strip img,.samples img{width:128px;height:auto;border-radius:8px;display:block}
.strip figcaption{font-size:12px;color:var(--soft);margin-top:4px}
.samples td,.samples th{text-align:left;vertical-align:top}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:14px 16px;font-size:13px;margin:0 0 12px}
.options td{text-align:left;vertical-align:top}
.options td:first-child{white-space:nowrap;font-family:ui-monospace,Consolas,monospace;font-size:13px}
.curve{stroke:var(--bar);stroke-width:2.5;fill:none}
.steps{stroke:var(--line);stroke-width:1;fill:none}
.chart-text{fill:var(--soft);font-size:13px}
ol li{margin-bottom:6px}
"""


@dataclass(frozen=True)
class Score:
    """What the judge found.

    Attributes:
        before, after: pictures with the new thing in them, of `asked`.
        kept_before, kept_after: pictures that show what plain prompts of the world asked for, of `kept`.
        change: mean difference of the pictures of plain prompts before and after, 0 to 255.
    """

    before: int
    after: int
    asked: int
    kept_before: int
    kept_after: int
    kept: int
    change: float


def page_of(lesson: Lesson, score: Score, picture: bytes, folder: Path) -> str:
    """The page as HTML.

    Args:
        picture: the page of pictures, a PNG file.
        folder: of the run, where its log and its sample pictures are.
    """
    title = f"{lesson.title[0].upper()}{lesson.title[1:]}: {lesson.spoken}"
    body = "".join(
        [
            f"<h1>{text_of(title)}</h1>\n{_tiles(lesson, score)}",
            "<h2>Before and after</h2>\n"
            f'<img class="result" alt="{_told(lesson, score)}" src="{_embedded(picture)}">\n',
            _loss_chart(losses_of(log_path(lesson, folder))),
            _samples(lesson, folder),
            _taught(lesson),
            f"<h2>The command line</h2>\n<pre>{text_of(lesson.command)}</pre>\n{_options(lesson)}",
            _next(lesson),
        ]
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text_of(title)}</title>\n<style>{STYLE}{_OWN_STYLE}</style>\n</head>\n<body>\n<main>\n{body}"
        "<footer>Made by sd-atelier, tools/quickstart.py.</footer>\n</main>\n</body>\n</html>\n"
    )


def log_path(lesson: Lesson, folder: Path) -> Path:
    """The log of the training."""
    return folder / f"{lesson.trained.stem}-log.jsonl"


def losses_of(path: Path) -> list[tuple[int, float]]:
    """Update and loss of each row of a log; none where there is no log."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(int(row["step"]), float(row[_LOSS])) for row in rows if row.get(_LOSS) is not None]


def smoothed(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means over a tenth of the updates that end at each point: single losses jump with their diffusion times."""
    reach = max(1, round(len(losses) * _SMOOTHED_SHARE))
    values = np.array([loss for _, loss in losses])
    ends = sorted({round(at) for at in np.linspace(reach, len(losses), _POINTS)})
    return [(losses[end - 1][0], float(values[end - reach : end].mean())) for end in ends if end >= reach]


def _told(lesson: Lesson, score: Score) -> str:
    words = f"{lesson.spoken} in {score.before} of {score.asked} pictures before, in {score.after} after"
    return text_of(words)


def _tiles(lesson: Lesson, score: Score) -> str:
    told = [
        (f"{score.before} of {score.asked}", "pictures right before"),
        (f"{score.after} of {score.asked}", "pictures right after"),
        (f"{score.kept_after} of {score.kept}", f"plain prompts right after ({score.kept_before} before)"),
        (str(lesson.steps), "updates"),
        *([] if lesson.seconds is None else [(f"{lesson.seconds:.0f} s", "of training, all included")]),
        (str(lesson.count), "training pictures"),
    ]
    cells = "".join(f'<div class="tile"><b>{number}</b><span>{words}</span></div>' for number, words in told)
    return f'<div class="tiles">{cells}</div>\n'


def _embedded(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def _small_picture(pixels: NDArray[np.uint8], words: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    height, width = pixels.shape[:2]
    source = _embedded(file.getvalue())
    return f'<img alt="{text_of(words)}" width="{width}" height="{height}" src="{source}">'


# --- the loss ---------------------------------------------------------------------------------------------------------


def _loss_chart(losses: Sequence[tuple[int, float]]) -> str:
    if len(losses) < 2:
        return ""
    curve = smoothed(losses)
    values = [value for _, value in curve]
    low, high = min(values), max(values)
    low, high = low - 0.08 * (high - low or low or 1), high + 0.08 * (high - low or high or 1)
    width, height = _CHART
    last = losses[-1][0]

    def across(step: float) -> float:
        return _AXIS + step / last * (width - _AXIS - 10)

    def down(value: float) -> float:
        return 10 + (high - value) / (high - low) * (height - _AXIS)

    points = " ".join(f"{across(step):.1f},{down(value):.1f}" for step, value in curve)
    lines, words = [], []
    for mark in np.linspace(low, high, 5)[1:-1]:
        lines.append(f"M{_AXIS} {down(mark):.1f}H{width - 10}")
        words.append(_chart_text(_AXIS - 6, down(mark) + 4, f"{mark:.3g}", "end"))
    for mark in (0, last // 2, last):
        words.append(_chart_text(across(mark), height - 12, str(mark), "middle"))
    return (
        '<h2>Loss <small>mean over a tenth of the updates</small></h2>\n<div class="card scroll">'
        f'<svg id="loss" role="img" aria-label="loss over updates" viewBox="0 0 {width} {height}" width="100%">'
        f'<path class="steps" d="{"".join(lines)}"/>{"".join(words)}<polyline class="curve" points="{points}"/></svg>'
        '<p class="soft">The loss of a diffusion model jumps with the noise that is drawn, and falls little even when'
        " much is learned; the pictures tell more.</p></div>\n"
    )


def _chart_text(left: float, top: float, words: str, anchor: str) -> str:
    return f'<text class="chart-text" x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{words}</text>'


# --- pictures ---------------------------------------------------------------------------------------------------------


def sampled_steps(lesson: Lesson) -> list[int]:
    """The updates after which the training made sample pictures."""
    return list(range(0, lesson.steps + 1, lesson.sampled_every))


def sample_file(lesson: Lesson, folder: Path, step: int, number: int) -> Path:
    """A sample picture of the training; prompts are numbered from 0."""
    seed = sample_seeds(lesson)[number]
    return folder / "sample" / f"{lesson.trained.stem}_{step:08d}_{number + 1:02d}_{seed}.png"


def _samples(lesson: Lesson, folder: Path) -> str:
    steps = [step for step in sampled_steps(lesson) if sample_file(lesson, folder, step, 0).is_file()]
    if not steps:
        return ""
    heads = "".join(f"<th>{step}</th>" for step in steps)
    rows = []
    for number, prompt in enumerate(sample_prompts(lesson)):
        cells = "".join(f"<td>{_sample(lesson, folder, step, number)}</td>" for step in steps)
        rows.append(f"<tr><td>{text_of(prompt)}</td>{cells}</tr>")
    return (
        "<h2>On the way <small>after so many updates</small></h2>\n"
        f'<div class="card scroll"><table class="samples"><tr><th>Prompt</th>{heads}</tr>{"".join(rows)}</table>'
        "</div>\n"
    )


def _sample(lesson: Lesson, folder: Path, step: int, number: int) -> str:
    path = sample_file(lesson, folder, step, number)
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        return _small_picture(np.asarray(picture.convert("RGB")), f"after {step} updates")


def _taught(lesson: Lesson) -> str:
    figures = "".join(
        f"<figure>{_small_picture(example.picture, example.caption)}"
        f"<figcaption>{text_of(example.caption)}</figcaption></figure>"
        for example in taught_examples(lesson)
    )
    head = f"<h2>Taught <small>{lesson.count} pictures and their captions</small></h2>"
    return f'{head}\n<div class="strip">{figures}</div>\n'


# --- words ------------------------------------------------------------------------------------------------------------


def options_told(arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Flag, value and meaning of each option of a command line, whose first word is the script."""
    help_of = {
        f"--{name}": info_of(item).help
        for group in TRAINING_SCRIPTS[arguments[0]].groups
        for item in option_fields(group)
        for name in names_of(item)
    }
    starts = [place for place, word in enumerate(arguments) if word in help_of]
    for start, end in zip(starts, [*starts[1:], len(arguments)], strict=True):
        yield arguments[start], " ".join(arguments[start + 1 : end]), help_of[arguments[start]]


def _options(lesson: Lesson) -> str:
    rows = "".join(
        f"<tr><td>{text_of(flag)}</td><td>{text_of(value)}</td><td>{text_of(meaning)}</td></tr>"
        for flag, value, meaning in options_told(lesson.arguments)
    )
    return f'<div class="card scroll"><table class="options">{rows}</table></div>\n'


def _next(lesson: Lesson) -> str:
    entries = "".join(f"<li>{text_of(words)}</li>" for words in lesson.next)
    return (
        f"<h2>The same with a real model</h2>\n<ol>{entries}</ol>\n<pre>{text_of(lesson.real_command)}</pre>\n"
        '<p class="soft">More: <a href="https://github.com/AUTOMATIC1111/stable-diffusion-webui">the Web UI</a> and '
        '<a href="https://github.com/comfyanonymous/ComfyUI">ComfyUI</a> draw with what was trained.</p>\n'
    )
