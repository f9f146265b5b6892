"""Pictures that are there more than once: the same file, the same pixels in another file, or a changed copy.

Each group stands around the picture that deserves to stay. In it are the copies of that picture, and the copies of
these that are still much like it; a picture that would be left alone stands with the one it is a copy of. A chain of
small changes never swallows a set, and no two pictures that stay are copies of each other. The hashes of a picture are
compared with those of all others in one step (NumPy on packed bits), so nothing is kept for pairs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from library.core.ahead import in_order
from library.core.errors import Problem, Problems, UserError
from library.core.sizes import Size
from library.data.captions.caption_files import caption_files, read_caption
from library.data.pictures.folders import Listing, real_place
from library.data.pictures.images import load_picture, load_pixels, read_size
from library.data.pictures.picture_files import reason_of
from library.preparation.details import is_edited, side_of_details
from library.preparation.fingerprints import Codes, Pixels, Thumbnails, codes_of, mirrored, thumbnail_of
from library.preparation.likeness import LOOSE, STRICT, Limits, Start, places_of_copies

_MOST_DECODED = 1 << 26  # pixels of pictures whose pixels are compared one by one; larger ones count as near copies
_WIDEST = 0.2  # difference of the logarithms of the proportions of copies; 10 % cut off one side make 0.1
_STARTS = 3
_PLACES = 2  # ways of two pictures to lie on each other that are looked at in detail
_ALL_BITS = 64
_DIGEST_BYTES = 16
_READ_AT_ONCE = 1 << 20


class Kind(Enum):
    """How a picture is like the one that should stay."""

    SAME_FILE = "same file"
    SAME_PIXELS = "same pixels"
    NEAR = "near copy"
    MIRRORED = "mirrored copy"


@dataclass(frozen=True)
class PictureFile:
    """A picture: size in pixels as seen, bytes of its file, and a digest of it where another file has as many bytes."""

    path: Path
    size: Size
    length: int
    digest: bytes | None


@dataclass(frozen=True)
class Copy:
    """A picture that is there already: how it is like which other picture of its group."""

    picture: PictureFile
    kind: Kind
    like: PictureFile


@dataclass(frozen=True)
class Group:
    """A picture that should stay, and its copies, sorted as the pictures were found."""

    keep: PictureFile
    copies: Sequence[Copy]

    @property
    def pictures(self) -> list[PictureFile]:
        return [self.keep, *(copy.picture for copy in self.copies)]


@dataclass(frozen=True)
class Search:
    """How copies are looked for.

    Attributes:
        threshold: bits in which hashes may differ for pictures to be compared.
        mirrored: whether mirrored copies count.
        threads: that read pictures.
    """

    threshold: int
    mirrored: bool
    threads: int


@dataclass(frozen=True)
class Found:
    """What was found: how many pictures were compared, the groups in the order of their first pictures, and what could
    not be read."""

    count: int
    groups: Sequence[Group]
    unreadable: Sequence[Problem]


@dataclass(frozen=True)
class _Read:
    """What one reading of a picture gives: `codes` of it and, where asked for, of its mirror image (n, 11)."""

    file: PictureFile
    thumbnail: Pixels
    codes: Codes


def find_duplicates(folders: Iterable[Listing], search: Search) -> Found:
    """Reads all pictures once, and compares what is alike. Changes nothing.

    A file that several paths lead to counts once, under the first of them.
    """
    paths = list(_each_once(folders))
    sizes = Counter(_bytes_of(path) for path in paths)
    work = partial(_read, shared={size for size, count in sizes.items() if count > 1}, search=search)
    files: list[PictureFile] = []
    codes: list[Codes] = []
    problems = Problems()
    with Thumbnails() as thumbnails:
        for read in tqdm(in_order(work, paths, search.threads), total=len(paths), unit="picture", desc="reading"):
            if isinstance(read, UserError):
                problems.extend(read.problems)
                continue
            files.append(read.file)
            codes.append(read.codes)
            thumbnails.add(read.thumbnail)
        groups = _Comparison(files, codes, thumbnails, search).groups() if files else []
    return Found(len(files), groups, list(problems))


def _each_once(folders: Iterable[Listing]) -> Iterator[Path]:
    seen: set[object] = set()
    for folder in folders:
        for name in folder.pictures:
            path = folder.folder / name
            identity = _identity(path)
            if identity not in seen:
                seen.add(identity)
                yield path


def _identity(path: Path) -> object:
    """The same for all names of one file, hard links too; with its length and date, as some shares number badly."""
    try:
        found = path.stat()
    except OSError:  # told when it is read
        return real_place(path)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if found.st_ino else real_place(path)


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when it is read
        return -1


def _read(path: Path, shared: set[int], search: Search) -> _Read | UserError:
    """Looks at one picture; the error where it cannot be read, so that the others go on.

    Args:
        path: the picture.
        shared: lengths that several files have.
        search: see there.
    """
    try:
        size, thumbnail = read_size(path), thumbnail_of(path)
        length = path.stat().st_size
        digest = _digest(path) if length in shared else None
    except UserError as error:
        return error
    except OSError as error:
        return UserError.of(reason_of(path, error), str(path), "check the file and its rights")
    codes = codes_of(thumbnail)[None]
    if search.mirrored:
        codes = np.concatenate([codes, codes_of(mirrored(thumbnail))[None]])
    return _Read(PictureFile(path, size, length, digest), thumbnail, codes)


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        while piece := file.read(_READ_AT_ONCE):
            digest.update(piece)
    return digest.digest()


_Like = tuple[Kind, int]  # how a picture is a copy, and of which


class _Comparison:
    """The pictures in the order in which they deserve to stay, and arrays of what tells them apart."""

    def __init__(
        self, files: Sequence[PictureFile], codes: Sequence[Codes], thumbnails: Thumbnails, search: Search
    ) -> None:
        self._rank = sorted(range(len(files)), key=lambda number: _worth(files[number]))
        self._files = [files[number] for number in self._rank]
        ranked = np.stack([codes[number] for number in self._rank])  # (pictures, 1 or 2, windows)
        self._codes = np.ascontiguousarray(ranked.transpose(1, 2, 0))  # (1 or 2, windows, pictures): one step for all
        self._shapes = np.log([file.size.aspect_ratio for file in self._files])
        self._thumbnails = thumbnails
        self._threshold = search.threshold

    def groups(self) -> list[Group]:
        """All groups, sorted by their first pictures as these were found."""
        free = np.ones(len(self._files), dtype=bool)
        copies: dict[int, dict[int, _Like]] = {}
        for number in tqdm(range(len(self._files)), unit="picture", desc="comparing"):
            if free[number]:
                free[number] = False
                copies[number] = self._copies_of(number, free)
        self._add_left(copies)
        groups: list[tuple[int, Group]] = []
        for number, found in copies.items():
            if found:
                ranks = sorted((self._rank[other], other) for other in found)
                first = min(self._rank[number], ranks[0][0])
                members = [(self._files[other], found[other][0], self._files[found[other][1]]) for _, other in ranks]
                groups.append((first, Group(self._files[number], _exact_ones_named(self._files[number], members))))
        return [group for _, group in sorted(groups, key=lambda item: item[0])]

    def _add_left(self, copies: dict[int, dict[int, _Like]]) -> None:
        """Puts pictures that stand alone to the group that took the picture they are a copy of.

        No more follow from these: a chain of small changes ends here.
        """
        owners = {other: number for number, found in copies.items() for other in found}
        if not owners:
            return
        taken = np.zeros(len(self._files), dtype=bool)
        taken[list(owners)] = True
        for number in [number for number, found in copies.items() if not found]:
            for other in self._alike(number, taken):
                kind = self._kind(number, other, STRICT)
                if kind is not None:
                    copies[owners[other]][number] = (kind, other)
                    break

    def _copies_of(self, number: int, free: NDArray[np.bool_]) -> dict[int, _Like]:
        """The copies of a picture, which are free no longer: direct ones, and their copies that are much like it."""
        found: dict[int, _Like] = {}
        for other in self._alike(number, free):
            kind = self._kind(number, other, STRICT)
            if kind is not None:
                found[other] = (kind, number)
                free[other] = False
        for between in list(found):
            for other in self._alike(between, free):
                kind = self._kind(number, other, LOOSE) if self._kind(between, other, STRICT) else None
                if kind is not None:
                    found[other] = (kind, number)
                    free[other] = False
        return found

    def _alike(self, number: int, free: NDArray[np.bool_]) -> list[int]:
        """The free pictures whose hashes and proportions are near enough to those of one for a closer look."""
        start = int(free.argmax())
        nearest = self._distances(number, slice(start, None)).min(axis=(0, 1, 2))
        shapes = np.abs(self._shapes[start:] - self._shapes[number])
        near = free[start:] & (nearest <= self._threshold) & (shapes <= _WIDEST)
        return [start + int(place) for place in np.flatnonzero(near)]

    def _distances(self, number: int, others: slice) -> NDArray[np.uint8]:
        """Differing bits (1 or 2, 2, windows, others): as it is and mirrored; windows of the one, then of the other.

        The picture's own mirror image is taken for each of its windows and for its whole.
        """
        own, theirs = (
            self._codes[..., number, None],
            self._codes[0, :, others],
        )  # (1 or 2, windows, 1), (windows, others)
        distances = np.empty((len(own), 2, len(theirs), theirs.shape[1]), dtype=np.uint8)
        np.bitwise_count(own ^ theirs[0], out=distances[:, 0])
        np.bitwise_count(own[:, :1] ^ theirs, out=distances[:, 1])
        return distances

    def _kind(self, number: int, other: int, limits: Limits) -> Kind | None:
        """How `other` is a copy; None when it is none after all."""
        if self._files[number].digest is not None and self._files[number].digest == self._files[other].digest:
            return Kind.NEAR  # named more exactly at the end
        distances = self._distances(number, slice(other, other + 1))[..., 0]
        for turned, kind in enumerate((Kind.NEAR, Kind.MIRRORED)[: len(distances)]):
            if self._is_copy(number, other, distances[turned], limits, turned=bool(turned)):
                return kind
        return None

    def _is_copy(self, number: int, other: int, distances: NDArray[np.uint8], limits: Limits, turned: bool) -> bool:
        """Whether `other` shows the same as a picture, or as its mirror image when that was `turned`."""
        first, second = (self._thumbnails.get(self._rank[one]) for one in (number, other))
        starts = _starts(distances, self._threshold if limits is STRICT else _ALL_BITS)
        places = places_of_copies(mirrored(first) if turned else first, second, starts, limits)
        if limits is LOOSE:  # each is a copy of a third picture, and was compared with it in detail
            return next(places, None) is not None
        details: tuple[Pixels, Pixels] | None = None
        for place in islice(places, _PLACES):
            details = details or _details(self._files[number], self._files[other], turned)
            if details is None or not is_edited(*details, place):
                return True
        return False


def _details(first: PictureFile, second: PictureFile, turned: bool) -> tuple[Pixels, Pixels] | None:
    """Two pictures as squares of one size, the first mirrored when it is `turned`; None when one is gone by now."""
    side = side_of_details(first.size, second.size)
    try:
        own, others = (load_pixels(one.path, Size(side, side), (0, 0, side, side)) for one in (first, second))
    except UserError:
        return None
    return mirrored(own) if turned else own, others


def _starts(distances: NDArray[np.uint8], most: int) -> list[Start]:
    """The windows that fit best, from differing bits (2, windows), of which there may be `most`."""
    best = np.argsort(distances, axis=None, kind="stable")[:_STARTS]
    places = [np.unravel_index(place, distances.shape) for place in best]
    return [(bool(side), int(window)) for side, window in places if distances[side, window] <= most]


def _worth(file: PictureFile) -> tuple[int, int, str]:
    """Sorts what deserves to stay to the front: more pixels, then less compressed, then by name."""
    return (-file.size.area, -file.length, file.path.as_posix())


def _exact_ones_named(keep: PictureFile, members: Sequence[tuple[PictureFile, Kind, PictureFile]]) -> list[Copy]:
    """The copies of a group; one that is exactly a picture in front of it is told as a copy of that one."""
    sizes = Counter([keep.size, *(picture.size for picture, *_ in members)])
    files: dict[bytes, PictureFile] = {}
    pixels: dict[bytes, PictureFile] = {}
    copies = []
    for picture, kind, like in [(keep, None, keep), *members]:
        own_pixels = _pixel_digest(picture) if sizes[picture.size] > 1 else None
        same_file = files.setdefault(picture.digest, picture) if picture.digest else picture
        same_pixels = pixels.setdefault(own_pixels, picture) if own_pixels else picture
        if kind is None:
            continue
        if same_file is not picture:
            copies.append(Copy(picture, Kind.SAME_FILE, same_file))
        elif same_pixels is not picture:
            copies.append(Copy(picture, Kind.SAME_PIXELS, same_pixels))
        else:
            copies.append(Copy(picture, kind, like))
    return copies


def _pixel_digest(file: PictureFile) -> bytes | None:
    """Of what is seen: sRGB on white, and where it is transparent. None for huge pictures, and for one that is gone."""
    if file.size.area > _MOST_DECODED:
        return None
    try:
        picture = load_picture(file.path, file.size, (0, 0, *file.size))
    except UserError:
        return None
    digest = hashlib.blake2b(picture.pixels.tobytes(), digest_size=_DIGEST_BYTES)
    if picture.alpha is not None and picture.alpha.min() < 255:
        digest.update(picture.alpha.tobytes())
    return digest.digest()


def captions_of(file: PictureFile, extensions: Sequence[str]) -> dict[str, str]:
    """The captions beside a picture by their endings, all lines; a reason in brackets where one cannot be read."""
    found: dict[str, str] = {}
    for caption in caption_files(file.path, extensions):
        try:
            text = read_caption(caption, whole=True) or ""
        except UserError as error:
            text = f"({error.problems[0].what})"
        found[caption.name.removeprefix(file.path.stem)] = text
    return found
