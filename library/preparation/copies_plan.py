"""What is resized to where: found and checked before the first picture is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from library.core.atomic_io import why_not_writable
from library.core.errors import Problems
from library.core.wording import some_of
from library.data.pictures.folders import Listing, list_folders, real_place
from library.options.preparation import ResizeOptions, parse_resolutions
from library.preparation.resizing import ENDINGS, FolderOfCopies, copy_name

_NAMES_TOLD = 3
_NEVER_COPIED = (".npz",)  # cached latents: those of the picture's own size


def plan_copies(options: ResizeOptions) -> list[FolderOfCopies]:
    """The pictures of SRC, the folders of their copies, and the files that go with them.

    Raises:
        UserError: with everything that is wrong: SRC is missing or holds no pictures, DST is SRC or lies where it would
            be read or written as well, DST cannot be written to, two pictures would share a name, copies are there as
            files of the other kind.
    """
    problems = Problems()
    source, target = Path(options.src_img_folder), Path(options.dst_img_folder)
    endings = ("",) if options.copy_associated_files else ()
    planned = []
    for listing in list_folders([options.src_img_folder], options.recursive, problems, endings):
        if listing.pictures:
            _check_stems(listing, problems)
            place = target / os.path.relpath(listing.folder, source)
            planned.append(FolderOfCopies(listing.folder, place, listing.pictures, _files_beside(listing)))
    _check_places(source, target, options.recursive, problems)
    for folder in planned:
        _check_other_kind(folder, options, problems)
    problems.raise_if_any()
    return planned


def _check_places(source: Path, target: Path, recursive: bool, problems: Problems) -> None:
    real, real_target = _real(source), _real(target)
    if real == real_target:
        problems.add("SRC and DST are one folder", str(target), "name another folder for the copies")
    elif recursive and real in real_target.parents:
        problems.add("DST lies in SRC: copies would be made of copies", str(target), "name a folder outside of SRC")
    elif recursive and real_target in real.parents:
        problems.add("SRC lies in DST: copies could come among the pictures", str(target), "name another folder")
    if target.exists() and not target.is_dir():
        problems.add("this is a file; a folder for the copies is expected", str(target), "name another folder")
        return
    there = next((folder for folder in (real_target, *real_target.parents) if folder.is_dir()), None)
    error = why_not_writable(there) if there is not None else None
    if error is not None:
        problems.add(f"cannot write there: {error.strerror}", str(target), "name another folder, or change its rights")


def _real(path: Path) -> Path:
    return Path(real_place(path))


def _check_stems(listing: Listing, problems: Problems) -> None:
    """Copies are named by stems; names that differ in case alone are one on Windows and macOS."""
    known: dict[str, str] = {}
    for name in listing.pictures:
        first = known.setdefault(Path(name).stem.casefold(), name)
        if first != name:
            what = f"the copies of {first} and {name} would have the same name"
            problems.add(what, str(listing.folder), "rename one of them, or take it out of the folder")


def _check_other_kind(folder: FolderOfCopies, options: ResizeOptions, problems: Problems) -> None:
    """A copy as PNG beside the same as JPEG would be trained twice."""
    own, other = ENDINGS[options.save_as_png], ENDINGS[not options.save_as_png]
    with suppress(OSError):  # no folder yet; one that cannot be read is told where it is written to
        there = {os.path.normcase(name) for name in os.listdir(folder.target)}  # noqa: PTH208
        found = [
            name
            for picture in folder.names
            for resolution in parse_resolutions(options.max_resolution)
            if os.path.normcase(name := copy_name(Path(picture).stem, resolution, other)) in there
        ]
        if found:
            what = f"copies are there as {other}, which would be trained as well as those as {own}"
            fix = f"name another DST, delete the {other} copies, or write {other} again"
            problems.add(f"{what}: {some_of(found[:_NAMES_TOLD], len(found))}", str(folder.target), fix)


def _files_beside(listing: Listing) -> Mapping[str, Sequence[str]]:
    """For stems of pictures the other files with that stem, sorted; no cached latents."""
    stems = {Path(name).stem for name in listing.pictures}
    found: dict[str, list[str]] = {}
    for name in sorted(listing.files):
        stem, ending = os.path.splitext(name)  # noqa: PTH122
        if stem in stems and ending and ending.lower() not in _NEVER_COPIED:
            found.setdefault(stem, []).append(name)
    return found
