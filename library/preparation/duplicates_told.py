"""Duplicates as lines for people, as values for programs, and as a page that shows them side by side."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from library.core.errors import UserError, printable
from library.data.pictures.images import load_pixels
from library.data.report.concerns import counted
from library.data.report.report_page import language_of, text_of
from library.data.report.report_style import STYLE
from library.data.report.thumbnails import fitted, jpeg_of
from library.preparation.duplicates import Copy, Found, Group, PictureFile, captions_of
from library.preparation.results import PAGE_MARK

MOST_THUMBNAILS = 1000  # some 8 kB each
_STYLE = """
.group{padding:14px 18px;margin:0 0 14px}
.group .keep{outline:3px solid var(--good);outline-offset:2px}
"""


def lines_of(found: Found, extensions: Sequence[str]) -> Iterator[str]:
    """What is printed: each group with the picture to keep first, and captions where they differ."""
    for number, group in enumerate(found.groups, 1):
        yield f"group {number}: {len(group.pictures)} pictures"
        yield printable(f"  keep  {_described(group.keep)}")
        for copy in group.copies:
            yield printable(f"  copy  {_described(copy.picture)}: {_kind_of(copy, group)}")
        if captions_differ(group, extensions):
            yield "  their captions differ:"
            yield from _caption_lines(group, extensions)
    yield summary(found)


def summary(found: Found) -> str:
    """One line with the counts."""
    copies = sum(len(group.copies) for group in found.groups)
    pictures, groups = counted(found.count, "picture"), counted(len(found.groups), "group")
    return f"{pictures}, {copies} of them copies of others, in {groups}"


def captions_differ(group: Group, extensions: Sequence[str]) -> bool:
    """Whether the pictures of a group do not all have the same captions; having none is a difference, too."""
    own = captions_of(group.keep, extensions)
    return any(captions_of(copy.picture, extensions) != own for copy in group.copies)


def as_json_values(found: Found, extensions: Sequence[str]) -> dict[str, Any]:
    """Everything that was found, as values that `json` writes."""
    return {
        "pictures": found.count,
        "groups": [
            {
                "keep": _values(group.keep, extensions),
                "copies": [
                    {**_values(copy.picture, extensions), "kind": copy.kind.value, "like": str(copy.like.path)}
                    for copy in group.copies
                ],
                "captions_differ": captions_differ(group, extensions),
            }
            for group in found.groups
        ],
        "unreadable": [{"path": problem.where, "reason": problem.what} for problem in found.unreadable],
    }


def page_of(found: Found, extensions: Sequence[str]) -> str:
    """One HTML file that needs nothing beside it and may load or run nothing."""
    shown = iter(range(MOST_THUMBNAILS))
    body = "".join(_group(number, group, extensions, shown) for number, group in enumerate(found.groups, 1))
    missing = "".join(
        f'<li class="bad"><span class="where" dir="auto">{text_of(problem.where)}</span>: '
        f"<bdi>{text_of(problem.what)}</bdi></li>"
        for problem in found.unreadable
    )
    unread = f'<h2>Cannot be read</h2>\n<ul class="list" id="unreadable">{missing}</ul>\n' if missing else ""
    note = f" The first {MOST_THUMBNAILS} are shown." if _too_many(found.groups) else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{PAGE_MARK}\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Duplicates</title>\n<style>{STYLE}{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Duplicates</h1>\n"
        f'<p class="soft">{summary(found)}. In each group the framed picture, which has the most pixels, is suggested '
        f"to stay; nothing was changed.{note}</p>\n{body}{unread}"
        "<footer>Made by sd-atelier. Sizes are in pixels.</footer>\n</main>\n</body>\n</html>\n"
    )


def _too_many(groups: Sequence[Group]) -> bool:
    return sum(len(group.pictures) for group in groups) > MOST_THUMBNAILS


def _group(number: int, group: Group, extensions: Sequence[str], shown: Iterator[int]) -> str:
    remark = '<span class="tag warn">captions differ</span>' if captions_differ(group, extensions) else ""
    kinds = chain(["keep"], (_kind_of(copy, group) for copy in group.copies))
    cells = "".join(
        _cell(picture, kind, extensions, next(shown, None) is not None)
        for picture, kind in zip(group.pictures, kinds, strict=True)
    )
    head = f"<h2>Group {number} <small>{len(group.pictures)} pictures</small> {remark}</h2>"
    return f'<section class="card group">{head}<div class="uses">{cells}</div></section>\n'


def _cell(picture: PictureFile, kind: str, extensions: Sequence[str], is_shown: bool) -> str:
    content = _thumbnail(picture) if is_shown else None
    frame = ' class="keep"' if kind == "keep" else ""
    image = f'<img{frame} loading="lazy" alt="" src="data:image/jpeg;base64,{content}">' if content else ""
    captions = "".join(
        f'<p class="caption" dir="auto" lang="{language_of(text)}">{text_of(ending)}: {text_of(text)}</p>'
        for ending, text in captions_of(picture, extensions).items()
    )
    return (
        f'<div class="use">{image}<b dir="auto">{text_of(str(picture.path))}</b>'
        f'<div class="soft">{text_of(kind)}, {picture.size}, {_bytes(picture)}</div>{captions}</div>'
    )


def _thumbnail(picture: PictureFile) -> str | None:
    """A small JPEG as base64; None when the picture is gone by now."""
    size = fitted(picture.size)
    try:
        pixels = load_pixels(picture.path, size, (0, 0, *size))
    except UserError:
        return None
    return base64.b64encode(jpeg_of(pixels)).decode()


def _kind_of(copy: Copy, group: Group) -> str:
    return copy.kind.value if copy.like is group.keep else f"{copy.kind.value} as {copy.like.path}"


def _described(picture: PictureFile) -> str:
    return f"{picture.path}  ({picture.size}, {_bytes(picture)})"


def _bytes(picture: PictureFile) -> str:
    return f"{picture.length / 1000:.1f} kB" if picture.length >= 1000 else f"{picture.length} bytes"


def _caption_lines(group: Group, extensions: Sequence[str]) -> Iterator[str]:
    without = 0
    for picture in group.pictures:
        captions = captions_of(picture, extensions)
        without += not captions
        for ending, text in captions.items():
            yield printable(f"    {picture.path}: {text!r} ({ending})")
    if without:
        yield f"    {without} without a caption"


def _values(picture: PictureFile, extensions: Sequence[str]) -> dict[str, Any]:
    return {
        "path": str(picture.path),
        "size": list(picture.size),
        "bytes": picture.length,
        "captions": captions_of(picture, extensions),
    }
