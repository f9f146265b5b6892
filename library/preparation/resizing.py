"""Smaller copies of pictures: one for each resolution, whole or absent, with the captions beside them.

A copy is named after its picture and the resolution, `STEM+512x512.jpg`, as the public tool of this name writes it
(kohya-ss/sd-scripts, tools/resize_images_to_resolution.py); its own size follows from its proportions.
"""

from __future__ import annotations

import errno
import filecmp
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isqrt
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from library.core.ahead import in_order
from library.core.atomic_io import remove_left_overs, write_whole
from library.core.errors import Problem, Problems, UserError, once_begun
from library.core.sizes import Size
from library.data.pictures.images import Picture, check_image, examine, load_picture, read_size
from library.data.pictures.picture_files import DECODE_ERRORS, WHOLE_PIXELS, RefusedPictureError, open_picture

Pixels = NDArray[np.uint8]

_FILTERS = {
    "box": Image.Resampling.BOX,
    "linear": Image.Resampling.BILINEAR,
    "cubic": Image.Resampling.BICUBIC,
    "lanczos4": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
ENDINGS = (".jpg", ".png")  # of copies; the second of PNG
_LONGEST_JPEG = 65_500  # pixels, of libjpeg
_RIPPLING = ("cubic", "lanczos4")  # would let a little through where a picture is transparent
# EXIF tags of the main directory that name no place: description, maker, model, software, date, artist, copyright.
_KEPT_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)


@dataclass(frozen=True)
class Resizing:
    """How copies are made; see `ResizeOptions` for the meaning of each."""

    resolutions: tuple[Size, ...]
    divisible_by: int = 1
    interpolation: str = "area"
    as_png: bool = False
    overwrite: bool = False

    @property
    def ending(self) -> str:
        return ENDINGS[self.as_png]


@dataclass(frozen=True)
class FolderOfCopies:
    """Pictures of one folder, where their copies go, and what is copied beside them.

    Attributes:
        source: the folder of the pictures.
        target: the folder of the copies.
        names: the pictures.
        beside: for stems of pictures, the names of the files that are copied along.
    """

    source: Path
    target: Path
    names: Sequence[str]
    beside: Mapping[str, Sequence[str]] = field(default_factory=dict)


WRITTEN, STAYED, OLDER, OWN_SIZE, WHITENED = "written", "stayed", "older", "own size", "whitened"
BESIDE, BESIDE_STAYED, BESIDE_DIFFERS, BESIDE_FAILED = "beside", "beside stayed", "beside differs", "beside failed"


@dataclass(frozen=True)
class Copied:
    """What came of it.

    Attributes:
        counts: of files. `WRITTEN`, `STAYED`: copies; of the written ones, `OWN_SIZE` were not larger than their
            resolution; of those that stayed, `OLDER` are older than their pictures. `WHITENED`: pictures that lost
            their transparency. `BESIDE…`: the same of files beside them.
        failed: why something is missing.
    """

    counts: Mapping[str, int]
    failed: Sequence[Problem]


def copy_name(stem: str, resolution: Size, ending: str) -> str:
    """The name of a copy, or of a file that belongs to it."""
    return f"{stem}+{resolution}{ending}"


def size_within(size: Size, resolution: Size) -> Size:
    """The largest size with the same proportions whose area is that of `resolution` at most; never larger than `size`.

    Sides are rounded down, exactly: the area never exceeds the limit, whatever the size.
    """
    if size.area <= resolution.area:
        return size
    width = isqrt(size.width * resolution.area // size.height)
    height = isqrt(size.height * resolution.area // size.width)
    return Size(max(1, width), max(1, height))


def cut_to_steps(size: Size, step: int) -> tuple[int, int, int, int]:
    """The centred part of a size whose sides are divisible by `step`: left, top, right, bottom in pixels."""
    width, height = size.width - size.width % step, size.height - size.height % step
    left, top = (size.width - width) // 2, (size.height - height) // 2
    return (left, top, left + width, top + height)


def make_copies(folders: Sequence[FolderOfCopies], how: Resizing, threads: int) -> Copied:
    """Writes the copies of all pictures; those that are there already stay. One bad picture never stops the others.

    Raises:
        UserError: nothing can be written there: no room, no right.
    """
    counts: Counter[str] = Counter()
    failed: list[Problem] = []
    for folder in folders:
        _tidy(folder, how)
    total = sum(len(folder.names) for folder in folders)
    with once_begun(), tqdm(total=total, unit="picture", desc="copies") as bar:
        try:
            for found, problems in in_order(lambda job: _copy_one(*job, how), _jobs(folders), threads):
                counts.update(found)
                failed += problems
                bar.update()
        except OSError as error:
            what = f"no copy can be written: {error.strerror or error}"
            fix = "make room or name another DST, and start again: what is there stays"
            raise UserError.of(what, str(error.filename or folders[0].target), fix) from error
    return Copied(counts, failed)


def _jobs(folders: Sequence[FolderOfCopies]) -> Iterator[tuple[FolderOfCopies, str]]:
    for folder in folders:
        for name in folder.names:
            yield folder, name


def _tidy(folder: FolderOfCopies, how: Resizing) -> None:
    endings = {how.ending, *(Path(name).suffix for names in folder.beside.values() for name in names)}
    for ending in sorted(endings):
        remove_left_overs(folder.target, ending)


def _copy_one(folder: FolderOfCopies, name: str, how: Resizing) -> tuple[Mapping[str, int], Iterable[Problem]]:
    """All copies of one picture and what belongs beside them: counts, and what could not be done.

    Raises:
        OSError: a file cannot be written.
    """
    path = folder.source / name
    counts: Counter[str] = Counter()
    problems = Problems()
    size = problems.attempt(partial(read_size, path))
    if size is None:
        return counts, problems
    todo: list[Size] = []
    there: list[Size] = []
    for resolution in how.resolutions:
        target = folder.target / copy_name(path.stem, resolution, how.ending)
        is_there = problems.attempt(partial(_is_there, path, size, resolution, target, how))
        if is_there is not None:
            (there if is_there else todo).append(resolution)
    counts[STAYED] = len(there)
    names = (copy_name(path.stem, resolution, how.ending) for resolution in there)
    counts[OLDER] = sum(_is_older(folder.target / name, path) for name in names)
    picture = problems.attempt(partial(_read, path, size, todo)) if todo else None
    if picture is not None:
        exif = _harmless_exif(path)
        for resolution in todo:
            target = folder.target / copy_name(path.stem, resolution, how.ending)
            image = _copy_of(picture, size, resolution, how)
            write_whole(target, partial(_save, image, how.as_png, exif), _check)
            counts[OWN_SIZE] += size.area <= resolution.area
        counts[WRITTEN] += len(todo)
        counts[WHITENED] += picture.alpha is not None and not how.as_png and bool(picture.alpha.min() < 255)
        there += todo
    for beside in folder.beside.get(path.stem, ()):
        for resolution in there:
            target = folder.target / copy_name(path.stem, resolution, beside.removeprefix(path.stem))
            counts[_copy_file(folder.source / beside, target, how.overwrite, problems)] += 1
    return counts, problems


def _is_there(path: Path, size: Size, resolution: Size, target: Path, how: Resizing) -> bool:
    """Whether a whole copy is there that stays.

    Raises:
        UserError: the copy cannot be made, or a picture is in its place that is not this copy.
    """
    left, top, right, bottom = cut_to_steps(size_within(size, resolution), how.divisible_by)
    wanted = Size(right - left, bottom - top)
    if 0 in wanted:
        what = f"at {resolution} a side of the copy is shorter than {how.divisible_by} pixels"
        raise UserError.of(what, str(path), "lower --divisible_by, or take the picture out")
    if max(wanted) > _LONGEST_JPEG and not how.as_png:
        what = f"a side of its copy at {resolution} has {max(wanted)} pixels, and JPEG ends at {_LONGEST_JPEG}"
        raise UserError.of(what, str(path), "give --save_as_png, or cut the picture into parts")
    if how.overwrite or not target.is_file():
        return False
    found = examine(target)
    if found.problem is not None:  # nothing of ours: what is written here is whole
        return False
    if found.size != wanted:
        what = f"there is a picture of {found.size} where the copy would have {wanted}"
        raise UserError.of(what, str(target), "--overwrite writes it anew; or name another DST")
    return True


def _is_older(copy: Path, picture: Path) -> bool:
    return copy.stat().st_mtime_ns < picture.stat().st_mtime_ns


def _read(path: Path, size: Size, resolutions: Sequence[Size]) -> Picture:
    """The whole picture for all of its copies; a huge one as large as they need it, so that memory has a bound."""
    most = max(WHOLE_PIXELS, *(resolution.area for resolution in resolutions))
    base = size_within(size, Size(most, 1))
    return load_picture(path, base, (0, 0, *base))


def _copy_of(picture: Picture, size: Size, resolution: Size, how: Resizing) -> Image.Image:
    """The copy in mode RGB, or RGBA where it is transparent and may be.

    Args:
        picture: the whole picture, perhaps smaller already.
        size: its own size, as seen.
        resolution: the largest area.
        how: see there.
    """
    scaled = size_within(size, resolution)
    box = cut_to_steps(scaled, how.divisible_by)
    image = _resized(picture.pixels, scaled, how.interpolation).crop(box)
    if picture.alpha is None or not how.as_png or picture.alpha.min() == 255:
        return image
    smooth = "linear" if how.interpolation in _RIPPLING else how.interpolation
    return without_white(image, _resized(picture.alpha, scaled, smooth).crop(box))


def _resized(pixels: Pixels, size: Size, interpolation: str) -> Image.Image:
    """uint8 (H, W) or (H, W, 3) in another size, as an image."""
    if interpolation == "area":
        return Image.fromarray(np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8))
    return Image.fromarray(pixels).resize(size, _FILTERS[interpolation])


def without_white(on_white: Image.Image, alpha: Image.Image) -> Image.Image:
    """The RGBA picture that looks like `on_white` when it lies on white; white where it is fully transparent."""
    opacity = np.asarray(alpha, dtype=np.float32)[..., None] / 255
    seen = np.asarray(on_white, dtype=np.float32)
    own = (seen - 255 * (1 - opacity)) / np.maximum(opacity, 1 / 255)
    own[opacity[..., 0] == 0] = 255
    found = Image.fromarray(np.clip(np.round(own), 0, 255).astype(np.uint8))
    found.putalpha(alpha)
    return found


def _harmless_exif(path: Path) -> bytes:
    """Who made the picture, with what and when; never where, and no preview of the whole. Empty where none is told."""
    try:
        with open_picture(path) as picture:
            stored = picture.info.get("exif")
        found, kept = Image.Exif(), Image.Exif()
        found.load(stored if isinstance(stored, bytes) else b"")
        for tag in _KEPT_TAGS:
            if isinstance(found.get(tag), str):
                kept[tag] = found[tag].encode("latin-1")  # as Pillow decodes it, whatever bytes they are
        return kept.tobytes() if len(kept) else b""
    except (*DECODE_ERRORS, RefusedPictureError, UserError):  # what is told there is no part of the picture
        return b""


def _save(image: Image.Image, as_png: bool, exif: bytes, path: Path) -> None:
    told = {"exif": exif} if exif else {}
    if as_png:
        image.save(path, "PNG", **told)
    else:
        image.save(path, "JPEG", quality=100, subsampling=0, **told)


def _check(path: Path) -> None:
    problem = check_image(path)
    if problem is not None:
        raise OSError(errno.EIO, f"what was written cannot be read again: {problem}", str(path))


def _copy_file(source: Path, target: Path, overwrite: bool, problems: Problems) -> str:
    """Copies a file beside a copy, whole or not at all; the word under which it counts.

    Raises:
        OSError: it cannot be written.
    """
    try:
        if target.is_file() and not overwrite:
            return BESIDE_STAYED if filecmp.cmp(source, target, shallow=False) else BESIDE_DIFFERS
        with source.open("rb") as file:
            write_whole(target, partial(_copy_content, file))
    except OSError as error:
        if error.filename != str(source):
            raise
        problems.add(f"cannot read the file: {error.strerror}", str(source), "check its rights")
        return BESIDE_FAILED
    return BESIDE


def _copy_content(file: IO[bytes], path: Path) -> None:
    with path.open("wb") as written:
        shutil.copyfileobj(file, written)
