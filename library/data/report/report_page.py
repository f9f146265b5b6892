"""The report as one HTML file that needs nothing beside it: no network, no other file.

File names and captions come from anywhere: every text is escaped, and the page forbids its reader's browser to load
anything or to run any script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

from library.core.errors import Problem
from library.core.sizes import Size
from library.data.report.concerns import counted
from library.data.report.dataset_report import (
    DRAWS_SHOWN,
    BatchFacts,
    BucketFacts,
    DatasetReport,
    EpochFacts,
    ImageFacts,
    Source,
    UseFacts,
    caption_draws,
    first_requests,
    is_heavy_crop,
    views_of,
)
from library.data.report.report_style import SCRIPT, STYLE
from library.data.report.thumbnails import one_use, whole_picture

MOST_THUMBNAILS = 500  # some 8 kB each
MOST_PICTURES = 10_000  # more make a page that no browser scrolls

_GLYPH = 26
_LANGUAGES = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
)
_SOURCE_WORDS: Mapping[str, str] = MappingProxyType(
    {"file": "from its file", "metadata": "from the metadata", "class_tokens": "class tokens", "empty": "empty"}
)
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def page_of(report: DatasetReport, source: Source | None) -> str:
    """The page as HTML.

    Args:
        report: what is told.
        source: the pictures that `report` is about, for thumbnails and draws; None where none is understood.
    """
    title = "What will be trained" if not report.problems else "What has to be mended"
    body = "".join(
        [
            _header(report, title),
            _listed("Problems", "problems", report.problems),
            _listed("Left out", "left_out", report.left_out),
            _warnings(report.warnings),
            _buckets(report.buckets),
            _epochs(report.epochs),
            _batches(report, source),
            _pictures(report, source),
        ]
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        "<footer>Made by sd-atelier. Epochs, batches and updates count from 1; sizes are in pixels.</footer>\n"
        f"</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def text_of(text: str) -> str:
    """Any text as HTML shows it: escaped, and what has no sign of its own as its code."""
    return html.escape(_UNSHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text))


def language_of(text: str) -> str:
    """The language that decides how Chinese characters are drawn; empty where there are none."""
    return next((language for language, signs in _LANGUAGES if signs.search(text)), "")


def _header(report: DatasetReport, title: str) -> str:
    count = len(report.problems)
    verdict = f'<span class="verdict bad">{counted(count, "problem")} to mend before a training can start</span>'
    if not count:
        verdict = '<span class="verdict good">Ready to train</span>'
    head = f"<h1>{title}</h1>\n{verdict}\n"
    if not report.epochs:
        return head
    first = report.epochs[0]
    tiles = [
        (len(report.images), "pictures"),
        (first.training_uses, "training uses an epoch"),
        (first.regularisation_uses, "regularisation uses an epoch"),
        (len(report.buckets), "buckets"),
        (first.batches, "batches an epoch"),
        (first.updates, "updates an epoch"),
    ]
    told = [(number, words) for number, words in tiles if number]
    cells = "".join(f'<div class="tile"><b>{number:,}</b><span>{words}</span></div>' for number, words in told)
    return f'{head}<div class="tiles">{cells}</div>\n'


def _listed(title: str, name: str, problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    rows = "".join(
        f'<li class="bad"><span class="where" dir="auto">{text_of(problem.where)}</span>: {_isolated(problem.what)}'
        f'<span class="fix">→ {text_of(problem.fix)}</span></li>'
        for problem in problems
    )
    return f'<h2>{title} <small>{len(problems)}</small></h2>\n<ul class="list" id="{name}">{rows}</ul>\n'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    rows = "".join(f'<li class="warn">{_isolated(text)}</li>' for text in warnings)
    return f'<h2>Worth a look <small>{len(warnings)}</small></h2>\n<ul class="list" id="warnings">{rows}</ul>\n'


def _isolated(text: str) -> str:
    """A text that may hold names of files: its direction cannot spread to what stands around it."""
    return f"<bdi>{text_of(text)}</bdi>"


def _buckets(buckets: Sequence[BucketFacts]) -> str:
    if not buckets:
        return ""
    largest = max(bucket.uses for bucket in buckets) or 1
    by_shape = sorted(buckets, key=lambda bucket: (bucket.dataset, bucket.size.aspect_ratio, bucket.size.area))
    charts = []
    for dataset, own in groupby(by_shape, key=lambda bucket: bucket.dataset):
        rows = list(own)
        several = rows[0].dataset != by_shape[-1].dataset or dataset > 1
        name = "Validation" if rows[0].is_validation else f"Dataset {dataset}"
        head = f"<p><b>{name}</b></p>" if several else ""
        charts.append(f'{head}<div class="chart">{"".join(_bucket_row(bucket, largest) for bucket in rows)}</div>')
    lead = "From upright to wide; the bars are the uses of the first epoch."
    return (
        f'<h2>Buckets <small>{len(buckets)}</small></h2>\n<div class="card" id="buckets"><p class="soft">{lead}</p>'
        f"{''.join(charts)}</div>\n"
    )


def _bucket_row(bucket: BucketFacts, largest: int) -> str:
    scale = (_GLYPH - 4) / max(bucket.size)
    width, height = bucket.size.width * scale, bucket.size.height * scale
    glyph = (
        f'<svg width="{_GLYPH}" height="{_GLYPH}" aria-hidden="true"><rect class="glyph" rx="2" '
        f'x="{(_GLYPH - width) / 2:.1f}" y="{(_GLYPH - height) / 2:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}"/></svg>'
    )
    counts = f"{counted(bucket.pictures, 'picture')}, {counted(bucket.uses, 'use')}, "
    counts += "1 batch" if bucket.batches == 1 else f"{bucket.batches} batches"
    if bucket.underfilled:
        counts += f" <em>under-filled: the batch size is {bucket.batch_size}</em>"
    share = max(0.6, 100 * bucket.uses / largest)
    return (
        f'<div class="row{" under" if bucket.underfilled else ""}" data-bucket="{bucket.size}">{glyph}'
        f'<span class="name">{bucket.size}</span>'
        f'<span class="track"><span class="fill" style="width:{share:.1f}%"></span></span>'
        f'<span class="count">{counts}</span></div>'
    )


def _epochs(epochs: Sequence[EpochFacts]) -> str:
    if not epochs:
        return ""
    heads = "<tr><th>Epoch</th><th>Training uses</th><th>Regularisation uses</th><th>Batches</th><th>Updates</th></tr>"
    rows = "".join(
        f"<tr><td>{'every' if len(epochs) == 1 else epoch.epoch}</td><td>{epoch.training_uses:,}</td>"
        f"<td>{epoch.regularisation_uses:,}</td><td>{epoch.batches:,}</td><td>{epoch.updates:,}</td></tr>"
        for epoch in epochs
    )
    return f'<h2>Epochs</h2>\n<div class="card scroll" id="epochs"><table>{heads}{rows}</table></div>\n'


def _batches(report: DatasetReport, source: Source | None) -> str:
    if source is None or not report.batches:
        return ""
    cells = []
    for batch, request in zip(report.batches, first_requests(source), strict=True):
        looks = [one_use(source.views, record, view) for record, view in views_of(source, request)]
        cells.append(_batch(batch, looks))
    lead = (
        "Exactly what is trained: cut, mirrored, coloured and captioned as drawn; beside masked pictures their weight."
    )
    return (
        f"<h2>First batches <small>of epoch 1</small></h2>\n"
        f'<p class="soft">{lead}</p><div class="batches" id="batches">{"".join(cells)}</div>\n'
    )


def _batch(batch: BatchFacts, looks: Sequence[bytes | None]) -> str:
    uses = "".join(_use(use, look) for use, look in zip(batch.uses, looks, strict=True))
    head = f"Batch {batch.number} · update {batch.update} · bucket {batch.bucket}"
    return f'<section class="batch"><h3>{head}</h3><div class="uses">{uses}</div></section>'


def _use(use: UseFacts, look: bytes | None) -> str:
    picture = _image(look, "jpeg") if look else '<div class="none">cannot be read</div>'
    tags = [f"{use.resized} cut {_box(use.crop)}", *(["mirrored"] if use.flipped else [])]
    tags += ["regularisation"] if use.is_reg else []
    return (
        f'<div class="use">{picture}<b dir="auto">{text_of(use.name)}</b><div class="soft">{", ".join(tags)}</div>'
        f"{_caption(use.caption)}<div class='soft'>{counted(use.tokens, 'token')}</div></div>"
    )


def _pictures(report: DatasetReport, source: Source | None) -> str:
    if source is None or not report.images:
        return ""
    count = len(report.images)
    told = min(count, MOST_PICTURES)
    cells = "".join(_picture(number, report.images[number], source) for number in range(told))
    limits = []
    if count > told:
        limits.append(f"Here are the first {told:,} of {count:,}; the JSON file (--json) holds them all.")
    if told > MOST_THUMBNAILS:
        limits.append(f"The first {MOST_THUMBNAILS} are shown small; the others are told in words.")
    lead = "The yellow frame is what stays of the scaled picture before any draw. " + " ".join(limits)
    controls = (
        '<div class="bar"><input type="search" id="words" placeholder="Find names, captions, sizes, remarks" '
        'aria-label="Find"><label><input type="checkbox" id="only"> only those with a remark</label>'
        f'<span class="soft" id="shown">{told:,} of {told:,} shown</span></div>'
    )
    return (
        f'<h2>Pictures <small>{count:,}</small></h2>\n<p class="soft">{lead}</p>{controls}'
        f'<div class="pictures" id="pictures">{cells}</div>\n'
    )


def _picture(number: int, image: ImageFacts, source: Source) -> str:
    thumbnail = _thumbnail(image, source, number) if number < MOST_THUMBNAILS else ""
    tags = "".join(f'<span class="tag{kind}">{text_of(words)}</span>' for words, kind in _tags(image))
    mirrored = "half of the uses mirrored" if image.flips else "never mirrored"
    facts = (
        f"<b>{image.size}</b> → {image.resized} → bucket <b>{image.bucket}</b><br>crop {_box(image.crop)}"
        f" ({image.lost:.1%} cut off)<br>x {image.repeats:g} an epoch, loss weight {image.loss_weight:g}, {mirrored},"
        f" {'masked' if image.mask else 'no mask'}<br>{counted(image.tokens, 'token')},"
        f" caption: {_SOURCE_WORDS[image.caption_source]}"
    )
    draws = "".join(f"<li>{_caption(draw)}</li>" for draw in caption_draws(source, number))
    listed = (
        f'<p class="drawn">as drawn in epochs 1 to {DRAWS_SHOWN}:</p><ol class="draws">{draws}</ol>' if draws else ""
    )
    return (
        f'<article class="picture"><div class="thumb">{thumbnail}</div><div>'
        f'<h3 dir="auto" title="{text_of(image.path)}">{text_of(Path(image.path).name)}</h3>'
        f'<div class="tags">{tags}</div>'
        f'<p class="size">{facts}</p>{_caption(image.caption)}{listed}</div></article>\n'
    )


def _tags(image: ImageFacts) -> Iterator[tuple[str, str]]:
    """Words on a picture's card, and the class of those that deserve a look."""
    yield image.subset, ""
    if image.is_reg:
        yield "regularisation", ""
    if image.is_validation:
        yield "validation", ""
    if image.flips:
        yield "mirrored", ""
    if image.mask:
        yield "masked", ""
    if image.caption_varies:
        yield "caption varies", ""
    if image.resized.width > image.size.width or image.resized.height > image.size.height:
        yield "enlarged", " warn"
    if is_heavy_crop(image):
        yield f"{image.lost:.0%} cut off", " warn"
    if image.tokens_lost:
        yield f"{counted(image.tokens_lost, 'token')} not read", " warn"
    if not image.caption:
        yield "empty caption", " warn"


def _thumbnail(image: ImageFacts, source: Source, record: int) -> str:
    found = whole_picture(source.views, record)
    if found is None:
        return '<div class="none">cannot be read</div>'
    pixels, alpha = found
    mask = _image(alpha, "png") if alpha is not None and image.mask else ""
    return _framed(pixels, image.resized, image.crop) + mask


def _framed(pixels: bytes, size: Size, crop: tuple[int, int, int, int]) -> str:
    """The scaled picture with its crop: what is cut off lies in shade."""
    left, top, right, bottom = crop
    width = round(size.width * min(1.0, 160 / size.width, 170 / size.height))
    shade = f"M0 0H{size.width}V{size.height}H0ZM{left} {top}V{bottom}H{right}V{top}Z"
    return (
        f'<svg viewBox="0 0 {size.width} {size.height}" width="{width}" role="img" aria-label="crop {_box(crop)}">'
        f'<image href="{_data_uri(pixels, "jpeg")}" width="{size.width}" height="{size.height}"/>'
        f'<path class="shade" d="{shade}"/><rect class="frame" x="{left}" y="{top}" '
        f'width="{right - left}" height="{bottom - top}"/></svg>'
    )


def _caption(caption: str) -> str:
    if not caption:
        return '<p class="caption empty">empty caption</p>'
    language = language_of(caption)
    known = f' lang="{language}"' if language else ""
    return f'<p class="caption" dir="auto"{known}>{text_of(caption)}</p>'


def _box(box: tuple[int, int, int, int]) -> str:
    left, top, right, bottom = box
    return f"{left},{top} to {right},{bottom}"


def _image(content: bytes, kind: str) -> str:
    return f'<img loading="lazy" alt="" src="{_data_uri(content, kind)}">'


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
